"""Poisoned CIFAR-10: does a network take up a carrier hidden along a NAD, and forget the images?

Writes into the run folder: `units/*.npz` (finished networks), `results.csv` (one row per network),
`examples.npz` (some images, for the figure) and figures. Source: NAD, Section 5.1; see
`interventions.poison`.
"""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import image_networks, results
from experiments.image_networks import IMAGE_SHAPE, METRICS, make_network
from experiments.run.config import check_each
from experiments.run.folder import digest
from experiments.run.plan import Arrays, Member, Study
from nad_jax import plotting, store
from nad_jax.cifar import ImageData
from nad_jax.errors import InputError, check_choice, check_integer, check_number
from nad_jax.interventions import poison, published_carriers

FIELDS = image_networks.make_fields("poison_cifar", "nad_indices", "epsilons", "clean")
# Test accuracies of ResNet18 by NAD index, first and last, lowest and highest (NAD, Section 5.1).
PUBLISHED = ((0, 0, 0.18, 0.18), (10, 60, 0.33, 0.47), (400, 1022, 0.76, 0.86))
COLUMNS = ("architecture", "nad_index", "epsilon", "seed", *METRICS, *results.PROVENANCE)
EXAMPLES = ("original", "poisoned", "indices", "carriers")  # the arrays of `examples.npz`


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    image_networks.validate(
        config,
        FIELDS,
        ("nad_indices", "epsilons"),
        lambda: check_each(config, "nad_indices", check_integer, 0),
        lambda: check_each(config, "epsilons", check_number, 0.0, True),
        lambda: check_choice("clean", config.clean, (True, False)),
    )


def make_networks(config: ConfigDict, nads: Arrays) -> list[Member]:
    """Every network of a config, one seed after the other, the clean one first."""
    networks = []
    for architecture in config.architectures:
        kinds = []  # index, amplitude, key, carriers and coefficients
        if config.clean:  # carriers that are zero change nothing
            nothing = np.zeros((10, 3072), np.float32), np.zeros(10, np.float32)
            kinds.append(("", "", "clean", *nothing))
        for index in config.nad_indices:
            try:
                carriers, signs = published_carriers(nads[architecture], index, IMAGE_SHAPE)
            except InputError as error:
                raise InputError(str(error).replace("index:", "nad_indices:", 1)) from error
            key = digest(carriers, signs)
            for epsilon in map(float, config.epsilons):
                kinds.append((index, epsilon, key, carriers, np.float32(epsilon) * signs))
        for seed, (index, epsilon, key, carriers, signed) in itertools.product(config.seeds, kinds):
            place = dict(zip(COLUMNS, (architecture, index, epsilon, seed), strict=False))
            arrays = {"carriers": carriers, "coefficients": signed}
            networks.append(make_network(place, key, "poisoned", **arrays))
    return networks


def _make_examples(config: ConfigDict, data: ImageData, nads: Arrays) -> Arrays:
    """Four images, of different classes, as they are and poisoned along up to four of the NADs, and
    these NADs.
    """
    architecture, epsilon = config.architectures[0], config.epsilons[0]
    images, labels = image_networks.choose_examples(data, 4)
    places = np.unique(np.linspace(0, len(config.nad_indices) - 1, 4).round().astype(int))
    indices = sorted(config.nad_indices[place] for place in places)
    poisoned = []
    for index in indices:
        carriers, signs = published_carriers(nads[architecture], index, IMAGE_SHAPE)
        poisoned.append(poison(images, labels, carriers, np.float32(epsilon) * signs))
    carriers = nads[architecture][indices].reshape(-1, *IMAGE_SHAPE[:2])
    arrays = (images, np.stack(poisoned), np.array(indices), carriers)
    return dict(zip(EXAMPLES, arrays, strict=True))


def _poisoned(rows: results.Rows) -> dict[str, results.Rows]:
    """The rows of poisoned networks, by index, of each architecture and, where there are several,
    each amplitude.
    """
    rows = sorted((r for r in rows if r["nad_index"] != ""), key=lambda row: row["nad_index"])
    several = len({row["epsilon"] for row in rows}) > 1

    def label(row: results.Row) -> str:
        return row["architecture"] + (f", ε = {row['epsilon']:g}" if several else "")

    return results.group(rows, label)


def _curves(rows: results.Rows) -> dict[str, dict[int, list[float]]]:
    """Test accuracies by NAD index, for each group of `_poisoned`."""
    groups = _poisoned(rows).items()
    return {name: results.values_by(group, "nad_index") for name, group in groups}


def _clean_of_curves(rows: results.Rows) -> dict[str, list[float]]:
    """Test accuracies of the clean networks of the architecture and seeds of each curve that has
    some.
    """
    found = {}
    for name, group in _poisoned(rows).items():
        same = {(row["architecture"], row["seed"]) for row in group}
        clean = [r for r in rows if r["nad_index"] == "" and (r["architecture"], r["seed"]) in same]
        if clean:
            found[name] = [row["test_accuracy"] for row in clean]
    return found


def _clean(rows: results.Rows) -> dict[str, list[float]]:
    """Test accuracies of the networks trained on clean images, for each architecture."""
    clean = results.values_by((row for row in rows if row["nad_index"] == ""), "architecture")
    return {f"{architecture}, clean": values for architecture, values in clean.items()}


def _report(rows: results.Rows) -> None:
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
    show = partial(_make_examples, config, data, nads)
    how = (lambda architecture, name: data, show, _report, poison)
    return image_networks.make_study(config, FIELDS, data, networks, *how)


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws `results.csv` and `examples.npz` of `workdir`."""
    rows, missing = results.read_table(workdir, COLUMNS, FIELDS.command(config))
    curves = {label: results.mean_curve(curve) for label, curve in _curves(rows).items()}
    clean = _clean_of_curves(rows)
    lines = {label: results.mean_and_error(values) for label, values in clean.items()}
    examples = store.read_npz(workdir / "examples.npz", EXAMPLES)
    labels = [f"NAD {index}" for index in examples["indices"]]
    shown = {"original": examples["original"]}
    shown |= zip(labels, examples["poisoned"].clip(0, 1), strict=True)
    carriers = dict(zip(labels, examples["carriers"], strict=True))
    title = f"CIFAR-10 poisoned along one NAD, {results.count_seeds(rows)}{missing}"
    poisoned = f"Poisoned along one NAD of {config.architectures[0]}, ε = {config.epsilons[0]:g} (clipped to [0, 1])"
    figures = {
        "poison_curve": plotting.plot_poison_curve(curves, lines, PUBLISHED, title),
        "examples": plotting.plot_images(shown, poisoned, carriers),
    }
    return results.save_figures(workdir, figures, formats)
