"""Score anisotropy directions (SADs): which data a score network learns to generate easily.

A network is trained to denoise rank-one data N(0, D u_i u_iᵀ) along the direction u_i of each index
and seed, in the ascending order of eigenvalues that SADs have; or images as they are and rotated, so
that the directions of most variance fall on those of the smallest eigenvalues ("min") or the largest
("max"). Then it is sampled from, and what it generates is compared with the data.

Writes into the run folder: `units/*.npz` (finished networks, with their direction), `results.csv`
(one row per network, those of the command first) and a figure of the distances.
"""

import functools
import json
import math
import operator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import results, trained
from experiments.run.config import (
    Fields,
    check_all,
    check_each,
    check_integers,
    check_seeds,
    check_sweeps,
)
from experiments.run.costs import Setup, fastest
from experiments.run.folder import Folder, digest
from experiments.run.origin import check_run_folder
from experiments.run.plan import Arrays, Member, Study
from experiments.score_data import make_rotation, read_ascending, read_images
from nad_jax.diffusion import Sampler, Schedule, make_sampler, plan_steps, sampled_variance
from nad_jax.distance_plots import plot_distances
from nad_jax.ensemble import make_key, named_key
from nad_jax.errors import InputError, check_choice, check_input_shape, check_integer, check_number
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.sads import estimate_sads
from nad_jax.score_networks import ScoreNetwork, as_model
from nad_jax.score_table import create_score_network
from nad_jax.store import read_npy
from nad_jax.tables import list_metrics
from nad_jax.task import REQUIRED, FitMetrics, Task
from nad_jax.tasks.denoising import denoising, denoising_images, sample_rank_one
from nad_jax.wasserstein import sliced_wasserstein

ALIGNMENTS = ("none", "min", "max")
METRICS = list_metrics(FitMetrics)
# Sliced and max-sliced W₂ from fresh data, and of two fresh sets of data from each other; variance
# along the direction and, by dimension, across it, over that of the data along it.
FOUND = ("sliced", "max_sliced", "floor", "max_floor", "along", "across")
COLUMNS = ("index", "alignment", "seed", *METRICS, *FOUND, *results.PROVENANCE)
LABELS = {"sliced": "sliced $W_2$", "max_sliced": "max-sliced $W_2$",
          "floor": "sliced, data from data", "max_floor": "max-sliced, data from data"}  # fmt: skip
FIELDS = Fields(
    "score_directions",
    # Files are known by what they hold, wherever they are.
    how=(*trained.TRAINED_HOW, "sample_batch", "images", "directions"),
    grows=("indices", "alignments", "seeds"),
)


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)
    check_all(
        lambda: check_sweeps(config, ("indices", "alignments", "seeds")),
        lambda: check_input_shape(config.image_shape),
        lambda: check_integers(config, num_levels=1, sample_batch=1, num_samples=2),
    )
    size, sizes = math.prod(config.image_shape), (config.num_train, config.num_test)
    check_all(
        lambda: read_network(config),
        lambda: check_integer("num_networks", config.num_networks, 2),
        lambda: check_seeds("direction_seed", config.direction_seed),
        lambda: check_seeds("seeds", *config.seeds),
        lambda: check_each(config, "indices", check_integer, 0, size - 1),
        lambda: check_each(config, "alignments", check_choice, ALIGNMENTS),
        lambda: plan_steps(config.num_steps, config.eta, read_schedule(config)),
        lambda: check_integer("num_projections", config.num_projections, 0),
        lambda: trained.check_execution(config),
        lambda: trained.check_recipe(config, "optimizer", config.optimizer, *sizes),
        lambda: check_number("image_scale", config.image_scale, 0.0, exclusive=True),
    )
    if config.images and config.num_samples > min(sizes):
        raise InputError(
            f"num_samples: must be at most {min(sizes)}, the images to compare with, got "
            f"{config.num_samples}"
        )


def read_network(config: ConfigDict) -> ScoreNetwork:
    """The score network of a config, written "unet" or "unet:width=16:levels=2"."""
    name, options = trained.parse_optimizer("network", config.network)
    fields = {"name": "network", "input_shape": "image_shape", "convolution": "convolution"}
    for option in fields.keys() & options.keys():
        raise InputError(f"network: {option} is no option; it is the field {fields[option]}")
    return create_score_network(
        name, tuple(config.image_shape), convolution=config.convolution, **options
    )


def read_schedule(config: ConfigDict) -> Schedule:
    """The noise levels of a config."""
    return Schedule(config.num_levels)


def find_directions(config: ConfigDict) -> np.ndarray:
    """The directions of a config, rows in ascending order of eigenvalues, [K, D]: of its file, or
    SADs, which are estimated.
    """
    if config.directions:
        return read_ascending(config.directions, math.prod(config.image_shape))
    how = {"mapping": config.mapping, "num_devices": config.num_devices}
    with jax.ensure_compile_time_eval():  # also where a cost is traced
        how["signal"] = read_schedule(config).alpha_bar
        return estimate_sads(
            read_network(config), config.num_networks, config.direction_seed, **how
        ).directions


class Lab(NamedTuple):
    """What the networks of a command share, made when it is first asked for.

    directions(): rows [K, D]. rotation(alignment): W, [D, D]. sampler(num_steps): of the network.
    """

    config: ConfigDict
    directions: Any
    images: Any
    rotation: Any
    sampler: Any


def open_lab(config: ConfigDict) -> Lab:
    """The lab of a config."""
    network, schedule = read_network(config), read_schedule(config)
    directions = functools.cache(partial(find_directions, config))
    images = functools.cache(partial(read_images, config))

    @functools.cache
    def rotation(alignment: str) -> np.ndarray:
        known = None if alignment == "none" else directions()
        return make_rotation(known, images()[0], alignment)

    @functools.cache
    def sampler(num_steps: int) -> Sampler:
        return make_sampler(network, num_steps, config.eta, schedule, config.sample_batch)

    return Lab(config, directions, images, rotation, sampler)


def make_task(lab: Lab, alignment: str = "") -> Task:
    """Denoising rank-one data as a task, in which networks differ in the `index` of their
    direction; or images of that alignment.
    """
    schedule = read_schedule(lab.config)
    if alignment:
        images, test_images = lab.images()
        return denoising_images(images, test_images, lab.rotation(alignment), schedule)
    inner = denoising(schedule)

    def make_data(model: Model, recipe: Recipe, seed: int) -> Any:
        rows = lab.directions()
        if max(lab.config.indices) >= len(rows):  # of a file
            raise InputError(
                f"indices: must be below the {len(rows)} directions of the file, got "
                f"{max(lab.config.indices)}"
            )
        return inner.data(model, recipe, seed), jnp.asarray(rows, jnp.float32)

    def sample(data: Any, split: str, numbers: jax.Array, arrays: Any, epoch: Any) -> Any:
        clean, rows = data
        chosen = {"direction": rows[arrays["index"]]}
        return inner.sample(clean, split, numbers, chosen, epoch)

    names = {"arrays": {"index": REQUIRED}, "prepare": lambda model, arrays: arrays}
    return inner._replace(data=make_data, sample=sample, **names)


def make_networks(config: ConfigDict) -> list[Member]:
    """Every network of a config, in the order of the table."""
    networks, of_images = [], bool(config.images)
    for chosen in config.alignments if of_images else config.indices:
        for seed in config.seeds:
            place = {"alignment": chosen} if of_images else {"index": chosen}
            arrays = {} if of_images else {"index": np.int32(chosen)}
            place = {"index": "", "alignment": "", **place, "seed": seed}
            trainee = trained.Trainee(place, arrays)
            name = json.dumps(place, sort_keys=True)
            networks.append(Member(name, (place["alignment"],), trainee, group=seed))
    return networks


def draw_data(lab: Lab, member: Member) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of the data of a network that it has not seen, [n, D] each; of images, the second is
    of those that it has.
    """
    place, count = member.what.coordinates, lab.config.num_samples
    if place["alignment"]:
        images, test_images = lab.images()
        return test_images[:count], images[:count]
    direction, key = lab.directions()[place["index"]], make_key(place["seed"])
    first, second = (named_key(key, name) for name in ("fresh", "other"))
    sets = (sample_rank_one(one, direction, count) for one in (first, second))
    return tuple(map(np.asarray, sets))


def compare(lab: Lab, member: Member, variables: Any) -> Arrays:
    """What is measured of a trained network, `FOUND`, and its direction."""
    config, place, size = lab.config, member.what.coordinates, math.prod(lab.config.image_shape)
    key = make_key(place["seed"])
    drawn = lab.sampler(config.num_steps)(variables, named_key(key, "samples"), config.num_samples)
    samples, direction = np.asarray(drawn, np.float64).reshape(-1, size), np.zeros(size)
    found = dict.fromkeys(FOUND, np.nan)
    if place["alignment"]:
        samples = samples @ lab.rotation(place["alignment"])  # back: Wᵀ x
    else:
        direction = lab.directions()[place["index"]].astype(np.float64)
        along = samples @ direction
        across = np.sum(samples**2) - np.sum(along**2)
        found["along"] = np.mean(along**2) / size
        found["across"] = across / len(samples) / max(size - 1, 1) / size
    data, other = draw_data(lab, member)
    projections = named_key(key, "projections"), config.num_projections
    if np.isfinite(samples).all():
        distance = sliced_wasserstein(samples.astype(np.float32), data, *projections)
        found |= {"sliced": distance.sliced, "max_sliced": distance.max_sliced}
    floor = sliced_wasserstein(other, data, *projections)
    found |= {"floor": floor.sliced, "max_floor": floor.max_sliced}
    return {**found, "direction": direction.astype(np.float32)}


def measure_seconds(lab: Lab, member: Member) -> float:
    """How long it takes to sample from a network and to compare."""
    config = lab.config
    network = read_network(config)
    variables, sampler = network.init(make_key(0)), lab.sampler(1)
    batches = -(-config.num_samples // config.sample_batch)
    num_steps = config.num_steps or config.num_levels
    noise = np.random.default_rng(0).normal(size=(2, config.num_samples, *config.image_shape))
    projections = config.num_projections or 64 * math.prod(config.image_shape)
    some = max(1, projections // 16)
    calls = (
        lambda: sampler(variables, 0, config.sample_batch),
        lambda: sliced_wasserstein(*noise, 0, some),
    )
    jax.block_until_ready([call() for call in calls])  # compiled
    step, share = map(fastest, calls)
    return step * batches * num_steps + 2 * share * projections / some


def identify(config: ConfigDict) -> dict[str, Any]:
    """What determines the numbers of every network: fields, and what the files hold."""
    identity = {**FIELDS.identity(config), "images": "", "directions": ""}
    if config.images:
        identity["images"] = digest(np.asarray(read_npy(config.images)))
    if config.directions:
        identity["directions"] = digest(find_directions(config))
    return identity


def make_study(config: ConfigDict) -> Study:
    """The networks of a config."""
    validate(config)
    lab, model = open_lab(config), as_model(read_network(config))
    samples = config.num_train, config.num_test
    recipe = trained.read_recipe(config, "optimizer", config.optimizer, *samples)

    @functools.cache
    def setup_of(alignment: str) -> Setup:
        return Setup(model, make_task(lab, alignment), *recipe)

    def setup(member: Member) -> Setup:
        return setup_of(*member.program)

    size = math.prod(config.image_shape)
    shapes = {**dict.fromkeys(FOUND, ()), "direction": (size,)}
    more = trained.More(shapes, partial(compare, lab), partial(measure_seconds, lab))
    how = identify(config), make_networks(config), METRICS, setup
    return trained.make_study(config, *how, partial(_collect, config), more=more)


def _collect(config: ConfigDict, folder: Folder, num_missing: int) -> None:
    """Writes and prints the table of what is stored."""
    rows = trained.list_rows(folder, COLUMNS)
    command = FIELDS.command(config)
    rows = results.write_table(folder.workdir, rows, COLUMNS, command, num_missing)
    column = _column(rows)
    print(f"{len(rows)} networks{''.join(f', {text}' for text in results.count_diverged(rows))}")
    for name in ("sliced", "max_sliced", "floor", "along", "across"):
        values = results.values_by(rows, column, name)
        if not np.isnan([one for group in values.values() for one in group]).all():
            means = (_describe(place, one) for place, one in _ordered(values))
            print(f"  {name} by {column}: {', '.join(means)}")
    size = math.prod(config.image_shape)
    exact = sampled_variance(size, config.num_steps, config.eta, read_schedule(config)) / size
    if column == "index":
        print(f"  along, of the best network with these steps: {exact:.3f}")
    for name in ("sliced", "max_sliced"):
        if text := describe_difference(rows, column, name):
            print(f"  {text}")


def _column(rows: results.Rows) -> str:
    """What networks differ in: the index of a direction, or an alignment."""
    return "alignment" if rows[0]["alignment"] else "index"


def _ordered(values: dict[Any, list[float]]) -> list[tuple[Any, list[float]]]:
    """Indices ascending, alignments in their order."""
    return sorted(values.items(), key=lambda pair: _rank(pair[0]))


def _rank(place: Any) -> int:
    return ALIGNMENTS.index(place) if place in ALIGNMENTS else place


def _describe(place: Any, values: list[float]) -> str:
    mean, error = results.mean_and_error(values)
    return f"{place}: {mean:.3g}" + f" ± {error:.2g}" * (len(values) > 1)


def describe_difference(rows: results.Rows, column: str, metric: str) -> str:
    """By how much a distance is larger at the last direction than at the first, or with "max" than
    with "min", seed by seed; "" where there are not both.
    """
    places = sorted({row[column] for row in rows}, key=_rank)
    first, last = ("min", "max") if column == "alignment" else (places[0], places[-1])
    differences = []
    for group in results.group(rows, operator.itemgetter("seed")).values():
        found = {row[column]: row[metric] for row in group}
        if first != last and {first, last} <= {*found}:
            differences.append(found[last] - found[first])
    if not differences:
        return ""
    low, high, how = results.mean_interval(differences)
    text = f"{metric}, {column} {last} less {first}: {np.mean(differences):.3g}"
    if len(differences) == 1:
        return f"{text}, 1 seed"
    return f"{text}, 95% interval {low:.3g} … {high:.3g} ({len(differences)} seeds, {how})"


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws `results.csv` of `workdir`."""
    validate(config)
    rows, missing = results.read_table(workdir, COLUMNS, FIELDS.command(config))
    if (workdir / "config.json").exists():  # what files hold is in no table
        check_run_folder(workdir, identify(config))
    column = _column(rows)
    places = sorted({row[column] for row in rows}, key=_rank)
    numbered = [{**row, "place": places.index(row[column])} for row in rows]
    curves = {
        label: results.mean_curve(results.values_by(numbered, "place", name))
        for name, label in LABELS.items()
    }
    axis = "index of the direction, ascending" if column == "index" else "alignment of the images"
    title = f"Distance from the data, {config.network}, {results.count_seeds(rows)}{missing}"
    figure = plot_distances(curves, list(map(str, places)), axis, title)
    return results.save_figures(workdir, {"distances": figure}, formats)
