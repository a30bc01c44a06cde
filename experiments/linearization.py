"""Linearization: a network and its first-order Taylor model in the weights, both trained on D(u_i)
from the same start, u_i the directions that the kernel of this start prefers; and regression with
this kernel.

The network of a seed starts with the same weights for every direction and kind. Its directions are
the right singular vectors of A = ∂²f/∂θ∂x of that start (see `mixed_directions`), so the index i is
the order in which linearized training should learn them.

Writes into the run folder: `units/*.npz` (finished networks), `results.csv` (one row per network,
those of the command first) and a figure of accuracy by index.
"""

import functools
import json
import operator
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import results, trained
from experiments.networks import read_model
from experiments.ranked import by_index
from experiments.run import costs
from experiments.run.config import Fields, check_all, check_each, check_seeds, check_sweeps
from experiments.run.folder import Folder
from experiments.run.plan import Arrays, Cost, Member, Program, Shapes, Study, Work
from nad_jax import accuracy_plots, linearization
from nad_jax.ensemble import keys_of_seeds, make_key, named_key
from nad_jax.errors import (
    InputError,
    check_choice,
    check_image_shape,
    check_integer,
    check_number,
)
from nad_jax.linearization import MixedDirections, linearize, with_two_logits
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.tables import list_metrics
from nad_jax.task import FitMetrics, Task
from nad_jax.tasks.separable import check_num_samples, label_samples

KINDS = ("network", "linearization")
KERNEL = ("kernel_accuracy", "alignment")  # what is added to linearizations
CUTOFF = 1e-6  # of regression, with which the row of the documentation was measured
METRICS = list_metrics(FitMetrics)
COLUMNS = ("kind", "seed", "index", *METRICS, *KERNEL, *results.PROVENANCE)
FIELDS = Fields("linearization", how=trained.TRAINED_HOW, grows=("kinds", "seeds", "indices"))


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)
    check_all(
        lambda: check_sweeps(config, ("kinds", "seeds", "indices")),
        lambda: check_image_shape(config.image_shape),
    )
    size = int(np.prod(config.image_shape))
    check_all(
        lambda: read_network(config),
        lambda: check_each(config, "kinds", check_choice, KINDS),
        lambda: check_seeds("seeds", *config.seeds),
        lambda: check_each(config, "indices", check_integer, 0, size - 1),
        lambda: check_integer("num_points", config.num_points, 0),
        lambda: check_number("epsilon", config.epsilon, 0.0),
        lambda: check_number("sigma", config.sigma, 0.0),
        lambda: check_num_samples("num_train", config.num_train),
        lambda: check_num_samples("num_test", config.num_test),
        lambda: check_integer("kernel_samples", config.kernel_samples, 0),
        lambda: trained.check_execution(config),
        lambda: trained.check_recipe(
            config, "optimizer", config.optimizer, config.num_train, config.num_test
        ),
    )
    fewest = min(config.num_train, config.num_test)
    if config.kernel_samples > fewest:
        raise InputError(f"kernel_samples: must be at most {fewest}, got {config.kernel_samples}")


def read_network(config: ConfigDict) -> Model:
    """The network of a config, of one logit."""
    return read_model(config, num_logits=1)


def network_keys(seeds: np.ndarray, arrays: Any = None) -> jax.Array:
    """The keys [N] of networks, which start alike for all directions of a seed."""
    return keys_of_seeds("networks", seeds)


def start(model: Model, seed: int) -> Any:
    """The variables that training on a seed starts from."""
    return model.init(jax.random.split(network_keys(np.array([seed]))[0], 3)[0])


def find_directions(config: ConfigDict, seed: int) -> MixedDirections:
    """Those of the network that training on a seed starts from."""
    model, points = read_network(config), None
    with jax.ensure_compile_time_eval():  # also where a cost is traced
        if config.num_points:
            key = named_key(make_key(seed), "points")
            points = jax.random.normal(key, (config.num_points, *model.input_shape))
        return linearization.mixed_directions(model, start(model, seed), points)


def make_task(config: ConfigDict) -> Task:
    """D(u_i) as a task: networks differ in the `index` i, and share where they start."""

    @functools.cache  # several programs of a command ask
    def find(seed: int) -> np.ndarray:
        return find_directions(config, seed).directions

    return by_index(find, config, make_keys=network_keys)


def make_setup(config: ConfigDict, task: Task, kind: str) -> costs.Setup:
    """How networks of a kind are trained."""
    model = read_network(config)
    model = with_two_logits(linearize(model) if kind == "linearization" else model)
    return costs.Setup(model, task, *_read_recipe(config))


def _read_recipe(config: ConfigDict) -> tuple[Recipe, float]:
    samples = config.num_train, config.num_test
    return trained.read_recipe(config, "optimizer", config.optimizer, *samples)


def make_networks(config: ConfigDict) -> list[Member]:
    """Every network of a config, in the order of the table."""
    networks = []
    for kind in config.kinds:
        for seed in config.seeds:
            for index in config.indices:
                place = {"kind": kind, "seed": seed, "index": index}
                trainee = trained.Trainee(place, {"index": np.int32(index)})
                name = json.dumps(place, sort_keys=True)
                networks.append(Member(name, (kind,), trainee, group=seed))
    return networks


def regress(config: ConfigDict, task: Task, seed: int, index: int) -> dict[str, float]:
    """What regression with the kernel of a seed's network on ±1 learns of D(u_i): its accuracy, and
    the alignment of the targets with the kernel, gᵀΘg / (N tr Θ), 1 at most.

    Directions of the kernel below `CUTOFF` of its largest eigenvalue are left out.
    """
    model, recipe = read_network(config), _read_recipe(config)[0]
    variables = start(model, seed)
    data, numbers = task.data(model, recipe, seed), jnp.arange(config.kernel_samples)
    arrays = {"index": index}
    x, test_x = (task.sample(data, split, numbers, arrays)[0] for split in ("train", "test"))
    targets = 1.0 - 2.0 * np.asarray(label_samples(numbers))  # of either split
    kernel = linearization.empirical_ntk(model, variables, x)
    test_kernel = linearization.empirical_ntk(model, variables, test_x, x)
    at_start = [
        model.apply(variables, one.reshape(-1, *model.input_shape))[:, 0] for one in (x, test_x)
    ]
    predicted = linearization.ntk_regression(kernel, targets, test_kernel, *at_start, CUTOFF)
    alignment = linearization.ntk_alignment(kernel, targets) * len(kernel) / np.trace(kernel)
    accuracy = np.mean(np.sign(predicted) == targets)
    return {"kernel_accuracy": float(accuracy), "alignment": float(alignment)}


def make_study(config: ConfigDict) -> Study:
    """The networks of a config."""
    validate(config)
    task = make_task(config)
    setup_of = functools.cache(partial(make_setup, config, task))  # linearizing traces the network

    def setup(member: Member) -> costs.Setup:
        return setup_of(*member.program)

    how = FIELDS.identity(config), make_networks(config), METRICS, setup
    study = trained.make_study(config, *how, partial(_collect, config))

    def add_kernel(member: Member) -> dict[str, float]:
        place = member.what.coordinates
        if place["kind"] == "network" or not config.kernel_samples:
            return dict.fromkeys(KERNEL, np.nan)
        return regress(config, task, place["seed"], place["index"])

    def shapes(member: Member) -> Shapes:
        return {**study.shapes(member), **dict.fromkeys(KERNEL, ())}

    def make_program(member: Member, chunk_size: int) -> Program:
        program = study.make_program(member, chunk_size)

        def compute(work: Work) -> tuple[Arrays, int]:
            arrays, diverged = program.compute(work)
            found = [add_kernel(member) for member in work.members]
            more = {name: np.array([one[name] for one in found]) for name in KERNEL}
            return {**arrays, **more}, diverged

        return program._replace(compute=compute)

    def measure_cost(member: Member) -> Cost:
        cost = study.measure_cost(member)
        add_kernel(member)  # which compiles its program
        begun = time.monotonic()
        add_kernel(member)
        more = time.monotonic() - begun
        return cost._replace(network_seconds=cost.network_seconds + more)

    return study._replace(shapes=shapes, make_program=make_program, measure_cost=measure_cost)


def _collect(config: ConfigDict, folder: Folder, num_missing: int) -> None:
    """Writes and prints the table of what is stored."""
    rows = trained.list_rows(folder, COLUMNS)
    command = FIELDS.command(config)
    rows = results.write_table(folder.workdir, rows, COLUMNS, command, num_missing)
    for kind, group in _group(rows).items():
        print(f"{kind}: {len(group)} networks{''.join(_diverged(group))}")
        seeds = {row["seed"] for row in group}
        for name in ("test_accuracy", "kernel_accuracy", "alignment"):
            values = results.values_by(
                [row for row in group if not np.isnan(row[name])], "index", name
            )
            if values:
                form = ".2g" if name == "alignment" else ".1%"
                means = (f"{index}: {np.mean(one):{form}}" for index, one in sorted(values.items()))
                print(f"  {name} by index: {', '.join(means)}")
                told = results.say_known(results.correlate(group, name), len(seeds), ".2f")
                print(f"    rank correlation with the index: {told}")


def _diverged(rows: results.Rows) -> list[str]:
    return [f", {text}" for text in results.count_diverged(rows)]


def _group(rows: results.Rows) -> dict[str, results.Rows]:
    return results.group(rows, operator.itemgetter("kind"))


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws `results.csv` of `workdir`."""
    validate(config)
    rows, missing = results.read_table(workdir, COLUMNS, FIELDS.command(config))
    curves = results.curves(_group(rows))
    regressed = [row for row in rows if not np.isnan(row["kernel_accuracy"])]
    if regressed:
        values = results.values_by(regressed, "index", "kernel_accuracy")
        label = f"kernel regression, {config.kernel_samples} samples"
        curves[label] = results.mean_curve(values)
    title = f"Accuracy on $D(u_i)$, {config.architecture}, {results.count_seeds(rows)}{missing}"
    axis = "index $i$ of the directions of the kernel"
    figure = accuracy_plots.plot_accuracy_by_index(curves, None, title, axis)
    return results.save_figures(workdir, {"accuracy_by_index": figure}, formats)
