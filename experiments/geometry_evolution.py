"""Geometry evolution: how the geometry of an ensemble turns while it is trained on CIFAR-10 in gray,
animals against the rest, step by step of the full batch (GIH).

Beside the cosine with the second moment S of the images stands that with G S G, G the geometry of
untrained networks, which theory has training start along; the velocity; accuracy and how far the
weights have moved. Every ensemble is one unit.

Writes into the run folder: `units/*.npz` (what was measured of each ensemble), `results.csv` (a row
for each ensemble and step) and a figure of the curves.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments import results, trained
from experiments.image_networks import read_images
from experiments.networks import read_model
from experiments.run import costs
from experiments.run.config import (
    Fields,
    check_aligned,
    check_all,
    check_each,
    check_integers,
    check_seeds,
    check_sweeps,
)
from experiments.run.folder import Folder, digest
from experiments.run.plan import Arrays, Cost, Member, Program, RunAgain, Shapes, Study, Work
from experiments.run.progress import read_seconds
from nad_jax import cifar, evolution_plots, points, tasks
from nad_jax.architectures import OPTIONS
from nad_jax.chunks import choose_chunks
from nad_jax.cifar import ImageData
from nad_jax.ensemble import Execution, make_key, named_key
from nad_jax.errors import InputError, check_choice, check_number
from nad_jax.estimation import estimate_nads
from nad_jax.evolution import Evolution, geometry_evolution
from nad_jax.models import Model
from nad_jax.recipe import Recipe

IMAGE_SHAPE = (32, 32, 1)
ANIMALS = (2, 3, 4, 5, 6, 7)  # bird, cat, deer, dog, frog, horse
LABELS = ("true", "random")
POINTS = ("gaussian", "images")
EACH = ("num_runs", "num_steps", "learning_rates", "num_networks")  # a value for each architecture
MEASURES = ("cosine_data", "cosine_predicted", "velocity", "accuracy", "distance")
COLUMNS = (
    "architecture", "labels", "epoch", *(f"{n}{end}" for n in MEASURES for end in ("", "_sem")),
    "test_accuracy", *results.PROVENANCE,
)  # fmt: skip
FIELDS = Fields(
    "geometry_evolution",
    how=("data_dir", "num_devices", "mapping", "chunk_size"),
    grows=("architectures", *EACH, "labels"),
)


class Ensemble(NamedTuple):
    """An architecture whose networks are trained together, and on which labels."""

    architecture: str
    num_runs: int
    num_steps: int
    learning_rate: float
    num_networks: int
    labels: str

    @property
    def name(self) -> str:
        """Of its file."""
        sizes = f"{self.num_runs} runs,{self.num_steps} steps,{self.num_networks} untrained"
        return f"{self.architecture},{self.labels},rate {self.learning_rate!r},{sizes}"


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)
    check_sweeps(config, ("architectures", "labels"))
    check_aligned(config, "architectures", EACH)

    def check_least(field: str, least: int) -> None:
        for value in config[field]:
            check_integers(ConfigDict({field: value}), **{field: least})

    def check_data() -> None:
        if not config.data_dir:
            raise cifar.missing_data(config.data_dir)

    check_all(
        lambda: check_each(config, "labels", check_choice, LABELS),
        lambda: check_choice("points", config.points, POINTS),
        lambda: check_least("num_runs", 3),  # the fewest that have an error
        lambda: check_least("num_steps", 1),
        lambda: check_least("num_networks", 2),
        lambda: check_each(config, "learning_rates", check_number, 0.0),
        lambda: check_integers(config, num_per_class=2, num_points=2),
        lambda: check_number("point_scale", config.point_scale, 0.0, exclusive=True),
        lambda: check_seeds("seed", config.seed),
        lambda: choose_chunks(_execution(config)),
        *(partial(create_network, config, name) for name in config.architectures),
        lambda: _read_recipe(config, list_ensembles(config)[0]),
        check_data,
    )


def _execution(config: ConfigDict) -> Execution:
    return Execution(config.mapping, config.chunk_size, config.num_devices)


def create_network(config: ConfigDict, architecture: str) -> Model:
    """The model of an architecture, of two logits."""
    unset = {"pooling": "default", "width": 0, **OPTIONS}
    fields = {**unset, "num_logits": 2, "image_shape": IMAGE_SHAPE}
    return read_model(config, **fields, architecture=architecture)


def list_ensembles(config: ConfigDict) -> list[Ensemble]:
    """Every ensemble of a config, in the order of the table."""
    axes = zip(config.architectures, *(config[field] for field in EACH), strict=True)
    return [Ensemble(*values, labels) for values in axes for labels in config.labels]


def _read_recipe(config: ConfigDict, one: Ensemble) -> Recipe:
    """Steps of the full batch; `num_test` gives way to the number of images that the task has."""
    count = 2 * config.num_per_class
    chosen = {"batch_size": count, "num_epochs": one.num_steps, "learning_rate": one.learning_rate}
    one_config = ConfigDict({**config, **chosen, "loss_threshold": 0.01, "loss_window": 1})
    trained.check_recipe(one_config, "optimizer", config.optimizer, count, count)
    return trained.read_recipe(one_config, "optimizer", config.optimizer, count, count)[0]


def read_gray(config: ConfigDict) -> ImageData:
    """The first images of either class in gray, the mean over channels, of mean 0 and standard
    deviation 1 over the training images; label 1 is an animal.

    The test has as many of either class, or all of a class that has fewer.

    Raises:
      InputError: where a class has fewer training images than `num_per_class`, or no test image.
    """
    data = read_images(ConfigDict({"data_dir": config.data_dir, "num_train": 0, "num_test": 0}))
    parts = []
    for split in ("train", "test"):
        labels = np.isin(getattr(data, f"{split}_labels"), ANIMALS).astype(np.int32)
        places = [np.flatnonzero(labels == one)[: config.num_per_class] for one in (0, 1)]
        fewest = min(map(len, places))
        if split == "test" and not fewest:
            raise InputError(f"data_dir: has no test image of a class, got {config.data_dir}")
        # CIFAR-10 has fewer test images than the published protocol has training images.
        if split == "train" and fewest < config.num_per_class:
            raise InputError(
                f"num_per_class: must be at most {fewest}, the training images of a class in "
                f"{config.data_dir}, got {config.num_per_class}"
            )
        chosen = np.concatenate(places)
        images = getattr(data, f"{split}_images")[chosen].mean(-1, keepdims=True) / 255
        parts += [images.astype(np.float32), labels[chosen]]
    mean, std = parts[0].mean(), parts[0].std()
    return ImageData((parts[0] - mean) / std, parts[1], (parts[2] - mean) / std, parts[3])


def _relabel(config: ConfigDict, data: ImageData, labels: str) -> ImageData:
    """The images with their own labels, or the same labels in a random order."""
    if labels == "true":
        return data
    rng = np.random.default_rng((config.seed, 1))  # another stream than that of the points
    return data._replace(train_labels=rng.permutation(data.train_labels))


def choose_points(config: ConfigDict, data: ImageData) -> np.ndarray:
    """Where gradients are taken, [P, 32, 32, 1]: Gaussian noise, or images of both classes."""
    if config.points == "images":
        chosen = np.linspace(0, len(data.train_images) - 1, config.num_points).astype(int)
        return data.train_images[chosen]
    rng = np.random.default_rng(config.seed)
    noise = rng.normal(size=(config.num_points, *IMAGE_SHAPE))
    return (config.point_scale * noise).astype(np.float32)


def find_references(
    config: ConfigDict, one: Ensemble, data: ImageData, at: np.ndarray
) -> dict[str, np.ndarray]:
    """What geometries are compared with: S of the images, and G S G, G that of untrained networks."""
    flat = data.train_images.reshape(len(data.train_images), -1)
    second_moment = flat.T @ flat / len(flat)
    # Other networks than those that are trained.
    key = named_key(make_key(config.seed), "untrained")
    nads = estimate_nads(
        create_network(config, one.architecture),
        one.num_networks,
        key,
        points=points.images(at, per_network=min(8, len(at))),
        derivative="input_gradient",
        readout="sampled",
        logit=0,
        mapping=config.mapping,
        num_devices=config.num_devices,
    )
    geometry = (nads.directions.T * nads.eigenvalues) @ nads.directions
    return {"data": second_moment, "predicted": geometry @ second_moment @ geometry}


def evolve(config: ConfigDict, one: Ensemble, data: ImageData, **how: Any) -> Evolution:
    """The evolution of an ensemble."""
    at = choose_points(config, data)
    execution = _execution(config)
    return geometry_evolution(
        create_network(config, one.architecture),
        tasks.images(_relabel(config, data, one.labels)),
        find_references(config, one, data, at),
        at,
        config.seed + np.arange(one.num_runs),
        one.learning_rate,
        _read_recipe(config, one),
        mapping=execution.mapping,
        chunk_size=execution.chunk_size,
        num_devices=execution.num_devices,
        **how,
    )


def _pack(found: Evolution) -> Arrays:
    """The evolution as plain arrays."""
    arrays = found._asdict()
    alignments = arrays.pop("alignments")
    return {**arrays, **{f"alignment_{name}": alignments[name] for name in ("data", "predicted")}}


def _unpack(arrays: Arrays) -> Evolution:
    """The inverse of `_pack`."""
    alignments = {name: arrays[f"alignment_{name}"] for name in ("data", "predicted")}
    plain = {name: arrays[name] for name in Evolution._fields if name != "alignments"}
    return Evolution(alignments, **plain)


def _shapes(member: Member) -> Shapes:
    steps, runs = member.what.num_steps, member.what.num_runs
    each = {"accuracy": (steps + 1, runs), "distance": (steps + 1, runs)}
    each |= {f"alignment_{name}": (steps + 1, runs) for name in ("data", "predicted")}
    pairs = {"products": (steps + 1, runs, runs), "steps": (steps, runs, runs)}
    return {
        **each,
        **pairs,
        "losses": (runs, steps),
        "test_accuracy": (runs,),
        "diverged_at": (runs,),
    }


def make_study(config: ConfigDict) -> Study:
    """The ensembles of a config."""
    validate(config)
    data = read_gray(config)
    members = [
        Member(one.name, (one.architecture, one.labels), one, one.num_runs)
        for one in list_ensembles(config)
    ]

    def make_program(member: Member, chunk_size: int) -> Program:
        smaller = ConfigDict({**config, "chunk_size": chunk_size or config.chunk_size})
        execution = choose_chunks(_execution(smaller))

        def compute(work: Work) -> tuple[Arrays, int]:
            (one,) = (member.what for member in work.members)
            how = {"progress": work.progress, "snapshots": work.snapshots}
            found = evolve(smaller, one, data, **how)
            return _pack(found), int((found.diverged_at >= 0).sum())

        how = {"mapping": execution.mapping, "chunk_size": execution.chunk_size}
        how["model"] = dict(create_network(config, member.what.architecture).description)
        return Program(compute, execution.chunk_size, len(execution.devices), how)

    def setup(member: Member) -> costs.Setup:
        one = member.what
        model = create_network(config, one.architecture)
        return costs.Setup(model, tasks.images(data), _read_recipe(config, one), one.learning_rate)

    def measure_cost(member: Member) -> Cost:
        # Batches of 100 stand for the full one, which takes as long an image.
        whole = setup(member)
        recipe = dataclasses.replace(whole.recipe, batch_size=min(100, whole.recipe.batch_size))
        execution = choose_chunks(_execution(config))
        cost = costs.measure_training(whole._replace(recipe=recipe), {}, execution)
        note = (
            "a third is added for the accuracy of every step; gradients at points are not counted"
        )
        return cost._replace(network_seconds=4 / 3 * cost.network_seconds, note=note)

    identity = {"images": digest(*data), **FIELDS.identity(config)}
    return Study(
        {"": identity},
        members,
        _shapes,
        make_program,
        measure_cost,
        partial(_collect, config),
        weigh=lambda member: costs.weigh(setup(member).model),
    )


def _collect(config: ConfigDict, folder: Folder, num_missing: int) -> None:
    """Writes and prints the table of what is stored."""
    rows = []
    seconds = read_seconds(folder.workdir)
    for member, arrays in folder.stored():
        found, one = _unpack(arrays), member.what
        (origin,) = folder.read_origins([member])
        said = {"architecture": one.architecture, "labels": one.labels}
        said |= {**results.provenance(origin, "this"), "seconds": seconds.get(member.name, "")}
        print(f"{one.architecture}, {one.labels} labels\n{found!r}")
        steps = [{**said, **row} for row in found.to_rows()]
        tested = found.test_accuracy[found.diverged_at < 0]
        steps[-1]["test_accuracy"] = float(tested.mean()) if len(tested) else float("nan")
        rows += steps
    if not rows:
        raise RunAgain(f"{folder.workdir}: no ensemble is stored yet")
    results.write_table(folder.workdir, rows, COLUMNS, FIELDS.command(config), num_missing)


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws `results.csv` of `workdir`."""
    validate(config)
    rows, missing = results.read_table(workdir, COLUMNS, FIELDS.command(config))

    def name(row: results.Row) -> str:
        return row["architecture"] + (", random labels" if row["labels"] == "random" else "")

    curves = {
        label: {
            column: np.array([row[column] if row[column] != "" else np.nan for row in group], float)
            for column in ("epoch", *(f"{n}{end}" for n in MEASURES for end in ("", "_sem")))
        }
        for label, group in results.group(rows, name).items()
    }
    title = (
        f"Geometry during training on binary CIFAR-10, {2 * config.num_per_class} images{missing}"
    )
    figure = evolution_plots.plot_evolution(curves, title)
    return results.save_figures(workdir, {"evolution": figure}, formats)
