"""The space of a search for the most isotropic network, its rungs, and what is trained of it."""

import math
from collections.abc import Mapping
from functools import cache, cached_property
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import compute_nads, directional_bias, geometry
from experiments.compute_nads import Point
from experiments.run.config import Fields
from experiments.run.folder import Folder, digest
from experiments.run.plan import Arrays, Json, Member, Study
from nad_jax.architectures import OPTIONS
from nad_jax.contract import shape_of_variables
from nad_jax.errors import InputError
from nad_jax.masks import MASKS, mask_densities
from nad_jax.spectrum_metrics import Metric

FIELDS = Fields(
    "isotropy_search", how=geometry.GEOMETRY_HOW, grows=(), reports=("figure_directions",)
)
METRICS = {"kl_uniform": -1, "effective_rank": 1, "participation_ratio": 1}  # signs of isotropy
SEEK = {"most": 1, "least": -1}
# Fields that do not determine the networks of a point.
_SEARCH = (
    "sweep", "objective", "seek", "max_parameters", "num_rungs", "factor", "num_networks",
    "confirm_networks", "confirm_seed", "num_frequencies", "frequency_seed", "accuracy",
)  # fmt: skip
RESULTS = "rungs"  # the folder of what rungs have found
CONFIRMED = "confirmation,"  # begins the folders of the networks of the other seed


class Rung(NamedTuple):
    """One round of the search: so many networks of each of these points, the first of which is the
    start; members: those to compute.
    """

    number: int
    points: list[Point]
    num_networks: int
    members: list[Member]

    @property
    def result(self) -> Member:
        """The file of what it has found."""
        says = {"points": digest(np.array([point.name for point in self.points]))}
        how = {"num_networks": 0, "folder": RESULTS, "says": says}
        return Member(f"rung_{self.number}", "metrics", None, **how)


class Found(NamedTuple):
    """A rung and what it has found: the metrics [P] of its points and their standard errors by name,
    nan of those that have no geometry.
    """

    rung: Rung
    arrays: Arrays

    def metric(self, name: str, place: int) -> Metric:
        return Metric(*(float(self.arrays[n][place]) for n in (name, f"{name}_sem")))


NAMES = tuple(name for metric in METRICS for name in (metric, f"{metric}_sem"))


class Search:
    """The space of a config, and which of its points each rung has.

    space: the start, and every other point within the budget of parameters.
    """

    def __init__(self, config: ConfigDict):
        self.config = config
        axes = [name for name, values in config.sweep.items() if len(values)]
        coordinates = {name: config[name] for name in axes}
        name = ",".join(f"{name}={value}" for name, value in coordinates.items())
        start = Point(name, config.copy_and_resolve_references(), coordinates)
        most, same = config.max_parameters, _describe(start)
        others = [one for one in compute_nads.make_points(config) if _describe(one) != same]
        self.space = start, *(one for one in others if not most or count_parameters(one) <= most)
        # These are asked for before every unit.
        self.rung = cache(self._rung)
        self.ensemble = cache(lambda name: self.named[name].ensemble)
        self.shapes = cache(lambda name: geometry.state_shapes(self.ensemble(name)))
        self.trained = cache(lambda name: list_trained(config, self.named[name]))
        # A point that goes on is not compiled again, nor for the networks of the other seed.
        self.program = cache(lambda name, size: geometry.make_program(self.ensemble(name), size))

    @cached_property
    def named(self) -> dict[str, Point]:
        """All points by their folder, those of the confirmation too."""
        every = tuple(range(len(self.space)))
        confirmed = self._points(self.config.num_rungs, every)
        return {point.name: point for point in (*self.space, *confirmed)}

    @cached_property
    def identities(self) -> dict[str, Json]:
        """Of the run folder, and of those of the points: what determines their networks."""
        found = dict.fromkeys(("", RESULTS), FIELDS.identity(self.config))
        for name, point in self.named.items():
            said = FIELDS.identity(point.config)
            found[name] = {name: value for name, value in said.items() if name not in _SEARCH}
        return found

    def identities_of(self, rung: Rung) -> dict[str, Json]:
        """Those of the run folder and of a rung's points."""
        names = "", RESULTS, *(point.name for point in rung.points)
        return {name: self.identities[name] for name in names}

    @cached_property
    def training(self) -> Study:
        """The networks of the start on D(v), by which what both cost is known beforehand."""
        return directional_bias.make_study(self.trained(self.space[0].name)[0])

    @property
    def num_rungs(self) -> int:
        """With the confirmation."""
        return self.config.num_rungs + 1

    def sizes(self, number: int) -> tuple[int, int]:
        """How many points besides the start a rung has, and networks of each."""
        if number == self.config.num_rungs:
            return 1, self.config.confirm_networks
        times = self.config.factor**number
        return max(1, (len(self.space) - 1) // times), self.config.num_networks * times

    def _points(self, number: int, places: tuple[int, ...]) -> list[Point]:
        changes, prefix = {"num_networks": self.sizes(number)[1]}, ""
        if number == self.config.num_rungs:
            changes["seed"], prefix = self.config.confirm_seed, CONFIRMED
        points = []
        for name, config, coordinates in (self.space[place] for place in places):
            own = config.copy_and_resolve_references()
            own.update(changes)
            points.append(Point(prefix + name, own, coordinates))
        return points

    def _rung(self, number: int, places: tuple[int, ...]) -> Rung:
        """A rung of these points of the space; the last one is the confirmation."""
        points, members = self._points(number, places), []
        for point in points:
            values = point.coordinates.values() or (point.config.architecture,)
            how = point.config, tuple(map(str, values)), self.ensemble(point.name).num_rows
            members += geometry.list_members(*how, folder=point.name)
        return Rung(number, points, self.sizes(number)[1], members)

    def first(self, number: int) -> Rung:
        """A rung of the first points of the space: which will be in it is not known before."""
        return self.rung(number, tuple(range(self.sizes(number)[0] + 1)))

    def rank(self, found: Found) -> list[int]:
        """The places of a rung besides the start, the best one first, those without a geometry
        last.
        """
        sign = SEEK[self.config.seek] * METRICS[self.config.objective]
        score = -sign * found.arrays[self.config.objective][1:]
        return [1 + place for place in np.argsort(score, kind="stable").tolist()]

    def next(self, found: Found) -> Rung:
        """The rung after one that is over."""
        number, names = found.rung.number + 1, [point.name for point in self.space]
        best = self.rank(found)[: self.sizes(number)[0]]
        places = (names.index(found.rung.points[place].name) for place in (0, *sorted(best)))
        return self.rung(number, tuple(places))

    def read(self, folder: Folder) -> tuple[list[Found], Rung | None]:
        """The rungs that are over, and the one that is under way; None where all are over."""
        over, rung = [], self.first(0)
        while rung is not None:
            arrays = folder.read(rung.result)
            if arrays is None or len(arrays[self.config.objective]) != len(rung.points):
                return over, rung
            over.append(Found(rung, arrays))
            rung = None if rung.number == self.config.num_rungs else self.next(over[-1])
        return over, None


def _describe(point: Point) -> Json:
    """What a point's networks and estimate are: "default" is what the other one names."""
    config, model = point.config, point.ensemble.model
    said = {name: config[name] for name in ("derivative", "step", "point", "readout", "seed")}
    return {**said, "point_scale": config.point_scale, "model": dict(model.description)}


def check_rungs(config: ConfigDict, count: int) -> None:
    """Raises `InputError` where rungs follow the one that has a single network left besides the
    start: they would rank nothing, with ever more networks.

    count: of the networks besides the start.
    """
    left, most = count, 1
    while left > 1:
        left, most = left // config.factor, most + 1
    if config.num_rungs > most:
        raise InputError(
            f"num_rungs: must be at most {most}, got {config.num_rungs}: of {count} networks each "
            f"rung leaves one in {config.factor}, and rung {most} has one left"
        )


def count_parameters(point: Point) -> int:
    """The parameters of a point's network; of masked weights those that are kept, on average over
    masks.
    """
    model, removed = point.ensemble.model, 0.0
    variables = shape_of_variables(model)
    said = [model.description.get(name) for name in ("density", "mask")]
    if None not in said and MASKS in variables:  # and not of the model's own
        found = mask_densities(model, *said)
        weights = sum(map(math.prod, found.shapes))
        removed, variables = (1 - found.total) * weights, variables.get("variables", variables)
    own = variables.get("params", variables) if isinstance(variables, Mapping) else variables
    return round(sum(leaf.size for leaf in jax.tree.leaves(own)) - removed)


def read_accuracy(config: ConfigDict, point: Point) -> ConfigDict:
    """The config of `directional_bias` that trains the network of a point."""
    own = config.accuracy.copy_and_resolve_references()
    names = (*OPTIONS, "image_shape", "initialization", "convolution")
    own.update({name: point.config[name] for name in names})
    own.update(architectures=(point.config.architecture,), poolings=(point.config.pooling,))
    own.update(widths=(point.config.width,))
    return own


def list_trained(config: ConfigDict, point: Point) -> tuple[ConfigDict, list[Member]]:
    """The networks of a point that are trained, along frequencies that are the same for all
    points; and their config.
    """
    own = read_accuracy(config, point)
    places = list_directions(own)
    chosen = np.random.default_rng(config.frequency_seed).permutation(places)
    own.indices = tuple(sorted(chosen[: config.num_frequencies].tolist()))
    return own, directional_bias.make_networks(own)


def list_directions(config: ConfigDict) -> list[int]:
    """The indices of different directions: of ±f the cosines are one."""
    coordinates = directional_bias.make_directions(config).coordinates
    return sorted({one["direction"]: one["index"] for one in reversed(coordinates)}.values())
