"""Robust training: networks trained on D(u_i) under attacks of several radii, u_i the NADs of their
architecture: does it change which directions are learned?

Networks of a seed and an index start alike and see the same samples, whatever attacks them.

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
from experiments.run.config import Fields, check_all, check_each, check_seeds, check_sweeps
from experiments.run.costs import Setup
from experiments.run.folder import Folder
from experiments.run.plan import Arrays, Member, Study
from nad_jax import accuracy_plots, observers
from nad_jax.attacks import NORMS, adversarial
from nad_jax.errors import InputError, check_image_shape, check_integer, check_number
from nad_jax.estimation import estimate_nads
from nad_jax.subspaces import rank_correlation
from nad_jax.tables import list_metrics
from nad_jax.task import Task
from nad_jax.tasks import separable
from nad_jax.tasks.separable import TrainMetrics, check_num_samples
from nad_jax.training import make_members

METRICS = list_metrics(TrainMetrics)
ROBUST = tuple(f"robust_{norm}" for norm in NORMS)
TILT = ("deviation_angle", "adversarial_strength")  # what follows from gradient_cosine
COLUMNS = ("norm", "radius", "seed", "index", *METRICS, *ROBUST, *TILT, *results.PROVENANCE)
FIELDS = Fields("robust_training", how=trained.TRAINED_HOW, grows=("attacks", "seeds", "indices"))


def parse_attack(field: str, text: Any) -> tuple[str, float]:
    """The norm and the radius of an attack, the value of `field`: ("none", 0.0) of "none", ("l2",
    0.5) of "l2:0.5".
    """
    norm, _, radius = str(text).partition(":")
    if text == "none":
        return "none", 0.0
    try:
        if norm in NORMS:
            return norm, check_number(field, float(radius), 0.0)
    except ValueError:  # no number, or none of at least 0
        pass
    raise InputError(f"{field}: are none, l2:RADIUS or linf:RADIUS, got {text!r}")


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
        lambda: [parse_attack("attacks", text) for text in config.attacks],
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
    """The NADs of a config, unit rows [D, D]."""
    model = read_model(config, num_logits=1)
    return estimate_nads(model, config.num_networks, derivative="input_gradient").directions


def make_networks(config: ConfigDict) -> list[Member]:
    """Every network of a config, in the order of the table."""
    directions, networks = find_directions(config), []
    scales = {"epsilon": config.epsilon, "sigma": config.sigma}
    for text in config.attacks:
        norm, radius = parse_attack("attacks", text)
        for seed in config.seeds:
            for index in config.indices:
                place = {"norm": norm, "radius": radius, "seed": seed, "index": index}
                arrays = {"direction": directions[index], **scales}
                arrays |= {} if norm == "none" else {"radius": radius}
                name = json.dumps(place, sort_keys=True)
                trainee = trained.Trainee(place, arrays)
                networks.append(Member(name, (norm,), trainee, group=seed))
    return networks


def make_task(config: ConfigDict, norm: str) -> Task:
    """D(v), under attacks of a norm or none."""
    return separable() if norm == "none" else adversarial(separable(), norm, config.steps)


def make_setup(config: ConfigDict, norm: str) -> Setup:
    """How networks are trained under attacks of a norm or none."""
    samples = config.num_train, config.num_test
    recipe = trained.read_recipe(config, "optimizer", config.optimizer, *samples)
    return Setup(read_model(config, num_logits=2), make_task(config, norm), *recipe)


def make_measure(config: ConfigDict) -> trained.More:
    """The accuracies of trained networks under the attacks that all of them are tested under."""
    model, task, recipe, _ = make_setup(config, "none")
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
        arrays["direction"] = arrays["direction"][None]
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
    setup_of = functools.cache(partial(make_setup, config))

    def setup(member: Member) -> Setup:
        return setup_of(*member.program)

    how = FIELDS.identity(config), make_networks(config), METRICS, setup
    return trained.make_study(config, *how, partial(_collect, config), more=make_measure(config))


def add_tilt(row: results.Row) -> results.Row:
    """The row with the deviation angle, in degrees, and the adversarial strength of the mean input
    gradient, as if the network were linear.
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
        for name in ("test_accuracy", *ROBUST, "gradient_cosine", *TILT):
            print(f"  {name}: {results.say_mean(results.means_by_seed(group, name), '.3f')}")
        values = results.values_by(group, "index")
        means = (f"{index}: {np.mean(one):.1%}" for index, one in sorted(values.items()))
        print(f"  test_accuracy by index: {', '.join(means)}")
        if "no attack" in groups and len(config.indices) > 1:
            mean, error = correlate(groups["no attack"], group)
            print(f"  rank correlation with no attack: {mean:.2f} ± {error:.2f}")


def group_attacks(rows: results.Rows) -> dict[str, results.Rows]:
    """The rows of each attack, by its name."""
    names = {"none": "no attack", "l2": "L2, {:g}", "linf": "L∞, {:g}"}
    return results.group(rows, lambda row: names[row["norm"]].format(row["radius"]))


def correlate(plain: results.Rows, attacked: results.Rows) -> tuple[float, float]:
    """Spearman's correlation over indices of the accuracies without and with an attack, of networks
    of the same seed: mean over seeds and its standard error; nan for a seed where all are equal.
    """
    before, after = (
        {(row["seed"], row["index"]): row["test_accuracy"] for row in rows}
        for rows in (plain, attacked)
    )
    common = sorted({*before} & {*after})
    found = []
    for seed in dict.fromkeys(seed for seed, _ in common):
        places = [place for place in common if place[0] == seed]
        lists = [np.array([found[place] for place in places]) for found in (before, after)]
        constant = any(len({*values.tolist()}) == 1 for values in lists)
        found.append(np.nan if constant else float(rank_correlation(*lists)))
    return results.mean_and_error(found)


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws `results.csv` of `workdir`."""
    validate(config)
    rows, missing = results.read_table(workdir, COLUMNS, FIELDS.command(config))
    curves = results.curves(group_attacks(rows))
    title = f"Trained under attacks, {config.architecture}, {results.count_seeds(rows)}{missing}"
    figure = accuracy_plots.plot_accuracy_by_index(curves, None, title)
    return results.save_figures(workdir, {"accuracy_by_index": figure}, formats)
