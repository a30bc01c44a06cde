"""How many networks, how many seconds, until leading subspaces agree with a converged reference?

For each derivative there is a reference, an ensemble of another seed, marginalized and symmetrized.
It is compared, for each seed, with three ensembles that grow: with one read-out sampled per
network, with `num_readouts`, and marginalized; the last one as it is and symmetrized. Every network
has a point of its own: at a shared one the second moment of exact gradients depends on the point,
so that ensembles of two seeds do not come to agree.

Seconds are those of adding networks, initialization included; compilation and eigendecompositions
are left out. They are wall-clock time: other programs, and shards on the same machine, are in it. Each
look has about half as many networks again as the one before. An ensemble ends before the first look
not expected within `max_seconds`; --dry_run and progress nevertheless count it as `max_networks`.

Writes into the run folder: `units/*.npz` (the leading directions at each look of an ensemble, some
20 MB for LeNet), `results.csv` (one row per look; rows of variant `reference` hold the overlap of
its own halves, others that with the first reference of their derivative, whose seed is in
`reference_seed`; an overlap of more directions than have been sampled is nan) and a figure.
"""

import dataclasses
import itertools
import math
import re
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import results
from experiments.geometry import check_measured
from experiments.looks import Ensemble, Reference, list_columns, make_rows, plot, report
from experiments.networks import read_model
from experiments.run import costs, runner
from experiments.run.config import (
    Fields,
    check_all,
    check_each,
    check_integers,
    check_seeds,
    check_sweeps,
)
from experiments.run.folder import Folder
from experiments.run.plan import Arrays, Cost, Member, Program, Study, Work
from nad_jax.accumulation import make_accumulate
from nad_jax.choices import Estimator, check_symmetrized
from nad_jax.ensemble import Execution, make_key
from nad_jax.errors import InputError, check_choice, check_input_shape, check_integer, check_number
from nad_jax.geometry import resolve_execution
from nad_jax.models import Model
from nad_jax.moments import Accumulator, Halves, halves_from_arrays, halves_to_arrays, init_halves
from nad_jax.nads import DERIVATIVES
from nad_jax.reading import find_directions, make_dense, overlap_halves
from nad_jax.store import DamagedError

FIELDS = Fields(
    "time_to_accuracy",
    how=("mapping", "block_size"),
    grows=("derivatives", "seeds", "reference_seed"),
    reports=("target_overlap",),
)


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)
    check_sweeps(config, ("derivatives", "seeds", "sizes"))

    def check_sizes() -> None:
        largest = math.prod(check_input_shape(config.image_shape)) - 1
        check_each(config, "sizes", check_integer, 1, largest)

    def check_target() -> None:
        if check_number("target_overlap", config.target_overlap, 0.0, exclusive=True) > 1:
            raise InputError(f"target_overlap: must be at most 1, got {config.target_overlap!r}")

    def check_reference_seed() -> None:
        check_seeds("reference_seed", config.reference_seed)
        if config.reference_seed in config.seeds:
            raise InputError(
                f"reference_seed: must not be among the seeds, got {config.reference_seed!r}"
            )

    counts = ("num_readouts", "first_networks", "max_networks", "reference_networks")
    check_all(
        lambda: check_measured(
            _create_estimator(config, DERIVATIVES[0], "marginalized"), Execution(config.mapping)
        ),
        lambda: _create_model(config),
        check_sizes,
        lambda: check_each(config, "derivatives", check_choice, DERIVATIVES),
        lambda: check_seeds("seeds", *config.seeds),
        lambda: check_integers(config, **dict.fromkeys(counts, 2)),
        lambda: check_number("max_seconds", config.max_seconds, 0.0, exclusive=True),
        check_reference_seed,
        check_target,
    )
    model = _create_model(config)
    for derivative in config.derivatives if model.symmetries else ():
        chosen = _create_estimator(config, derivative, "marginalized")
        try:
            check_symmetrized(dataclasses.replace(chosen, symmetrized=True), model)
        except InputError as error:
            raise InputError(
                f"point_scale: must be at least 1e-6 with derivative {derivative!r}: the reference "
                "is symmetrized, and gradients of this network jump at the origin, got "
                f"{config.point_scale!r}"
            ) from error


def _create_model(config: ConfigDict) -> Model:
    return read_model(config, num_logits=1)


def _create_estimator(config: ConfigDict, derivative: str, readout: str) -> Estimator:
    choices = {name: config[name] for name in ("step", "point_scale", "block_size")}
    if readout.startswith("sampled"):
        choices |= {"readout": "sampled", "num_readouts": int(readout.partition("_")[2] or 1)}
    return Estimator(derivative=derivative, point="fresh", **choices)


def _list_members(config: ConfigDict) -> list[Member]:
    """The reference of each derivative, and after it what is compared with it."""
    symmetrized = ("marginalized_symmetrized",) * bool(_create_model(config).symmetries)
    variants = ("sampled",), (f"sampled_{config.num_readouts}",), ("marginalized", *symmetrized)
    reference = ("reference",), config.reference_seed, math.inf
    compared = itertools.product(variants, config.seeds, [config.max_seconds])
    members = []
    for derivative, chosen in itertools.product(config.derivatives, [reference, *compared]):
        ensemble = Ensemble(derivative, *chosen)
        readout = ensemble.readout
        name = f"{derivative},{readout},seed={ensemble.seed}"
        size = config.reference_networks if readout == "reference" else config.max_networks
        program = (config.architecture, derivative, readout)
        members.append(Member(name, program, ensemble, size))
    return members


def _plan_looks(num_networks: int, chunk_size: int) -> list[int]:
    """After how many networks to look: whole chunks, each time half as many again, and in the end
    all.
    """
    looks, chunks = [], 1
    while chunks * chunk_size < num_networks:
        looks.append(chunks * chunk_size)
        chunks += max(1, chunks // 2)
    return [*looks, num_networks]


def _shapes(config: ConfigDict, member: Member) -> dict[str, tuple[int | str, ...]]:
    """What a unit holds of every look: the leading directions [K, D] of each variant, of a
    reference its split half.
    """
    directions = "looks", max(config.sizes), math.prod(config.image_shape)
    shapes = {"networks": ("looks",), "seconds": ("looks",)}
    shapes |= dict.fromkeys(member.what.variants, directions)
    if member.what.readout == "reference":
        shapes["split_half_overlap"] = ("looks", len(config.sizes))
    return shapes


def _check_looks(member: Member, arrays: Arrays) -> None:
    """Raises `DamagedError` where a unit ends before its networks and its time."""
    networks, most, end = arrays["networks"], member.num_networks, member.what.max_seconds
    # Its time is over where the longest possible next look would not have been within it.
    early = not len(networks) or (
        networks[-1] < most and arrays["seconds"][-1] * most / networks[-1] <= end
    )
    if early or networks[-1] > most or (np.diff(networks, prepend=0) <= 0).any():
        raise DamagedError(
            f"looks at {networks.tolist()} networks, expected them to grow up to {most}"
        )


def _read_off(
    sizes: tuple[int, ...],
    variants: tuple[str, ...],
    halves: Halves,
    plain: Accumulator,
    symmetrized: Accumulator,
) -> Arrays:
    """The arrays of `_shapes` that an accumulated state gives."""
    if variants == ("reference",):
        found = find_directions(symmetrized, halves, centered=False)
        overlap = overlap_halves(found.even, found.odd, sizes).astype(np.float32)
        return {"reference": found.whole.directions[: max(sizes)], "split_half_overlap": overlap}
    total = plain.merge(halves.even, halves.odd)
    readers = zip(variants, (plain, symmetrized), strict=False)
    return {name: one.read(total, False).directions[: max(sizes)] for name, one in readers}


def _stack(curve: dict[str, list]) -> Arrays:
    return {name: np.array(values) for name, values in curve.items()}


def _make_program(config: ConfigDict, like: Member, chunk_size: int) -> Program:
    """What computes the ensembles that differ from this one in their seed at most."""
    model, estimator, accumulator, execution, size, *_ = _read_ensemble(config, like.what)
    execution, _ = resolve_execution(model, estimator, execution, size)
    at_once = execution.chunk_size * len(execution.devices)
    looks, names = _plan_looks(like.num_networks, at_once), tuple(_shapes(config, like))
    execution = execution._replace(chunk_size=chunk_size or execution.chunk_size)
    accumulate, _ = make_accumulate(model, estimator, accumulator, execution, size)
    readers = accumulator, make_dense(model, dataclasses.replace(estimator, symmetrized=True))
    how = {"mapping": execution.mapping, "chunk_size": execution.chunk_size}

    def check_kept(kept: Arrays) -> None:
        seen = int(kept["state_networks"]) + int(kept["state_diverged"])
        networks, whole = kept["networks"], {len(kept[name]) for name in names}
        if not len(networks) or seen != networks[-1] or len(whole) > 1:
            raise DamagedError(f"it holds {seen} networks and looks at {networks.tolist()}")

    def compute(work: Work) -> tuple[Arrays, int]:
        (member,), progress, snapshots = work
        ensemble, halves, done, seconds = member.what, init_halves(accumulator), 0, 0.0
        key, curve = make_key(ensemble.seed), {name: [] for name in names}
        jax.block_until_ready(accumulate(key, halves, 0, looks[0]))  # compiles
        if (kept := snapshots.load(check_kept)) is not None:
            state = {name.removeprefix("state_"): kept[name] for name in kept if "state_" in name}
            halves = halves_from_arrays(state, halves)
            curve = {name: list(kept[name]) for name in names}
            done, seconds = kept["networks"][-1], kept["seconds"][-1]
        # Looks of a snapshot are those of as many devices as there were then.
        for look in [look for look in looks if look > done]:
            if done and seconds * look / done > ensemble.max_seconds:
                break
            report = partial(lambda before, networks: progress(before + networks), done)
            begun = time.perf_counter()
            halves = jax.block_until_ready(accumulate(key, halves, done, look, report))
            done, seconds = look, seconds + time.perf_counter() - begun
            found = _read_off(tuple(config.sizes), ensemble.variants, halves, *readers)
            for name, value in {"networks": done, "seconds": seconds, **found}.items():
                curve[name].append(value)
            if snapshots.due():
                state = {f"state_{n}": array for n, array in halves_to_arrays(halves).items()}
                snapshots.save(look, {**state, **_stack(curve)})
        return _stack(curve), int(halves.diverged)

    return Program(compute, execution.chunk_size, 2, how)


def _read_ensemble(config: ConfigDict, ensemble: Ensemble) -> costs.Ensemble:
    """What is accumulated; its eigenvectors are those of no symmetries."""
    model = _create_model(config)
    estimator = _create_estimator(config, ensemble.derivative, ensemble.readout)
    how = Execution(config.mapping), config.first_networks
    return costs.Ensemble(model, estimator, make_dense(model, estimator), *how)


def _measure_cost(config: ConfigDict, member: Member) -> Cost:
    """What a network costs; where an ensemble ends with its time, this divided by the networks it
    counts as.
    """
    cost = costs.measure_ensemble(_read_ensemble(config, member.what))
    share = member.what.max_seconds / member.num_networks
    return cost._replace(network_seconds=min(cost.network_seconds, share))


def _list_earlier(config: ConfigDict, folder: Folder) -> list[Member]:
    """The members that other commands have left in a folder, references first."""
    names, asked = folder.names(), {member.name for member in folder.study.members}
    found = (re.fullmatch(r".*,seed=(\d{1,10})", name) for name in names)
    wider, members = config.copy_and_resolve_references(), {}
    wider.update(derivatives=DERIVATIVES, seeds=tuple({int(one[1]) for one in found if one}))
    for seed in wider.seeds:
        wider.reference_seed = seed
        members |= {one.name: one for one in _list_members(wider)}
    left = (one for one in members.values() if one.name in {*names} - asked)
    return sorted(left, key=lambda member: member.what.readout != "reference")


def make_study(config: ConfigDict) -> Study:
    """The ensembles of a config."""
    validate(config)

    def collect(folder: Folder, num_missing: int) -> None:
        rows, references = [], {}  # by their derivatives
        asked = {"this": folder.study.members, "earlier": _list_earlier(config, folder)}
        for command, member in ((name, one) for name, several in asked.items() for one in several):
            if (arrays := folder.read(member)) is None:
                continue
            ensemble = member.what
            reference = references.get(ensemble.derivative, Reference(ensemble.seed, None))
            if is_reference := ensemble.readout == "reference":  # before what is compared with it
                reference = Reference(ensemble.seed, arrays["reference"][-1])
                references.setdefault(ensemble.derivative, reference)
            # Of one seed, an ensemble has networks of its reference.
            if is_reference or reference.seed != ensemble.seed:
                found = make_rows(config, ensemble, arrays, reference)
                for said in folder.read_origins([member]):
                    rows += [{**row, **results.provenance(said, command)} for row in found]
        if not any(row["command"] == "this" for row in rows):
            raise runner.RunAgain(f"{folder.workdir}: no reference is stored yet")
        table = (folder.workdir, rows, list_columns(config), FIELDS.command(config), num_missing)
        report(config, results.write_table(*table))

    return Study(
        {"": FIELDS.identity(config)},
        _list_members(config),
        partial(_shapes, config),
        partial(_make_program, config),
        partial(_measure_cost, config),
        collect,
        check=_check_looks,
    )


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws `results.csv` of `workdir`."""
    validate(config)
    rows, missing = results.read_table(workdir, list_columns(config), FIELDS.command(config))
    return results.save_figures(workdir, {"time_to_accuracy": plot(config, rows, missing)}, formats)
