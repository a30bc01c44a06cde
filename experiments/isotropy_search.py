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
from functools import cache, partial
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import compute_nads, directional_bias, geometry, results, trained
from experiments.run import costs, origin, runner
from experiments.run.config import check_all, check_integers, check_seeds, check_sweep
from experiments.run.folder import Folder, digest
from experiments.run.plan import Cost, Member, Program, Shapes, Study, Unit, Weight
from experiments.run.targets import Estimate, Target, estimate_ensemble
from experiments.search_space import (
    CONFIRMED,
    FIELDS,
    METRICS,
    NAMES,
    RESULTS,
    SEEK,
    Found,
    Rung,
    Search,
    check_rungs,
    count_parameters,
    list_directions,
    read_accuracy,
)
from nad_jax import store, sweep_plots
from nad_jax.comparison import format_number
from nad_jax.errors import InputError, check_choice
from nad_jax.spectrum_metrics import spectrum_metrics
from nad_jax.tables import Row, format_table

SURE = 3.0  # standard errors from which on a difference is called one
_ROUNDING = 1e-6  # of a metric: differences of less are none


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
    check_rungs(config, len(points))  # at most so many; tracing them takes a while
    check_all(*(partial(geometry.validate, point.config) for point in points))
    search = Search(config)
    if len(search.space) < 2:
        budget = f" of at most {config.max_parameters:,} parameters"
        raise InputError(
            f"sweep: holds no network{budget * (config.max_parameters > 0)} besides the start"
        )
    check_rungs(config, len(search.space) - 1)
    try:
        accuracy = read_accuracy(config, search.space[0])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"accuracy: must be fields of directional_bias: {error}") from error
    check_all(lambda: directional_bias.validate(accuracy))
    count = len(list_directions(accuracy))
    if config.num_frequencies > count:
        raise InputError(f"num_frequencies: must be at most {count}, got {config.num_frequencies}")


def _measure(folder: Folder, rung: Rung) -> Found:
    """What a rung has found, all networks of which are stored."""
    arrays = {name: np.full(len(rung.points), np.nan) for name in NAMES}
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
            return dict.fromkeys(NAMES, ("points",))
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
        return dict.fromkeys(NAMES, ("points",)) if member.what is None else study.shapes(member)

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
            row |= {name: float(found.arrays[name][place]) for name in NAMES}
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
        place: results.mean_accuracies([row for row in rows if row["network"] == place])
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
