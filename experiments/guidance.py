"""Guidance: networks trained on D(u_i), u_i the NADs of a guide of another architecture, with and
without being guided by it, untrained; and the guide trained alone.

Do guided networks learn along the directions that the guide prefers, and do their gradients lie
along them? The networks of a seed start alike, and share the noise and the guide, in all directions
and with every guidance. The geometry of a seed is E[g gᵀ] over its networks, one for each direction,
and over test samples, g the gradient of the difference of the logits. What training puts there by
itself is left out: of each network the component of g along its own direction.

Writes into the run folder: `units/*.npz` (finished networks, with their gradients), `results.csv`
(one row per network, those of the command first), `overlaps.csv` (a row for each geometry and number
of leading directions) and a figure.
"""

import csv
import functools
import io
import json
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import results, trained
from experiments.own_direction import compare_geometry
from experiments.ranked import by_index, check_rank
from experiments.run.config import (
    Fields,
    check_all,
    check_each,
    check_integers,
    check_seeds,
    check_sweeps,
)
from experiments.run.costs import Setup, fastest
from experiments.run.folder import Folder
from experiments.run.plan import Arrays, Member, Study
from nad_jax import store
from nad_jax.architectures import create_model
from nad_jax.errors import InputError, check_choice, check_image_shape, check_integer, check_number
from nad_jax.estimation import estimate_nads
from nad_jax.fitting import Observer
from nad_jax.guidance import guided, layers_of, observe_similarity
from nad_jax.guidance_plots import plot_guidance
from nad_jax.models import Model
from nad_jax.nads import NADs
from nad_jax.plotting import Curve
from nad_jax.subspaces import default_sizes
from nad_jax.tables import format_table, list_metrics
from nad_jax.task import FitMetrics, Task
from nad_jax.tasks.separable import check_num_samples

ROLES = ("network", "guide")  # what is trained
LAYERS = ("last", "all")
METRICS = list_metrics(FitMetrics)
CKA = ("cka_before", "cka_after")  # with the guide, on a batch of test samples; mean over pairs
COLUMNS = ("role", "guidance", "index", "seed", *METRICS, *CKA, *results.PROVENANCE)
# Of the leading eigenvectors of a geometry with as many NADs of the guide, and its share of energy
# in the span of these; both by chance; and how well halves of the guides' ensemble agree.
FOUND = ("overlap", "energy", "chance", "energy_chance", "split_half")
OVERLAP_COLUMNS = ("role", "guidance", "seed", "own", "size", *FOUND)
FIELDS = Fields("guidance", how=trained.TRAINED_HOW, grows=("guidances", "indices", "seeds"))
Key = tuple[str, float]  # what is trained, and its guidance


class Lab(NamedTuple):
    """What the networks of a command share, made when it is first asked for.

    models: of each role. nads(): those of the guide. task: D(u_i), in which networks differ in the
    `index` i. gradients: of each role, of variables and inputs [P, *input_shape]: [P, D].
    """

    config: ConfigDict
    models: dict[str, Model]
    nads: Any
    task: Task
    gradients: dict[str, Any]


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)
    check_all(
        lambda: check_sweeps(config, ("guidances", "indices", "seeds")),
        lambda: check_image_shape(config.image_shape),
    )
    size, samples = math.prod(config.image_shape), (config.num_train, config.num_test)
    check_all(
        lambda: check_choice("layers", config.layers, LAYERS),
        lambda: check_choice("train_guide", config.train_guide, (False, True)),
        lambda: check_each(config, "guidances", check_number, 0.0),
        lambda: check_each(config, "indices", check_integer, 0, size - 1),
        lambda: check_seeds("seeds", *config.seeds),
        lambda: check_seeds("direction_seed", config.direction_seed),
        lambda: check_integers(config, num_networks=2, num_points=1),
        lambda: check_number("epsilon", config.epsilon, 0.0),
        lambda: check_number("sigma", config.sigma, 0.0),
        lambda: check_num_samples("num_train", config.num_train),
        lambda: check_num_samples("num_test", config.num_test),
        lambda: trained.check_execution(config),
        lambda: trained.check_recipe(config, "optimizer", config.optimizer, *samples),
    )
    if config.num_points > config.num_test:
        raise InputError(
            f"num_points: must be at most the {config.num_test} test samples, got "
            f"{config.num_points}"
        )
    models: dict[str, Model] = {}

    def read(role: str) -> None:
        models[role] = read_model(config, role)

    check_all(*(partial(read, role) for role in ROLES))
    choose_layers(config, models)


def read_model(config: ConfigDict, role: str, num_logits: int = 2) -> Model:
    """The network of a config, or its guide."""
    how = {"initialization": config.initialization, "convolution": config.convolution}
    return create_model(config[role], tuple(config.image_shape), num_logits, **how)


def find_nads(config: ConfigDict) -> NADs:
    """The NADs of the guide: of exact gradients, each network at a point of its own."""
    model = read_model(config, "guide", 1)
    how = {"derivative": "input_gradient", "point": "fresh", "mapping": config.mapping}
    with jax.ensure_compile_time_eval():  # also where a cost is traced
        nads = estimate_nads(model, config.num_networks, config.direction_seed, **how)
    check_rank(tuple(config.indices), nads)
    return nads


def make_gradients(model: Model) -> Any:
    """The gradients [P, D] of the difference of a network's logits at inputs [P, *input_shape]."""

    def difference(variables: Any, x: jax.Array) -> jax.Array:
        first, second = model.apply(variables, x[None])[0]
        return first - second

    def rows(variables: Any, x: jax.Array) -> jax.Array:
        found = jax.vmap(jax.grad(difference, 1), (None, 0))(variables, x)
        return found.reshape(len(x), -1)

    return jax.jit(rows)


def open_lab(config: ConfigDict) -> Lab:
    """The lab of a config."""
    models, nads = {}, functools.cache(partial(find_nads, config))
    for role in ROLES:
        models[role] = read_model(config, role)
    gradients = {role: make_gradients(model) for role, model in models.items()}
    task = by_index(lambda seed: nads().directions, config)
    return Lab(config, models, nads, task, gradients)


def choose_layers(config: ConfigDict, models: dict[str, Model]) -> dict[str, Any]:
    """What is compared of the models of both roles, as `guided` takes it; raises `InputError` where
    one has nothing of that kind.
    """
    if config.layers == "last":
        for role in ROLES:
            if models[role].features is None:
                raise InputError(
                    f"{role}: of {config[role]} the input of a last linear layer is not known, which "
                    "layers='last' compares"
                )
        return {}
    chosen = {}
    for role, name in zip(ROLES, ("features", "guide_features"), strict=True):
        try:
            chosen[name] = layers_of(models[role])
        except InputError as error:
            raise InputError(
                f"{role}: {config[role]} has no layers before its last that layers='all' could "
                "compare; take layers='last'"
            ) from error
    return chosen


def make_setup(lab: Lab, role: str) -> Setup:
    """How networks of a role are trained."""
    config, model = lab.config, lab.models[role]
    samples = config.num_train, config.num_test
    recipe = trained.read_recipe(config, "optimizer", config.optimizer, *samples)
    if role == "guide":
        return Setup(model, lab.task, *recipe)
    task = guided(lab.task, model, lab.models["guide"], **choose_layers(config, lab.models))
    return Setup(model, task, *recipe)


def observe_cka(setup: Setup) -> dict[str, Observer]:
    """The mean CKA of a network with its guide; nan of a guide that is trained."""
    if setup.task.penalty is None:
        return {"cka": lambda variables, data, member: jnp.float32(jnp.nan)}
    observe = observe_similarity(setup.task, setup.recipe)
    return {"cka": lambda variables, data, member: observe(variables, data, member).mean()}


def make_networks(config: ConfigDict) -> list[Member]:
    """Every network of a config, in the order of the table."""
    networks, chosen = [], [("network", float(one)) for one in config.guidances]
    for role, guidance in chosen + [("guide", 0.0)] * config.train_guide:
        for index in config.indices:
            for seed in config.seeds:
                place = {"role": role, "guidance": guidance, "index": index, "seed": seed}
                arrays = {"index": np.int32(index)}
                arrays |= {"guidance": np.float32(guidance)} if role == "network" else {}
                trainee = trained.Trainee(place, arrays)
                name = json.dumps(place, sort_keys=True)
                networks.append(Member(name, (role,), trainee, group=seed))
    return networks


def measure(lab: Lab, member: Member, variables: Any) -> Arrays:
    """The gradients of a trained network at the first test samples, in the basis of the NADs: [P, D];
    and how well halves of the guides' ensemble agree on leading NADs.
    """
    config, place, nads = lab.config, member.what.coordinates, lab.nads()
    setup = make_setup(lab, "guide")  # whose task is not guided
    data = lab.task.data(setup.model, setup.recipe, place["seed"])
    numbers = jnp.arange(config.num_points)
    x, _ = lab.task.sample(data, "test", numbers, {"index": place["index"]})
    rows = lab.gradients[place["role"]](variables, x.reshape(-1, *config.image_shape))
    rows = np.asarray(rows, np.float64) @ nads.directions.T
    halves = dict(zip(map(int, nads.overlap_sizes), nads.split_half_overlap, strict=True))
    sizes = default_sizes(rows.shape[1])
    known = np.array([halves.get(size, np.nan) for size in sizes], np.float32)
    return {"gradients": rows.astype(np.float32), "split_half": known}


def measure_seconds(lab: Lab, member: Member) -> float:
    """How long it takes to measure a network."""
    model = lab.models[member.what.coordinates["role"]]
    variables = model.init(jax.random.key(0))
    measure(lab, member, variables)  # compiled
    return fastest(lambda: measure(lab, member, variables))


def make_study(config: ConfigDict) -> Study:
    """The networks of a config."""
    validate(config)
    lab, size = open_lab(config), math.prod(config.image_shape)
    setup_of = functools.cache(partial(make_setup, lab))

    def setup(member: Member) -> Setup:
        return setup_of(*member.program)

    shapes = {"gradients": (config.num_points, size), "split_half": (len(default_sizes(size)),)}
    more = trained.More(shapes, partial(measure, lab), partial(measure_seconds, lab))
    how = FIELDS.identity(config), make_networks(config), METRICS, setup
    last = partial(_collect, config), observe_cka, more
    return trained.make_study(config, *how, *last)


def list_overlaps(folder: Folder) -> results.Rows:
    """A row for each geometry of the command, with and without what lies along the own direction of
    each network, and each number of leading directions.
    """
    stored, rows = folder.stored_by_command()[0], []
    for place, group in results.group(stored, _geometry_of).items():
        gradients = [one.arrays["gradients"] for _, one in group]
        split_half = group[0][1].arrays["split_half"]
        indices = [member.what.coordinates["index"] for member, _ in group]
        for own, chosen in (("left out", indices), ("kept", [-1] * len(group))):
            found = {**compare_geometry(gradients, chosen), "split_half": split_half}
            said = {**dict(zip(("role", "guidance", "seed"), place, strict=True)), "own": own}
            for values in zip(*found.values(), strict=True):
                rows.append({**said, **dict(zip(found, values, strict=True))})
    return rows


def _geometry_of(stored: tuple[Member, Any]) -> tuple[str, float, int]:
    place = stored[0].what.coordinates
    return place["role"], place["guidance"], place["seed"]


def _collect(config: ConfigDict, folder: Folder, num_missing: int) -> None:
    """Writes and prints the tables of what is stored."""
    rows = []
    for row in trained.list_rows(folder, (*COLUMNS, "cka")):
        series = row.pop("cka")
        rows.append({**row, "cka_before": float(series[0]), "cka_after": float(series[-1])})
    overlaps = format_table(list_overlaps(folder), OVERLAP_COLUMNS)
    store.write_text(folder.workdir / "overlaps.csv", overlaps)
    command = FIELDS.command(config)
    rows = results.write_table(folder.workdir, rows, COLUMNS, command, num_missing)
    overlaps = read_overlaps(folder.workdir)
    for key, group in _by_key(rows).items():
        _report(config, key, group, [row for row in overlaps if _key(row) == key])


def read_overlaps(workdir: Path) -> results.Rows:
    """The rows of `overlaps.csv`."""
    path = workdir / "overlaps.csv"
    rows = list(csv.DictReader(io.StringIO(store.read_text(path))))
    if any(set(row) != set(OVERLAP_COLUMNS) for row in rows):
        raise InputError(
            f"{path}: not an overlaps.csv of this version; give the command without --figures_only"
        )
    numbers = [name for name in OVERLAP_COLUMNS if name not in ("role", "own")]
    return [{**row, **{name: float(row[name]) for name in numbers}} for row in rows]


def _key(row: results.Row) -> Key:
    return row["role"], float(row["guidance"])


def _by_key(rows: results.Rows) -> dict[Key, results.Rows]:
    return results.group(rows, _key)


def _name(config: ConfigDict, key: Key) -> str:
    role, guidance = key
    if role == "guide":
        return f"{config.guide}, trained alone"
    return f"{config.network}, α = {guidance:.7g}"


def _report(config: ConfigDict, key: Key, rows: results.Rows, overlaps: results.Rows) -> None:
    """Prints what is known of networks of one role and guidance."""
    print(", ".join([f"{_name(config, key)}: {len(rows)} networks", *results.count_diverged(rows)]))
    values = results.values_by(rows, "index")
    told = (f"{index}: {_say(values[index], '.1%')}" for index in sorted(values))
    print(f"  test accuracy by index: {', '.join(told)}")
    known = results.correlate(rows), len({row["seed"] for row in rows})
    print(f"    rank correlation with the index: {results.say_known(*known, '.2f')}")
    if key[0] == "network":
        before, after = (_say(results.means_by_seed(rows, name), ".3f") for name in CKA)
        print(f"  CKA with the guide: {before} before, {after} after")
    for own in ("left out", "kept"):
        chosen = [row for row in overlaps if row["own"] == own]
        by_size = {row["size"]: row for row in chosen}
        for name, chance, words in (
            ("overlap", "chance", "overlap with leading NADs"),
            ("energy", "energy_chance", "their energy"),
        ):
            found = results.values_by(chosen, "size", name)
            told = ", ".join(
                f"{size:g}: {_say(one, '.3f')} ({by_size[size][chance]:.3f})"
                for size, one in found.items()
            )
            print(f"  {words}, own direction {own} (by chance): {told}")
    halves = {row["size"]: row["split_half"] for row in overlaps}
    told = ", ".join(f"{size:g}: {value:.3f}" for size, value in halves.items())
    print(f"  overlap of halves of guides: {told}")


def _say(values: list[float], form: str) -> str:
    """The mean over seeds and its standard error, in words."""
    if not values:
        return "none, all are equal"
    return results.say_mean(values, form)


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws `results.csv` and `overlaps.csv` of `workdir`."""
    validate(config)
    rows, missing = results.read_table(workdir, COLUMNS, FIELDS.command(config))
    overlaps = [row for row in read_overlaps(workdir) if row["own"] == "left out"]
    names = {key: _name(config, key) for key in _by_key(rows)}
    accuracies = results.curves({names[key]: group for key, group in _by_key(rows).items()})
    geometries: dict[str, Curve] = {}
    for key, group in _by_key(overlaps).items():
        geometries[names[key]] = results.mean_curve(results.values_by(group, "size", "overlap"))
    size = math.prod(config.image_shape)
    title = f"{config.network} guided by an untrained {config.guide}, "
    title += results.count_seeds(rows) + missing
    figure = plot_guidance(accuracies, geometries, size, title)
    return results.save_figures(workdir, {"guidance": figure}, formats)
