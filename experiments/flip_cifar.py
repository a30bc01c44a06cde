"""CIFAR-10 in the flipped basis: how much worse is a network where the coefficients of the NADs are
reversed?

Writes into the run folder: `units/*.npz` (finished networks), `results.csv` (one row per network),
`examples.npz` (some images, for the figure) and figures. Source: NAD, Section 5.2; see
`interventions.flip`.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import image_networks, results
from experiments.image_networks import METRICS, ImageNetwork
from experiments.run import folder, runner
from experiments.run.config import check_sweep
from experiments.run.plan import Plan
from experiments.run.shards import Shard
from nad_jax import plotting, store
from nad_jax.cifar import ImageData
from nad_jax.directions import complete_basis
from nad_jax.errors import check_choice
from nad_jax.interventions import flip

OWN_FIELDS = ("bases",)
COLUMNS = ("architecture", "basis", "seed", *METRICS)
BASES = ("original", "flipped")
# Test accuracies in the two bases (NAD, Section 5.2).
PUBLISHED = {
    "lenet": (0.69, 0.48),
    "vgg11": (0.87, 0.53),
    "resnet18": (0.89, 0.58),
    "densenet121": (0.92, 0.56),
}


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""

    def check_bases() -> None:
        check_sweep("bases", config.bases)
        for basis in config.bases:
            check_choice("bases", basis, BASES)

    image_networks.validate(config, OWN_FIELDS, check_bases)


def make_networks(config: ConfigDict, nads: dict[str, np.ndarray]) -> list[ImageNetwork]:
    """Every network of a config."""
    return [
        ImageNetwork(
            {"architecture": architecture, "basis": basis, "seed": seed},
            arrays=(),
            data=basis,
            key="original" if basis == "original" else folder.digest(nads[architecture]),
        )
        for architecture in config.architectures
        for basis in config.bases
        for seed in config.seeds
    ]


def flip_data(data: ImageData, nads: np.ndarray) -> ImageData:
    """The same task with train and test images, in [0, 1], in the flipped basis."""
    images = (
        np.asarray(flip(images / np.float32(255), nads))
        for images in (data.train_images, data.test_images)
    )
    return data._replace(**dict(zip(("train_images", "test_images"), images, strict=True)))


def _write_examples(
    config: ConfigDict, workdir: Path, data: ImageData, nads: dict[str, np.ndarray]
) -> None:
    """Six images, of different classes, as they are and in the flipped basis of the first
    architecture.
    """
    chosen = np.unique(data.train_labels, return_index=True)[1][:6]
    images = data.train_images[chosen] / np.float32(255)
    flipped = np.asarray(flip(images, nads[config.architectures[0]]))
    store.write_npz(workdir / "examples.npz", {"original": images, "flipped": flipped})


def _accuracies(rows: list[results.Row], split: str) -> dict[str, dict[str, list[float]]]:
    """Accuracies over seeds by architecture and basis, in the order of the table."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row["architecture"], {}).setdefault(row["basis"], []).append(
            row[f"{split}_accuracy"]
        )
    return found


def _report(rows: list[results.Row]) -> None:
    train = _accuracies(rows, "train")
    for architecture, bases in _accuracies(rows, "test").items():
        print(f"{architecture}: accuracy (mean ± standard error over seeds)")
        for basis, accuracies in bases.items():
            published = dict(zip(BASES, PUBLISHED.get(architecture, ()), strict=False)).get(basis)
            print(
                f"  {basis}: test {image_networks.format_accuracy(accuracies)}"
                + (f" (published {published:.0%})" if published else "")
                + f", training {image_networks.format_accuracy(train[architecture][basis])}"
            )
    image_networks.report_diverged(rows)


def make_plan(config: ConfigDict, workdir: Path) -> Plan:
    """The networks of a config as units; all files it names are read."""
    validate(config)
    nads = {
        name: np.asarray(complete_basis(rows))
        for name, rows in image_networks.read_nads(config).items()
    }
    networks = make_networks(config, nads)
    data = image_networks.read_images(config)

    def make_data(architecture: str, basis: str) -> ImageData:
        return data if basis == "original" else flip_data(data, nads[architecture])

    def report(rows: list[results.Row]) -> None:
        _write_examples(config, workdir, data, nads)
        _report(rows)

    return image_networks.make_plan(
        config, workdir, data, networks, OWN_FIELDS, COLUMNS, make_data, report
    )


def run(config: ConfigDict, workdir: Path, shard: Shard = runner.ALONE) -> bool:
    """Trains what is missing, writes `results.csv` when all is there, and prints a summary."""
    return runner.run(make_plan(config, workdir), workdir, shard)


def draw(config: ConfigDict, workdir: Path) -> list[Path]:
    """Draws `results.csv` and `examples.npz` of `workdir`."""
    missing = folder.check_command(workdir, image_networks.command(config, OWN_FIELDS))
    rows = results.read_results(workdir / "results.csv", COLUMNS)
    bars = {
        architecture: {basis: results.mean_and_error(values) for basis, values in bases.items()}
        for architecture, bases in _accuracies(rows, "test").items()
    }
    shown = store.read_npz(workdir / "examples.npz", BASES)
    title = f"CIFAR-10 in the flipped basis, {results.count_seeds(rows)}{missing}"
    flipped = (
        f"In the flipped basis of {config.architectures[0]} (each image scaled to its own range)"
    )
    published = {name: dict(zip(BASES, values, strict=True)) for name, values in PUBLISHED.items()}
    figures = {
        "flip_bars.png": plotting.plot_bars(bars, BASES, published, title),
        "examples.png": plotting.plot_images(shown, flipped),
    }
    for name, figure in figures.items():
        store.save_figure(workdir / name, figure)
    return [workdir / name for name in figures]
