"""CIFAR-10 in the flipped basis: how much worse is a network where the coefficients of the NADs are
reversed?

Writes into the run folder: `units/*.npz` (finished networks), `results.csv` (one row per network),
`examples.npz` (some images, for the figure) and figures. Source: NAD, Section 5.2; see
`interventions.flip`.
"""

import itertools
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import image_networks, results, trained
from experiments.image_networks import METRICS, make_network
from experiments.run.config import check_each, check_sweep
from experiments.run.folder import Folder, digest
from experiments.run.plan import Arrays, Member, Study
from nad_jax import plotting, store
from nad_jax.cifar import ImageData
from nad_jax.directions import complete_basis
from nad_jax.errors import check_choice
from nad_jax.interventions import flip

FIELDS = image_networks.make_fields("flip_cifar", "bases")
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
        check_each(config, "bases", check_choice, BASES)

    image_networks.validate(config, FIELDS, check_bases)


def make_networks(config: ConfigDict, nads: dict[str, np.ndarray]) -> list[Member]:
    """Every network of a config."""
    networks = []
    for axes in itertools.product(config.architectures, config.bases, config.seeds):
        coordinates = dict(zip(COLUMNS[: len(axes)], axes, strict=True))
        architecture, basis, _ = axes
        key = "original" if basis == "original" else digest(nads[architecture])
        networks.append(make_network(coordinates, key, basis))
    return networks


def flip_data(data: ImageData, nads: np.ndarray) -> ImageData:
    """The same task with train and test images, in [0, 1], in the flipped basis."""
    images = (
        np.asarray(flip(images / np.float32(255), nads))
        for images in (data.train_images, data.test_images)
    )
    return data._replace(**dict(zip(("train_images", "test_images"), images, strict=True)))


def _make_examples(config: ConfigDict, data: ImageData, nads: dict[str, np.ndarray]) -> Arrays:
    """Six images, of different classes, as they are and in the flipped basis of the first
    architecture.
    """
    chosen = np.unique(data.train_labels, return_index=True)[1][:6]
    images = data.train_images[chosen] / np.float32(255)
    flipped = np.asarray(flip(images, nads[config.architectures[0]]))
    return {"original": images, "flipped": flipped}


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


def make_study(config: ConfigDict) -> Study:
    """The networks of a config; all files it names are read."""
    validate(config)
    nads = {
        name: np.asarray(complete_basis(rows))
        for name, rows in image_networks.read_nads(config).items()
    }
    networks = make_networks(config, nads)
    data = image_networks.read_images(config)

    def make_data(architecture: str, basis: str) -> ImageData:
        return data if basis == "original" else flip_data(data, nads[architecture])

    def collect(folder: Folder, num_missing: int) -> None:
        store.write_npz(folder.workdir / "examples.npz", _make_examples(config, data, nads))
        rows, command = trained.list_rows(folder), FIELDS.command(config)
        _report(results.write_table(folder.workdir, rows, COLUMNS, command, num_missing))

    return image_networks.make_study(config, FIELDS, data, networks, make_data, collect)


def draw(config: ConfigDict, workdir: Path) -> list[Path]:
    """Draws `results.csv` and `examples.npz` of `workdir`."""
    rows, missing = results.read_table(workdir, COLUMNS, FIELDS.command(config))
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
    return results.save_figures(workdir, figures)
