"""Robust training: networks trained on D(u_i) under attacks of several radii, u_i the NADs of their
architecture: does it change which directions are learned?

Networks of a seed and an index start alike and see the same samples, whatever attacks them.

Writes into the run folder: `units/*.npz` (finished networks), `results.csv` (one row per network,
those of the command first) and a figure of accuracy by index.
"""

import functools
import itertools
import json
import operator
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import results, trained
from experiments.networks import read_model
from experiments.ranked import check_rank
from experiments.run.config import Fields, check_all, check_each, check_seeds, check_sweeps
from experiments.run.costs import Setup
from experiments.run.folder import Folder
from experiments.run.plan import Arrays, Member, Study
from nad_jax import accuracy_plots, observers
from nad_jax.attacks import NORMS, adversarial
from nad_jax.errors import InputError, check_image_shape, check_integer, check_number
from nad_jax.estimation import estimate_nads
from nad_jax.models import Model
from nad_jax.tables import list_metrics
from nad_jax.task import REQUIRED, Task
from nad_jax.task import Arrays as TaskArrays
from nad_jax.tasks import separable
from nad_jax.tasks.separable import TrainMetrics, check_num_samples
from nad_jax.training import make_members

METRICS = list_metrics(TrainMetrics)
ROBUST = tuple(f"robust_{norm}" for norm in NORMS)
TILT = ("deviation_angle", "adversarial_strength")  # what follows from gradient_cosine
COLUMNS = ("norm", "radius", "seed", "index", *METRICS, *ROBUST, *TILT, *results.PROVENANCE)
Find = Callable[[], np.ndarray]
FIELDS = Fields("robust_training", how=trained.TRAINED_HOW, grows=("attacks", "seeds", "indices"))


def parse_attack(field: str, text: Any) -> tuple[str, float]:
    """The norm and the radius of an attack, the value of `field`: ("none", 0.0) of "none", ("l2",
    0.5) of "l2:0.5".
    """
    norm, _, radius = str(text).partition(":")
    if text == "none":
        return "none", 0.0
    try:
        if norm in NORMS and "_" not in radius:  # which is taken inside of numbers
            return norm, check_number(field, float(radius), 0.0)
    except ValueError:  # no number, or none of at least 0
        pass
    raise InputError(f"{field}: are none, l2:RADIUS or linf:RADIUS, got {text!r}")


def check_attacks(texts: tuple[str, ...]) -> None:
    """Raises `InputError` unless they are different attacks, with the digits that the table has."""
    known: dict[tuple[str, str], str] = {}
    for text in texts:
        norm, radius = parse_attack("attacks", text)
        same = known.setdefault((norm, f"{radius:.7g}"), text)
        if same != text:
            raise InputError(f"attacks: must be different ones, got {same!r} and {text!r}")


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)
    check_all(
        lambda: check_sweeps(config, ("attacks", "seeds", "indices")),
        lambda: check_image_shape(config.image_shape),
    )
    samples = config.num_train, config.num_test
    check_all(
        lambda: read_model(config, num_logits=2),
        lambda: check_attacks(config.attacks),
        lambda: check_seeds("seeds", *config.seeds),
        lambda: check_each(
            config, "indices", check_integer, 0, int(np.prod(config.image_shape)) - 1
        ),
        lambda: check_integer("num_networks", config.num_networks, 2),
        lambda: check_integer("steps", config.steps, 1),
        *(
            partial(check_number, name, config[name], 0.0)
            for name in ("test_l2", "test_linf", "epsilon", "sigma")
        ),
        lambda: check_num_samples("num_train", config.num_train),
        lambda: check_num_samples("num_test", config.num_test),
        lambda: trained.check_execution(config),
        lambda: trained.check_recipe(config, "optimizer", config.optimizer, *samples),
    )


def find_directions(config: ConfigDict) -> np.ndarray:
    """The NADs of a config, unit rows [D, D]; `InputError` where an index is beyond their rank."""
    model = read_model(config, num_logits=1)
    with jax.ensure_compile_time_eval():  # also where a cost is traced
        nads = estimate_nads(model, config.num_networks, derivative="input_gradient")
    check_rank(tuple(config.indices), nads)
    return nads.directions


def make_networks(config: ConfigDict) -> list[Member]:
    """Every network of a config, in the order of the table."""
    networks = []
    scales = {"epsilon": config.epsilon, "sigma": config.sigma}
    for text in config.attacks:
        norm, radius = parse_attack("attacks", text)
        for seed in config.seeds:
            for index in config.indices:
                place = {"norm": norm, "radius": radius, "seed": seed, "index": index}
                arrays = {"index": index, **scales}
                arrays |= {} if norm == "none" else {"radius": radius}
                name = json.dumps(place, sort_keys=True)
                trainee = trained.Trainee(place, arrays)
                networks.append(Member(name, (norm,), trainee, group=seed))
    return networks


def make_task(config: ConfigDict, norm: str, find: Find) -> Task:
    """D(u_i), under attacks of a norm or none: networks differ in the `index` i, from which random
    numbers follow as from u_i. find(): the directions, asked for when networks are made.
    """
    task = separable() if norm == "none" else adversarial(separable(), norm, config.steps)
    scales = {name: default for name, default in task.arrays.items() if name != "direction"}

    def prepare(model: Model, arrays: TaskArrays) -> TaskArrays:
        others = {name: array for name, array in arrays.items() if name != "index"}
        return task.prepare(model, {**others, "direction": find()[np.asarray(arrays["index"])]})

    return task._replace(arrays={"index": REQUIRED, **scales}, prepare=prepare)


def make_setup(config: ConfigDict, find: Find, norm: str) -> Setup:
    """How networks are trained under attacks of a norm or none."""
    samples = config.num_train, config.num_test
    recipe = trained.read_recipe(config, "optimizer", config.optimizer, *samples)
    return Setup(read_model(config, num_logits=2), make_task(config, norm, find), *recipe)


def make_measure(config: ConfigDict, find: Find) -> trained.More:
    """The accuracies of trained networks under the attacks that all of them are tested under."""
    model, task, recipe, _ = make_setup(config, find, "none")
    attacks = {
        f"robust_{norm}": observers.robust_accuracy(
            model, task, recipe, norm=norm, steps=config.steps, radius=config[f"test_{norm}"]
        )
        for norm in NORMS
    }
    data_of = functools.cache(partial(task.data, model, recipe))

    @jax.jit
    def attack(variables: Any, data: Any, member: Any) -> dict[str, jax.Array]:
        return {name: observer(variables, data, member) for name, observer in attacks.items()}

    def measure(member: Member, variables: Any) -> Arrays:
        arrays, seed = dict(member.what.arrays), member.what.coordinates["seed"]
        arrays.pop("radius", None)
        arrays["index"] = np.array([arrays["index"]])
        members = make_members(model, task, arrays, 0.0, seed)[0]
        one = jax.tree.map(operator.itemgetter(0), members)
        variables = jax.tree.map(jnp.asarray, variables)
        return {name: np.asarray(v) for name, v in attack(variables, data_of(seed), one).items()}

    def measure_seconds(member: Member) -> float:
        variables = model.init(jax.random.key(0))
        measure(member, variables)  # which compiles
        begun = time.monotonic()
        measure(member, variables)
        return time.monotonic() - begun

    return trained.More(dict.fromkeys(ROBUST, ()), measure, measure_seconds)


def make_study(config: ConfigDict) -> Study:
    """The networks of a config."""
    validate(config)
    find = functools.cache(partial(find_directions, config))
    setup_of = functools.cache(partial(make_setup, config, find))

    def setup(member: Member) -> Setup:
        return setup_of(*member.program)

    how = FIELDS.identity(config), make_networks(config), METRICS, setup
    return trained.make_study(
        config, *how, partial(_collect, config), more=make_measure(config, find)
    )


def add_tilt(row: results.Row) -> results.Row:
    """The row with the deviation angle, in degrees, and the adversarial strength of the mean input
    gradient, as if the network were linear: infinite where that is zero.
    """
    cosine = min(float(row["gradient_cosine"]), 1.0)
    strength = 1 / cosine if cosine else np.inf
    return {**row, **dict(zip(TILT, (np.degrees(np.arccos(cosine)), strength), strict=True))}


def _collect(config: ConfigDict, folder: Folder, num_missing: int) -> None:
    """Writes and prints the table of what is stored."""
    rows = [add_tilt(row) for row in trained.list_rows(folder, COLUMNS)]
    command = FIELDS.command(config)
    rows = results.write_table(folder.workdir, rows, COLUMNS, command, num_missing)
    groups = group_attacks(rows)
    for label, group in groups.items():
        said = "".join(f", {text}" for text in results.count_diverged(group))
        print(f"{label}: {len(group)} networks{said}")
        for name in ("test_accuracy", *ROBUST, "gradient_cosine", "deviation_angle"):
            print(f"  {name}: {results.say_mean(results.means_by_seed(group, name), '.3f')}")
        num_seeds = len({row["seed"] for row in group})
        told = results.say_known(list_strengths(group), num_seeds, ".3f")
        print(f"  adversarial_strength of the mean cosine: {told}")
        values = results.values_by(group, "index")
        means = (f"{index}: {np.mean(one):.1%}" for index, one in sorted(values.items()))
        print(f"  test_accuracy by index: {', '.join(means)}")
        if "no attack" in groups and len(config.indices) > 1:
            told = results.say_known(correlate(groups["no attack"], group), num_seeds, ".2f")
            print(f"  rank correlation with no attack: {told}")


def list_strengths(rows: results.Rows) -> list[float]:
    """The adversarial strength 1/cos of each seed, cos the mean over its networks; none of a seed of
    dead networks alone. (Over networks, 1/cos itself has no mean where cos has a density at 0.)
    """
    cosines = results.means_by_seed(rows, "gradient_cosine")
    return [1 / cosine for cosine in cosines if cosine > 0]


def group_attacks(rows: results.Rows) -> dict[str, results.Rows]:
    """The rows of each attack, by its name."""
    names = {"none": "no attack", "l2": "L2, {:.7g}", "linf": "L∞, {:.7g}"}
    return results.group(rows, lambda row: names[row["norm"]].format(row["radius"]))


def correlate(plain: results.Rows, attacked: results.Rows) -> list[float]:
    """Spearman's correlation over indices of the accuracies without and with an attack, of networks
    of the same seed, of each seed of which it is known.
    """
    before, after = (
        {(row["seed"], row["index"]): row["test_accuracy"] for row in rows}
        for rows in (plain, attacked)
    )
    common = sorted({*before} & {*after})
    by_seed = (list(places) for _, places in itertools.groupby(common, operator.itemgetter(0)))
    return results.correlate_seeds(
        ([before[place] for place in places], [after[place] for place in places])
        for places in by_seed
    )


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws `results.csv` of `workdir`."""
    validate(config)
    rows, missing = results.read_table(workdir, COLUMNS, FIELDS.command(config))
    curves = results.curves(group_attacks(rows))
    title = f"Trained under attacks, {config.architecture}, {results.count_seeds(rows)}{missing}"
    figure = accuracy_plots.plot_accuracy_by_index(curves, None, title)
    return results.save_figures(workdir, {"accuracy_by_index": figure}, formats)
