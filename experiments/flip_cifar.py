"""CIFAR-10 in the flipped basis: how much worse is a network where the coefficients of the NADs are
reversed?

Writes into the run folder: `units/*.npz` (finished networks), `results.csv` (one row per network),
`examples.npz` (some images, for the figure) and figures. Source: NAD, Section 5.2; see
`interventions.flip`.
"""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import image_networks, results
from experiments.image_networks import METRICS, make_network
from experiments.run.config import check_each
from experiments.run.folder import digest
from experiments.run.plan import Arrays, Member, Study
from nad_jax import plotting, store
from nad_jax.cifar import ImageData
from nad_jax.directions import complete_basis
from nad_jax.errors import check_choice
from nad_jax.interventions import flip

FIELDS = image_networks.make_fields("flip_cifar", "bases")
COLUMNS = ("architecture", "basis", "seed", *METRICS, *results.PROVENANCE)
BASES = ("original", "flipped")
# Test accuracies in the two bases (NAD, Section 5.2).
PUBLISHED = {
    "lenet": {"original": 0.69, "flipped": 0.48},
    "vgg11": {"original": 0.87, "flipped": 0.53},
    "resnet18": {"original": 0.89, "flipped": 0.58},
    "densenet121": {"original": 0.92, "flipped": 0.56},
}


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    axes = ("bases",)
    own_check = partial(check_each, config, "bases", check_choice, BASES)
    image_networks.validate(config, FIELDS, axes, own_check)


def make_networks(config: ConfigDict, nads: Arrays) -> list[Member]:
    """Every network of a config."""
    networks = []
    for axes in itertools.product(config.architectures, config.bases, config.seeds):
        coordinates = dict(zip(COLUMNS, axes, strict=False))
        architecture, basis, _ = axes
        key = "original" if basis == "original" else digest(nads[architecture])
        networks.append(make_network(coordinates, key, basis))
    return networks


def flip_data(data: ImageData, nads: np.ndarray) -> ImageData:
    """The same task with train and test images, in [0, 1], in the flipped basis."""
    flipped = {}
    for name in ("train_images", "test_images"):
        flipped[name] = np.asarray(flip(getattr(data, name) / np.float32(255), nads))
    return data._replace(**flipped)


def _make_examples(config: ConfigDict, data: ImageData, nads: Arrays) -> Arrays:
    """Six images, of different classes, as they are and in the flipped basis of the first
    architecture.
    """
    images, _ = image_networks.choose_examples(data, 6)
    flipped = np.asarray(flip(images, nads[config.architectures[0]]))
    return {"original": images, "flipped": flipped}


def _accuracies(rows: results.Rows, split: str) -> dict[str, dict[str, list[float]]]:
    """Accuracies over seeds by architecture and basis, in the order of the table."""
    groups = results.group(rows, lambda row: row["architecture"])
    metric = f"{split}_accuracy"
    return {name: results.values_by(chosen, "basis", metric) for name, chosen in groups.items()}


def _report(rows: results.Rows) -> None:
    train = _accuracies(rows, "train")
    for architecture, bases in _accuracies(rows, "test").items():
        print(f"{architecture}: accuracy (mean ± standard error over seeds)")
        for basis, accuracies in bases.items():
            published = PUBLISHED.get(architecture, {}).get(basis)
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

    show = partial(_make_examples, config, data, nads)
    how = (make_data, show, _report)
    return image_networks.make_study(config, FIELDS, data, networks, *how)


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
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
    figures = {
        "flip_bars": plotting.plot_bars(bars, BASES, PUBLISHED, title),
        "examples": plotting.plot_images(shown, flipped),
    }
    return results.save_figures(workdir, figures, formats)
