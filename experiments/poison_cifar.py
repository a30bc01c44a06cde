"""Poisoned CIFAR-10: does a network take up a carrier hidden along a NAD, and forget the images?

Writes into the run folder: `units/*.npz` (finished networks), `results.csv` (one row per network),
`examples.npz` (some images, for the figure) and figures. Source: NAD, Section 5.1; see
`interventions.poison`.
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
from nad_jax.errors import InputError, check_choice, check_integer, check_number
from nad_jax.interventions import poison, published_carriers

FIELDS = image_networks.make_fields("poison_cifar", "nad_indices", "epsilons", "clean")
# Test accuracies of ResNet18 by NAD index, first and last, lowest and highest (NAD, Section 5.1).
PUBLISHED = ((0, 0, 0.18, 0.18), (10, 60, 0.33, 0.47), (400, 1022, 0.76, 0.86))
COLUMNS = ("architecture", "nad_index", "epsilon", "seed", *METRICS)


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""

    def check_indices() -> None:
        check_sweep("nad_indices", config.nad_indices)
        check_each(config, "nad_indices", check_integer, 0)

    def check_epsilons() -> None:
        check_sweep("epsilons", config.epsilons)
        check_each(config, "epsilons", check_number, 0.0, True)

    def check_clean() -> None:
        check_choice("clean", config.clean, (True, False))

    image_networks.validate(config, FIELDS, check_indices, check_epsilons, check_clean)


def make_networks(config: ConfigDict, nads: dict[str, np.ndarray]) -> list[Member]:
    """Every network of a config, one seed after the other, the clean one first."""
    networks = []
    for architecture in config.architectures:
        kinds = []  # index, amplitude, key, carriers and coefficients
        if config.clean:  # carriers that are zero change nothing
            nothing = np.zeros((10, 3072), np.float32), np.zeros(10, np.float32)
            kinds.append(("", "", "clean", nothing))
        for index in config.nad_indices:
            try:
                carriers, signs = published_carriers(
                    nads[architecture], index, image_networks.IMAGE_SHAPE
                )
            except InputError as error:
                raise InputError(str(error).replace("index:", "nad_indices:", 1)) from error
            for epsilon in map(float, config.epsilons):
                arrays = carriers, np.float32(epsilon) * signs
                kinds.append((index, epsilon, digest(carriers, signs), arrays))
        for seed, (index, epsilon, key, arrays) in itertools.product(config.seeds, kinds):
            values = (architecture, index, epsilon, seed)
            coordinates = dict(zip(COLUMNS[: len(values)], values, strict=True))
            networks.append(make_network(coordinates, key, "poisoned", arrays))
    return networks


def _make_examples(config: ConfigDict, data: ImageData, nads: dict[str, np.ndarray]) -> Arrays:
    """Four images, of different classes, as they are and poisoned along up to four of the NADs, and
    these NADs.
    """
    architecture, epsilon = config.architectures[0], config.epsilons[0]
    chosen = np.unique(data.train_labels, return_index=True)[1][:4]
    images, labels = data.train_images[chosen] / np.float32(255), data.train_labels[chosen]
    places = np.unique(np.linspace(0, len(config.nad_indices) - 1, 4).round().astype(int))
    indices = sorted(config.nad_indices[place] for place in places)
    poisoned = []
    for index in indices:
        carriers, signs = published_carriers(nads[architecture], index, image_networks.IMAGE_SHAPE)
        poisoned.append(np.asarray(poison(images, labels, carriers, np.float32(epsilon) * signs)))
    arrays = {"original": images, "poisoned": np.stack(poisoned), "indices": np.array(indices)}
    carriers = nads[architecture][indices].reshape(-1, *image_networks.IMAGE_SHAPE[:2])
    return {**arrays, "carriers": carriers}


def _curves(rows: list[results.Row]) -> dict[str, dict[int, list[float]]]:
    """Test accuracies by NAD index, for each architecture and, where there are several, each
    amplitude.
    """
    several = len({row["epsilon"] for row in rows if row["nad_index"] != ""}) > 1
    curves: dict[str, dict[int, list[float]]] = {}
    for row in sorted(
        (row for row in rows if row["nad_index"] != ""), key=lambda row: row["nad_index"]
    ):
        label = row["architecture"] + (f", ε = {row['epsilon']:g}" if several else "")
        curves.setdefault(label, {}).setdefault(row["nad_index"], []).append(row["test_accuracy"])
    return curves


def _clean(rows: list[results.Row]) -> dict[str, list[float]]:
    """Test accuracies of the networks trained on clean images, for each architecture."""
    clean: dict[str, list[float]] = {}
    for row in rows:
        if row["nad_index"] == "":
            clean.setdefault(f"{row['architecture']}, clean", []).append(row["test_accuracy"])
    return clean


def _report(rows: list[results.Row]) -> None:
    for label, accuracies in _clean(rows).items():
        print(f"{label}: test accuracy {image_networks.format_accuracy(accuracies)}")
    for label, curve in _curves(rows).items():
        print(f"{label}: test accuracy by NAD index (mean ± standard error over seeds)")
        for index, accuracies in curve.items():
            print(f"  {index:5}  {image_networks.format_accuracy(accuracies)}")
    lowest = min(rows, key=lambda row: row["train_accuracy"])
    place = "clean" if lowest["nad_index"] == "" else f"NAD index {lowest['nad_index']}"
    print(
        f"lowest training accuracy: {lowest['train_accuracy']:.1%} ({lowest['architecture']}, "
        f"{place})"
    )
    image_networks.report_diverged(rows)


def make_study(config: ConfigDict) -> Study:
    """The networks of a config; all files it names are read."""
    validate(config)
    nads = image_networks.read_nads(config)
    networks = make_networks(config, nads)
    data = image_networks.read_images(config)

    def collect(folder: Folder, num_missing: int) -> None:
        store.write_npz(folder.workdir / "examples.npz", _make_examples(config, data, nads))
        rows, command = trained.list_rows(folder), FIELDS.command(config)
        _report(results.write_table(folder.workdir, rows, COLUMNS, command, num_missing))

    def make_data(architecture: str, name: str) -> ImageData:
        return data

    return image_networks.make_study(config, FIELDS, data, networks, make_data, collect, poison)


def draw(config: ConfigDict, workdir: Path) -> list[Path]:
    """Draws `results.csv` and `examples.npz` of `workdir`."""
    rows, missing = results.read_table(workdir, COLUMNS, FIELDS.command(config))
    curves = {}
    for label, curve in _curves(rows).items():
        means, errors = zip(*map(results.mean_and_error, curve.values()), strict=True)
        curves[label] = (np.array(list(curve)), np.array(means), np.array(errors))
    clean = {
        label: results.mean_and_error(accuracies) for label, accuracies in _clean(rows).items()
    }
    examples = store.read_npz(
        workdir / "examples.npz", ("original", "poisoned", "indices", "carriers")
    )
    labels = [f"NAD {index}" for index in examples["indices"]]
    shown = {
        "original": examples["original"],
        **dict(zip(labels, examples["poisoned"].clip(0, 1), strict=True)),
    }
    carriers = dict(zip(labels, examples["carriers"], strict=True))
    title = f"CIFAR-10 poisoned along one NAD, {results.count_seeds(rows)}{missing}"
    poisoned = f"Poisoned along one NAD of {config.architectures[0]}, ε = {config.epsilons[0]:g} (clipped to [0, 1])"
    figures = {
        "poison_curve.png": plotting.plot_poison_curve(curves, clean, PUBLISHED, title),
        "examples.png": plotting.plot_images(shown, poisoned, carriers),
    }
    return results.save_figures(workdir, figures)
