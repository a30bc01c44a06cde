"""Two features: how much do networks rely on a shortcut rather than on the core feature, compared
with the optimal classifier?

Either along random directions, by the predictivity and the amplification of the shortcut, or at equal
ones along every ordered pair of NADs. Networks of one seed start alike, and share all random numbers.

Writes into the run folder: `units/*.npz` (trained networks), `results.csv` (a row for each network
and epoch) and a figure.
"""

import functools
import itertools
import json
import math
import operator
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import results, trained
from experiments.networks import read_model
from experiments.run.config import (
    Fields,
    check_all,
    check_each,
    check_seeds,
    check_sweep,
    check_sweeps,
)
from experiments.run.costs import Setup
from experiments.run.folder import Folder, digest
from experiments.run.plan import Member, Study
from nad_jax import feature_plots, records
from nad_jax.directions import basis_random, direction_identity
from nad_jax.ensemble import make_key, named_key
from nad_jax.errors import InputError, check_image_shape, check_integer, check_number
from nad_jax.fitting import Observer
from nad_jax.models import Model
from nad_jax.observers import accuracy
from nad_jax.subspaces import rank_correlation
from nad_jax.tables import list_metrics
from nad_jax.task import FitMetrics
from nad_jax.tasks.separable import check_num_samples
from nad_jax.tasks.two_features import (
    check_probes,
    observe_reliance,
    optimal_accuracy,
    optimal_reliance,
    two_features,
)

AXES = ("architectures", "shortcut_predictivities", "amplifications", "seeds")
FIELDS = Fields("two_features", how=trained.TRAINED_HOW, grows=(*AXES, "indices", "nads"))
METRICS = list_metrics(FitMetrics)
PLACE = (
    "architecture", "shortcut_index", "core_index", "shortcut_predictivity", "amplification", "seed",
)  # fmt: skip
COLUMNS = (
    *PLACE, "epoch", "step", "reliance", "shortcut_bias", "test_accuracy", "optimal_accuracy",
    "diverged_at", *results.PROVENANCE,
)  # fmt: skip


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)
    check_all(
        lambda: check_sweeps(config, AXES),
        lambda: config.indices == () or check_sweep("indices", config.indices),
        lambda: check_image_shape(config.image_shape),
    )
    size, samples = math.prod(config.image_shape), (config.num_train, config.num_test)
    check_all(
        *(partial(read_network, config, name) for name in config.architectures),
        *(partial(find_optimum, config, value) for value in config.shortcut_predictivities),
        lambda: check_each(config, "amplifications", check_number, 0.0),
        lambda: check_number("sigma", config.sigma, 0.0),
        lambda: check_seeds("seeds", *config.seeds),
        lambda: check_each(config, "indices", check_integer, 0, size - 1),
        lambda: check_num_samples("num_train", config.num_train),
        lambda: check_num_samples("num_test", config.num_test),
        lambda: check_probes(config.num_probes),
        lambda: trained.check_execution(config),
        lambda: trained.check_recipe(config, "optimizer", config.optimizer, *samples),
    )
    if not config.indices:
        if config.nads:
            raise InputError(f"nads: is read where indices are given, got {config.nads!r} and none")
        return
    if not config.nads:
        raise InputError("nads: indices need the file of the NADs that they are of, got ''")
    if len(config.indices) < 2:
        raise InputError(f"indices: must be at least two, got {config.indices}")
    for name in ("shortcut_predictivities", "amplifications"):
        if len(config[name]) > 1:
            raise InputError(f"{name}: must be one where indices are given, got {config[name]}")


def read_network(config: ConfigDict, architecture: str) -> Model:
    """A network of a config, of two logits."""
    return read_model(config, architecture=architecture, num_logits=2)


def find_optimum(config: ConfigDict, predictivity: float) -> tuple[float, float]:
    """The reliance and the accuracy of the optimal classifier of a config's features."""
    known = predictivity, config.core_predictivity, config.correlation
    return optimal_reliance(*known, config.num_probes), optimal_accuracy(*known)


Pairs = dict[tuple, tuple[np.ndarray, np.ndarray]]


def list_directions(config: ConfigDict) -> dict[int, Pairs]:
    """(v_s, v_c) of each seed, by their indices ("" of random ones); pairs of NADs with the signs
    that they have in the file, the same for all seeds.
    """
    size = math.prod(config.image_shape)
    if not config.indices:
        return {seed: {("", ""): _draw_pair(seed, size)} for seed in config.seeds}
    rows = records.read_directions(config.nads, size)
    if max(config.indices) >= len(rows):
        raise InputError(f"indices: {config.nads} has 0 … {len(rows) - 1}, got {config.indices}")
    places = itertools.permutations(config.indices, 2)
    pairs = {(first, second): (rows[first], rows[second]) for first, second in places}
    return {seed: pairs for seed in config.seeds}


def _draw_pair(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    keys = (named_key(make_key(seed), name) for name in ("shortcut", "core"))
    return tuple(np.asarray(basis_random(key, size, 1))[0] for key in keys)


def _name_direction(config: ConfigDict, row: np.ndarray) -> str:
    """What determines a direction, in the name of a network."""
    if config.indices:
        return digest(row)  # as it stands: −v_s and v_c are another question than v_s and v_c
    return f"{direction_identity(row):016x}"  # whose sign the seed says


def make_networks(config: ConfigDict) -> list[Member]:
    """Every network of a config, in the order of the table."""
    networks = []
    directions = list_directions(config)
    fixed = {"core_predictivity": config.core_predictivity, "correlation": config.correlation}
    fixed |= {"core_amplification": 1.0, "sigma": config.sigma}
    for *point, seed in itertools.product(*(config[axis] for axis in AXES)):
        architecture, predictivity, amplification = point
        for pair, rows in directions[seed].items():
            values = architecture, *pair, float(predictivity), float(amplification), seed
            place = dict(zip(PLACE, values, strict=True))
            named = {n: _name_direction(config, row) for n, row in zip("sc", rows, strict=True)}
            arrays = {"shortcut": rows[0], "core": rows[1]}
            numbers = {
                "shortcut_predictivity": predictivity,
                "shortcut_amplification": amplification,
            }
            arrays |= {name: np.float32(value) for name, value in (numbers | fixed).items()}
            name = json.dumps({**place, **named}, sort_keys=True)
            networks.append(
                Member(name, (architecture,), trained.Trainee(place, arrays), group=seed)
            )
    return networks


def make_study(config: ConfigDict) -> Study:
    """The networks of a config."""
    validate(config)
    samples = config.num_train, config.num_test

    @functools.cache
    def setup_of(architecture: str) -> Setup:
        recipe = trained.read_recipe(config, "optimizer", config.optimizer, *samples)
        return Setup(read_network(config, architecture), two_features(), *recipe)

    def observe(setup: Setup) -> dict[str, Observer]:
        model, task, recipe, _ = setup
        return {
            "reliance": observe_reliance(model, config.num_probes),
            "accuracy": accuracy(model, task, recipe),
        }

    return trained.make_study(
        config,
        FIELDS.identity(config),
        make_networks(config),
        METRICS,
        lambda member: setup_of(*member.program),
        partial(_collect, config),
        observe,
    )


def _collect(config: ConfigDict, folder: Folder, num_missing: int) -> None:
    """Writes and prints the table of what is stored."""
    rows, steps = [], -(-config.num_train // config.batch_size)
    for row in trained.list_rows(folder, (*COLUMNS, "accuracy")):
        optimum, most = find_optimum(config, row["shortcut_predictivity"])
        for epoch in range(config.num_epochs + 1):
            relied = float(row["reliance"][epoch])
            now = {"epoch": epoch, "step": epoch * steps, "reliance": relied}
            now |= {"shortcut_bias": relied - optimum, "optimal_accuracy": most}
            now["test_accuracy"] = float(row["accuracy"][epoch])
            rows.append({name: {**row, **now}[name] for name in COLUMNS})
    command = FIELDS.command(config)
    rows = results.write_table(folder.workdir, rows, COLUMNS, command, num_missing)
    last = [row for row in rows if row["epoch"] == config.num_epochs]
    for architecture, group in _by(last, "architecture").items():
        diverged = "".join(f", {text}" for text in results.count_diverged(group))
        print(f"{architecture}: {len(group)} networks{diverged}")
        (_report_pairs if config.indices else _report_amplifications)(config, group)


def _by(rows: results.Rows, *names: str) -> dict:
    return results.group(rows, operator.itemgetter(*names))


def _report_amplifications(config: ConfigDict, rows: results.Rows) -> None:
    for predictivity, group in _by(rows, "shortcut_predictivity").items():
        values = results.values_by(group, "amplification", "shortcut_bias")
        told = [f"×{ratio:g}: {results.say_mean(one, '.2f')}" for ratio, one in values.items()]
        print(f"  shortcut bias at predictivity {predictivity:g}: {', '.join(told)}")


def _report_pairs(config: ConfigDict, rows: results.Rows) -> None:
    """Whether the earlier NAD is the one that is taken: over seeds, how often, and the rank
    correlation of the bias with how much later the core stands than the shortcut.
    """
    place = {index: number for number, index in enumerate(sorted(config.indices))}
    shares, correlations = [], []
    for group in _by(rows, "seed").values():
        later = np.array([place[r["core_index"]] - place[r["shortcut_index"]] for r in group])
        bias = np.array([row["shortcut_bias"] for row in group])
        shares.append(float(np.mean(np.sign(bias) == np.sign(later))))
        if len(set(bias.tolist())) > 1:
            correlations.append(float(rank_correlation(later, bias)))
    for values, what, form in (
        (shares, "pairs of which the earlier NAD is preferred", ".1%"),
        (correlations, "rank correlation of the bias with how much later the core stands", ".2f"),
    ):
        if values:
            print(f"  {what}: {results.say_mean(values, form)}")


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws `results.csv` of `workdir`."""
    validate(config)
    rows, missing = results.read_table(workdir, COLUMNS, FIELDS.command(config))
    title = f"σ = {config.sigma:g}, {results.count_seeds(rows)}{missing}"
    last = [row for row in rows if row["epoch"] == config.num_epochs]
    if config.indices:
        found = {
            name: _make_map(config, group) for name, group in _by(last, "architecture").items()
        }
        title = f"Shortcut bias along pairs of NADs: {title}"
        figures = {"bias_map": feature_plots.plot_bias_map(found, sorted(config.indices), title)}
        return results.save_figures(workdir, figures, formats)
    ratio = max(row["amplification"] for row in rows)
    loudest = [row for row in rows if row["amplification"] == ratio]
    curves = (_make_curves(last, "amplification"), _make_curves(loudest, "epoch"))
    figure = feature_plots.plot_bias_by_amplification(*curves, f"Shortcut bias: {title}", ratio)
    return results.save_figures(workdir, {"bias_by_amplification": figure}, formats)


def _make_curves(rows: results.Rows, column: str) -> dict[str, dict[str, results.Curve]]:
    """Of each architecture and predictivity the mean bias by a column."""
    return {
        architecture: {
            rf"$\rho_s$ = {predictivity:g}": results.mean_curve(
                results.values_by(group, column, "shortcut_bias")
            )
            for predictivity, group in _by(mine, "shortcut_predictivity").items()
        }
        for architecture, mine in _by(rows, "architecture").items()
    }


def _make_map(config: ConfigDict, rows: results.Rows) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard errors [K, K] of the bias, by index of shortcut and core, ascending."""
    values = _by(rows, "shortcut_index", "core_index")
    indices = sorted(config.indices)
    means = np.full((len(indices), len(indices)), np.nan)
    errors = means.copy()
    for (row, first), (column, second) in itertools.product(enumerate(indices), repeat=2):
        if group := values.get((first, second)):
            biases = [one["shortcut_bias"] for one in group]
            means[row, column], errors[row, column] = results.mean_and_error(biases)
    return means, errors
