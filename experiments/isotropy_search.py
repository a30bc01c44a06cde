"""The most isotropic network of a space: successive halving over the points of `config.sweep`.

Every rung estimates the geometry of the points that are left, of the same number of networks each,
and ranks them by a metric of its spectrum; the best ones go on with more networks, and so does the
start, the network that the config itself says. What is best in the end meets the start once more,
with networks of another seed, and both are trained on D(v).

Writes into the run folder: a folder of units for each point, `rungs/units/rung_R.npz` (the metrics of
a rung; those of the last one are of the other seed), `units/networks_*.npz` (trained networks),
`results.csv` (a row per rung and point), `accuracy.csv` (a row per trained network) and the figure
`search`.
"""

import math
from functools import cache, cached_property, partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import compute_nads, directional_bias, geometry, results, trained
from experiments.compute_nads import Point
from experiments.run import costs, origin, runner
from experiments.run.config import Fields, check_all, check_integers, check_seeds, check_sweep
from experiments.run.folder import Folder, digest
from experiments.run.plan import Arrays, Cost, Json, Member, Program, Shapes, Study, Unit, Weight
from experiments.run.targets import Estimate, Target, estimate_ensemble
from nad_jax import store, sweep_plots
from nad_jax.architectures import OPTIONS
from nad_jax.comparison import format_number
from nad_jax.contract import shape_of_variables
from nad_jax.errors import InputError, check_choice
from nad_jax.spectrum_metrics import Metric, spectrum_metrics
from nad_jax.tables import Row, format_table

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
SURE = 3.0  # standard errors from which on a difference is called one
_ROUNDING = 1e-6  # of a metric: differences of less are none


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


_NAMES = tuple(name for metric in METRICS for name in (metric, f"{metric}_sem"))


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
        self.trained = cache(lambda name: _list_trained(config, self.named[name]))
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


def count_parameters(point: Point) -> int:
    """The parameters of a point's network."""
    model = point.ensemble.model
    variables = shape_of_variables(model)
    own = variables.get("params", variables) if isinstance(variables, dict) else variables
    return sum(leaf.size for leaf in jax.tree.leaves(own))


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)
    for name in ("sweep", "accuracy"):
        if not isinstance(config[name], ConfigDict):
            raise InputError(f"{name}: must be fields by name, got {config[name]!r}")
    FIELDS.check_known(config.sweep, "sweep")
    axes = {f"sweep.{name}": values for name, values in config.sweep.items() if values != ()}
    if "sweep.seed" in axes:
        raise InputError("sweep.seed: must be (), networks are searched, not seeds of them")
    least = {"num_rungs": 1, "factor": 2, "max_parameters": 0, "num_frequencies": 2}
    check_all(
        *(partial(check_sweep, *axis) for axis in axes.items()),
        lambda: check_choice("objective", config.objective, tuple(METRICS)),
        lambda: check_choice("seek", config.seek, tuple(SEEK)),
        lambda: check_integers(config, **least),
        lambda: check_integers(config, confirm_networks=4),
        lambda: check_seeds("confirm_seed", config.confirm_seed),
        lambda: check_seeds("frequency_seed", config.frequency_seed),
    )
    if config.confirm_seed == config.seed:
        raise InputError(f"confirm_seed: must differ from seed, got {config.seed} for both")
    points = compute_nads.make_points(config)
    check_all(*(partial(geometry.validate, point.config) for point in points))
    search = Search(config)
    if len(search.space) < 2:
        budget = f" of at most {config.max_parameters:,} parameters"
        raise InputError(
            f"sweep: holds no network{budget * (config.max_parameters > 0)} besides the start"
        )
    try:
        accuracy = _read_accuracy(config, search.space[0])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"accuracy: must be fields of directional_bias: {error}") from error
    check_all(lambda: directional_bias.validate(accuracy))
    count = len(_list_directions(accuracy))
    if config.num_frequencies > count:
        raise InputError(f"num_frequencies: must be at most {count}, got {config.num_frequencies}")


def _measure(folder: Folder, rung: Rung) -> Found:
    """What a rung has found, all networks of which are stored."""
    arrays = {name: np.full(len(rung.points), np.nan) for name in _NAMES}
    for number, point in enumerate(rung.points):
        try:
            metrics = spectrum_metrics(compute_nads.find_nads(folder, point, complete=True))
        except store.StorageError:  # which may be read another time
            raise
        except InputError as error:  # its networks have no directions to rank; others may
            logging.warning("%s: has no metrics, and is ranked last: %s", point.name, error)
            continue
        for name in METRICS:
            arrays[name][number], arrays[f"{name}_sem"][number] = getattr(metrics, name)
    return Found(rung, arrays)


def _read_accuracy(config: ConfigDict, point: Point) -> ConfigDict:
    """The config of `directional_bias` that trains the network of a point."""
    own = config.accuracy.copy_and_resolve_references()
    names = (*OPTIONS, "image_shape", "initialization", "convolution")
    own.update({name: point.config[name] for name in names})
    own.update(architectures=(point.config.architecture,), poolings=(point.config.pooling,))
    own.update(widths=(point.config.width,))
    return own


def _list_trained(config: ConfigDict, point: Point) -> tuple[ConfigDict, list[Member]]:
    """The networks of a point that are trained, along frequencies that are the same for all
    points; and their config.
    """
    own = _read_accuracy(config, point)
    places = _list_directions(own)
    chosen = np.random.default_rng(config.frequency_seed).permutation(places)
    own.indices = tuple(sorted(chosen[: config.num_frequencies].tolist()))
    return own, directional_bias.make_networks(own)


def _list_directions(config: ConfigDict) -> list[int]:
    """The indices of different directions: of ±f the cosines are one."""
    coordinates = directional_bias.make_directions(config).coordinates
    return sorted({one["direction"]: one["index"] for one in reversed(coordinates)}.values())


def _make_rung(search: Search, over: list[Found], rung: Rung) -> Study:
    """The study of a rung, which the next one follows, or the training of two networks."""
    config, members = search.config, rung.members
    training = search.training
    stored, later = {(one.folder, one.name) for one in members}, []
    for number in range(rung.number + 1, search.num_rungs):
        to_come = search.first(number).members
        later += [one for one in to_come if (one.folder, one.name) not in stored]
        stored |= {(one.folder, one.name) for one in to_come}

    def shapes(member: Member) -> Shapes:
        if member.what is None:
            return dict.fromkeys(_NAMES, ("points",))
        return search.shapes(member.folder)

    def is_trained(member: Member) -> bool:
        return isinstance(member.what, trained.Trainee)

    def make_program(member: Member, chunk_size: int) -> Program:
        return search.program(member.folder.removeprefix(CONFIRMED), chunk_size)

    def measure_cost(member: Member) -> Cost:
        if is_trained(member):
            return training.measure_cost(member)
        return geometry.measure_cost(search.ensemble(member.folder))

    def weigh(member: Member) -> Weight:
        if is_trained(member):
            return training.weigh(member)
        return costs.weigh(search.ensemble(member.folder).model)

    def estimate(member: Member, given: Target) -> Estimate:
        if is_trained(member):
            return training.estimate(member, given)
        return estimate_ensemble(search.ensemble(member.folder), given)

    def then(folder: Folder) -> Study:
        if folder.missing():
            raise runner.RunAgain(
                f"{folder.workdir}: what follows rung {rung.number + 1} of {search.num_rungs} "
                "begins when it is over, and networks of it are missing; run this command again "
                "when their shards have computed them"
            )
        found, result = _measure(folder, rung), rung.result
        if rung.number < config.num_rungs:  # before the result, with which the next one begins
            _make_folders(search, folder.workdir, search.next(found))
        folder.write(Unit(result.name, [result]), found.arrays, {})
        _report_rung(search, found)
        return _under_way(search, folder)

    def collect(folder: Folder, num_missing: int) -> None:
        del num_missing  # of rungs that are not over there is nothing to rank
        if not over:
            raise runner.RunAgain(f"{folder.workdir}: the first rung is not over yet")
        _write_rungs(search, over, folder.workdir)

    return Study(
        search.identities_of(rung),
        members,
        shapes,
        make_program,
        measure_cost,
        collect,
        check=geometry.check_counted,
        resume=partial(_under_way, search),
        then=then,
        round=(rung.number, search.num_rungs + 1),
        series=_name_series(search),
        following=(*later, *training.members, *training.members),
        weigh=weigh,
        estimate=estimate,
    )


def _make_folders(search: Search, workdir: Path, rung: Rung) -> None:
    """Makes the folders of a rung's units, which say what they are of."""
    for name, identity in search.identities_of(rung).items():
        origin.open_run_folder(workdir / name, identity)
        store.make_folder(workdir / name / "units")


def _name_series(search: Search) -> str:
    return digest(np.array([repr(sorted(search.identities[""].items()))]))


def _under_way(search: Search, folder: Folder) -> Study:
    """The study that is under way in a folder."""
    over, rung = search.read(folder)
    return _make_training(search, over) if rung is None else _make_rung(search, over, rung)


def _make_training(search: Search, over: list[Found]) -> Study:
    """The networks of the start and of the best point on D(v)."""
    config, members, own = search.config, [], {}
    for place, point in zip(("start", "found"), over[-1].rung.points, strict=True):
        accuracy, networks = search.trained(point.name)
        for member in networks:
            name, program = f"{point.name} {member.name}", (point.name, *member.program)
            own[name] = accuracy, member
            said = {"network": place, **point.coordinates, **member.what.coordinates}
            what = member.what._replace(coordinates=said)
            members.append(member._replace(name=name, program=program, what=what))

    def make_setup(member: Member) -> trained.Setup:
        return directional_bias.make_setup(*own[member.name])

    def collect(folder: Folder, num_missing: int) -> None:
        _write_rungs(search, over, folder.workdir)
        rows = _list_accuracies(folder)
        store.write_text(folder.workdir / "accuracy.csv", format_table(rows, tuple(rows[0])))
        if not num_missing:
            _report(search, over, rows)

    how = directional_bias.METRICS, make_setup, collect
    identity = search.identities[""]
    study = trained.make_study(config.accuracy, identity, members, *how)

    def shapes(member: Member) -> Shapes:
        return dict.fromkeys(_NAMES, ("points",)) if member.what is None else study.shapes(member)

    return study._replace(
        identities={"": identity, RESULTS: identity},
        shapes=shapes,
        resume=partial(_under_way, search),
        round=(search.num_rungs, search.num_rungs + 1),
        series=_name_series(search),
    )


def _list_accuracies(folder: Folder) -> list[Row]:
    """The trained networks that are stored: whose they are, along what, and how they fared."""
    rows = trained.list_rows(folder, directional_bias.COLUMNS)
    rows = [row for row in rows if row["command"] == "this"]
    if not rows:
        raise runner.RunAgain(f"{folder.workdir}: no trained network is stored yet")
    return rows


def _list_rows(search: Search, over: list[Found]) -> list[Row]:
    """A row for each rung and point: its metrics, and whether it has gone on."""
    parameters = cache(lambda name: count_parameters(search.named[name]))
    names = [{point.name.removeprefix(CONFIRMED) for point in one.rung.points} for one in over]
    rows = []
    for number, found in enumerate(over):
        rung = found.rung
        for place, point in enumerate(rung.points):
            name = point.name.removeprefix(CONFIRMED)
            row = {"rung": rung.number, "is_start": int(place == 0), **point.coordinates}
            row |= {"num_parameters": parameters(name), "num_networks": rung.num_networks}
            row["seed"] = point.config.seed
            row |= {name: float(found.arrays[name][place]) for name in _NAMES}
            row["kept"] = int(name in names[number + 1]) if number + 1 < len(over) else ""
            rows.append(row)
    return rows


def _write_rungs(search: Search, over: list[Found], workdir: Path) -> None:
    rows = _list_rows(search, over)
    store.write_text(workdir / "results.csv", format_table(rows, tuple(rows[0])))


def _report_rung(search: Search, found: Found) -> None:
    """Prints what a rung says."""
    name, points = search.config.objective, found.rung.points
    best = search.rank(found)[0]
    print(
        f"rung {found.rung.number + 1} of {search.num_rungs}: {len(points)} points of "
        f"{found.rung.num_networks} networks; {name}: start {found.metric(name, 0)!r}, best "
        f"{found.metric(name, best)!r} ({points[best].name.removeprefix(CONFIRMED)})"
    )


def compare(search: Search, confirmed: Found) -> tuple[float, float]:
    """By how much the point that was found is better than the start by the objective, in units of
    the metric, and how many standard errors that is.
    """
    name = search.config.objective
    start, best = (confirmed.metric(name, place) for place in (0, 1))
    sign = SEEK[search.config.seek] * METRICS[name]
    difference = sign * (best.value - start.value)
    rounding = _ROUNDING * max(1.0, abs(start.value))
    return difference, difference / max(math.hypot(start.sem, best.sem), rounding)


def _average_seeds(rows: list[Row]) -> np.ndarray:
    """The accuracy of each direction, in the order of the rows."""
    groups = results.group(rows, lambda row: row["direction"])
    return np.array([np.mean([row["test_accuracy"] for row in one]) for one in groups.values()])


def _report(search: Search, over: list[Found], rows: list[Row]) -> None:
    """Prints the result as the reader of a log wants it."""
    config, confirmed = search.config, over[-1]
    difference, errors = compare(search, confirmed)
    point, name = confirmed.rung.points[1], config.objective
    print(
        f"{config.seek} isotropic of {len(search.space)} networks by {name}: "
        f"{point.name.removeprefix(CONFIRMED)}"
        if errors >= SURE
        else f"none found: no network of {len(search.space)} is {SURE:g} standard errors from the "
        f"start; the best is {point.name.removeprefix(CONFIRMED)}"
    )
    print(
        f"  {config.confirm_networks} networks of seed {config.confirm_seed}: "
        f"{confirmed.metric(name, 1)!r}, start {confirmed.metric(name, 0)!r}; better by "
        f"{difference:.3g}, {errors:.1f} standard errors"
    )
    by_place = {
        place: _average_seeds([row for row in rows if row["network"] == place])
        for place in ("start", "found")
    }
    gain = by_place["found"] - by_place["start"]
    print(
        f"  accuracy on D(v), {len(gain)} random frequencies: {by_place['found'].mean():.1%}, start "
        f"{by_place['start'].mean():.1%}; difference "
        f"{format_number(100 * gain.mean(), 100 * gain.std(ddof=1) / len(gain) ** 0.5)} points"
    )


def make_study(config: ConfigDict) -> Study:
    """The search of a config, from the first rung on."""
    validate(config)
    search = Search(config)
    return _make_rung(search, [], search.first(0))


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws the stored results of `workdir`: `search`."""
    validate(config)
    search = Search(config)
    folder = Folder(workdir, _make_rung(search, [], search.first(0)), repair=False)
    over, rung = search.read(folder)
    objective = config.objective
    if not over:
        raise InputError(f"{workdir}: the first rung is not over yet")
    rungs = [
        {
            "start" if place == 0 else name.removeprefix(CONFIRMED): found.metric(objective, place)
            for place, (name, *_) in enumerate(found.rung.points)
        }
        for found in over
    ]
    accuracies = {}
    if rung is None:
        study = _make_training(search, over)
        for row in _list_accuracies(folder._replace(study=study)):
            accuracies.setdefault(row["network"], []).append(row["test_accuracy"])
    figure = sweep_plots.plot_search(
        rungs,
        [found.rung.num_networks for found in over],
        accuracies,
        objective,
        f"{config.seek.capitalize()} isotropic of {len(search.space)} networks",
    )
    return results.save_figures(workdir, {"search": figure}, formats)
