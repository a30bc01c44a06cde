"""How many networks, and how many seconds, until leading subspaces agree with a converged
reference?

For each derivative there is a reference, an ensemble of another seed, marginalized and symmetrized.
It is compared, for each seed, with three ensembles that grow: with one read-out sampled per
network, with `num_readouts`, and marginalized; the last one as it is and symmetrized. Every network
has a point of its own: at a shared one the second moment of exact gradients depends on the point,
so that ensembles of two seeds do not come to agree.

Seconds are those of adding networks, initialization included; compilation and eigendecompositions
are left out. They are wall-clock time: other programs, and shards on the same machine, are in it.
Each look has about half as many networks again as the one before. An ensemble ends before the first
look that is not expected within `max_seconds`; --dry_run and progress nevertheless count it as
`max_networks`.

Writes into the run folder: `units/*.npz` (the leading directions at each look of an ensemble, some
20 MB for LeNet), `results.csv` (one row per look; rows of variant `reference` hold the overlap of
its own halves; an overlap of more directions than have been sampled is nan) and
`time_to_accuracy.png`.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import estimate, results, runner, units
from experiments.fields import check_known, check_sweep
from experiments.plan import Cost, Plan, Program, Unit
from experiments.shards import Shard
from nad_jax import errors, moments, plotting, store
from nad_jax.architectures import create_model
from nad_jax.choices import Estimator, check_symmetrized
from nad_jax.ensemble import Execution, make_key
from nad_jax.errors import InputError, check_choice, check_image_shape, check_integer, check_number
from nad_jax.estimation import find_directions, make_dense, overlap_halves
from nad_jax.geometry import make_accumulate, resolve_execution
from nad_jax.models import Model
from nad_jax.moments import Halves, halves_from_arrays, halves_to_arrays, init_halves
from nad_jax.snapshots import Snapshots
from nad_jax.store import DamagedError
from nad_jax.subspaces import subspace_overlap
from nad_jax.symmetries import representations
from nad_jax.vector_fields import DERIVATIVES

MODEL_FIELDS = ("architecture", "image_shape", "pooling", "initialization", "convolution")
# Fields that determine what a unit holds: a folder holds one set of them.
IDENTITY_FIELDS = (
    *MODEL_FIELDS, "step", "point_scale", "num_readouts", "sizes", "first_networks",
    "max_networks", "max_seconds",
    "reference_networks", "block_size", "mapping",
)  # fmt: skip
FREE_FIELDS = ("derivatives", "seeds", "reference_seed", "target_overlap")


class Ensemble(NamedTuple):
    """What a unit is.

    readout: sampled, sampled_<M> (M read-outs a network), marginalized or reference.
    variants: what is read off it; a marginalized one twice, where the model states symmetries.
    num_networks, max_seconds: where it ends.
    """

    derivative: str
    readout: str
    seed: int
    variants: tuple[str, ...]
    num_networks: int
    max_seconds: float

    @property
    def name(self) -> str:
        return f"{self.derivative},{self.readout},seed={self.seed}"


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    check_known(config, (*IDENTITY_FIELDS, *FREE_FIELDS))
    axes = ("derivatives", "seeds", "sizes")
    problems = errors.problems(*(partial(check_sweep, field, config[field]) for field in axes))
    if problems:
        raise InputError("\n".join(problems))

    def check_sizes() -> None:
        largest = int(np.prod(check_image_shape(config.image_shape))) - 1
        for size in config.sizes:
            check_integer("sizes", size, 1, largest)

    def check_target() -> None:
        check_number("target_overlap", config.target_overlap, 0.0, exclusive=True)
        if config.target_overlap > 1:
            raise InputError(f"target_overlap: must be at most 1, got {config.target_overlap!r}")

    def check_reference_seed() -> None:
        check_integer("reference_seed", config.reference_seed, 0, 2**32 - 1)
        if config.reference_seed in config.seeds:
            raise InputError(
                f"reference_seed: must not be among the seeds, got {config.reference_seed!r}"
            )

    def check_symmetries() -> None:
        model = _create_model(config)
        for derivative in config.derivatives if model.symmetries else ():
            chosen = _create_estimator(config, derivative, "marginalized")
            try:
                check_symmetrized(dataclasses.replace(chosen, symmetrized=True), model)
            except InputError as error:
                raise InputError(
                    f"point_scale: must be at least 1e-6 with derivative {derivative!r}: the "
                    "reference is symmetrized, "
                    f"and gradients of this network jump at the origin, got {config.point_scale!r}"
                ) from error

    problems = _create_estimator(config, DERIVATIVES[0], "marginalized").problems()
    problems += Execution(config.mapping).problems()
    problems += errors.problems(
        lambda: _create_model(config),
        check_sizes,
        *(
            partial(check_choice, "derivatives", derivative, DERIVATIVES)
            for derivative in config.derivatives
        ),
        *(partial(check_integer, "seeds", seed, 0, 2**32 - 1) for seed in config.seeds),
        lambda: check_integer("num_readouts", config.num_readouts, 2),
        lambda: check_integer("first_networks", config.first_networks, 2),
        lambda: check_integer("max_networks", config.max_networks, 2),
        lambda: check_number("max_seconds", config.max_seconds, 0.0, exclusive=True),
        lambda: check_integer("reference_networks", config.reference_networks, 2),
        check_reference_seed,
        check_target,
    )
    problems = problems or errors.problems(check_symmetries)
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))


def _create_model(config: ConfigDict) -> Model:
    return create_model(num_logits=1, **{name: config[name] for name in MODEL_FIELDS})


def _create_estimator(config: ConfigDict, derivative: str, readout: str) -> Estimator:
    sampled = readout.startswith("sampled")
    return Estimator(
        derivative=derivative,
        step=config.step,
        point="fresh",
        point_scale=config.point_scale,
        readout="sampled" if sampled else "marginalized",
        num_readouts=config.num_readouts if sampled and readout != "sampled" else 1,
        block_size=config.block_size,
    )


def _make_ensembles(config: ConfigDict) -> list[Ensemble]:
    """The reference of each derivative, and after it what is compared with it."""
    symmetrized = ("marginalized_symmetrized",) if _create_model(config).symmetries else ()
    several = f"sampled_{config.num_readouts}"
    readouts = {
        "sampled": ("sampled",),
        several: (several,),
        "marginalized": ("marginalized", *symmetrized),
    }
    ensembles = []
    for derivative in config.derivatives:
        ends = (config.reference_networks, math.inf)
        ensembles.append(
            Ensemble(derivative, "reference", config.reference_seed, ("reference",), *ends)
        )
        for readout, variants in readouts.items():
            ends = (config.max_networks, config.max_seconds)
            ensembles += [
                Ensemble(derivative, readout, seed, variants, *ends) for seed in config.seeds
            ]
    return ensembles


def _plan_looks(num_networks: int, chunk_size: int) -> list[int]:
    """After how many networks to look: whole chunks, each time half as many again, and in the end
    all.
    """
    looks, chunks = [], 1
    while chunks * chunk_size < num_networks:
        looks.append(chunks * chunk_size)
        chunks += max(1, chunks // 2)
    return [*looks, num_networks]


def _shapes(config: ConfigDict, ensemble: Ensemble) -> dict[str, tuple[int, ...]]:
    """What a unit holds of every look: the leading directions [K, D] of each variant, of a
    reference its split half.
    """
    shape = max(config.sizes), int(np.prod(config.image_shape))
    shapes: dict[str, tuple[int, ...]] = {
        "networks": (),
        "seconds": (),
        **dict.fromkeys(ensemble.variants, shape),
    }
    return (
        {**shapes, "split_half_overlap": (len(config.sizes),)}
        if ensemble.readout == "reference"
        else shapes
    )


def _read_off(
    config: ConfigDict, ensemble: Ensemble, halves: Halves, symmetries: tuple[str, ...]
) -> dict[str, Any]:
    """The arrays of `_shapes` that an accumulated state gives."""
    largest, shape = max(config.sizes), tuple(config.image_shape)
    plain, symmetrized = (
        moments.dense(math.prod(shape), representations(names, shape)) for names in ((), symmetries)
    )
    if ensemble.readout == "reference":
        found = find_directions(symmetrized, halves, centered=False)
        overlap = overlap_halves(found.even, found.odd, tuple(config.sizes)).astype(np.float32)
        return {"reference": found.whole.directions[:largest], "split_half_overlap": overlap}
    total = plain.merge(halves.even, halves.odd)
    readers = zip(ensemble.variants, (plain, symmetrized), strict=False)
    return {variant: one.read(total, False).directions[:largest] for variant, one in readers}


def _stack(curve: dict[str, list]) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in curve.items()}


def _make_program(
    config: ConfigDict, workdir: Path, identity: dict[str, Any], ensemble: Ensemble, chunk_size: int
) -> Program:
    """What computes the ensembles that differ from `ensemble` in their seed at most."""
    measured = _measured(config, ensemble)
    model, estimator, accumulator, execution, size, *_ = measured
    execution, _ = resolve_execution(model, estimator, execution, size)
    at_once = execution.chunk_size * jax.local_device_count()
    looks, shapes = _plan_looks(ensemble.num_networks, at_once), _shapes(config, ensemble)
    execution = execution._replace(chunk_size=chunk_size or execution.chunk_size)
    accumulate, _ = make_accumulate(model, estimator, accumulator, execution, size)
    how = {"mapping": execution.mapping, "chunk_size": execution.chunk_size}

    def check_kept(kept: dict[str, np.ndarray]) -> None:
        seen = int(kept["state_networks"]) + int(kept["state_diverged"])
        networks = kept["networks"]
        if (
            not len(networks)
            or seen != networks[-1]
            or any(len(kept[name]) != len(networks) for name in shapes)
        ):
            raise DamagedError(f"it holds {seen} networks and looks at {networks.tolist()}")

    def compute(unit: Unit, progress: Callable[[float], None], snapshots: Snapshots) -> int:
        key, halves = make_key(unit.members.seed), init_halves(accumulator)
        jax.block_until_ready(accumulate(key, halves, 0, looks[0]))  # compiles
        curve: dict[str, list] = {name: [] for name in shapes}
        if (kept := snapshots.load(check_kept)) is not None:
            state = {name.removeprefix("state_"): kept[name] for name in kept if "state_" in name}
            halves = halves_from_arrays(state, halves)
            curve = {name: list(kept[name]) for name in shapes}
        for look in looks:
            done, seconds = (
                curve[name][-1] if curve[name] else 0 for name in ("networks", "seconds")
            )
            if look <= done:  # looks of a snapshot are those of as many devices as there were then
                continue
            if done and seconds * look / done > ensemble.max_seconds:
                break
            report = partial(lambda before, networks: progress(before + networks), done)
            begun = time.perf_counter()
            halves = jax.block_until_ready(accumulate(key, halves, done, look, report))
            seconds += time.perf_counter() - begun
            found = {
                "networks": look,
                "seconds": seconds,
                **_read_off(config, ensemble, halves, model.symmetries),
            }
            for name, values in curve.items():
                values.append(found[name])
            if snapshots.due():
                state = halves_to_arrays(halves).items()
                state = {f"state_{name}": array for name, array in state}
                snapshots.save(look, {**state, **_stack(curve)})
        origin = store.describe_origin(identity, unit=unit.name, **how)
        store.write_npz(_unit_path(workdir, unit.name), {**_stack(curve), "config": origin})
        return int(halves.diverged)

    described = json.loads(str(store.describe_origin(identity, **how)))
    return Program(compute, execution.chunk_size, 2, described)


def _measured(config: ConfigDict, ensemble: Ensemble) -> estimate.Ensemble:
    """What is accumulated of an ensemble; its eigenvectors are those of no symmetries."""
    model = _create_model(config)
    estimator = _create_estimator(config, ensemble.derivative, ensemble.readout)
    execution = Execution(config.mapping)
    accumulator = make_dense(model, estimator)
    return estimate.make_ensemble(model, estimator, accumulator, execution, config.first_networks)


def _measure(config: ConfigDict, ensemble: Ensemble) -> Cost:
    """What a network costs; where an ensemble ends with its time, this divided by the networks it
    counts as.
    """
    cost = estimate.measure_ensemble(_measured(config, ensemble))
    share = ensemble.max_seconds / ensemble.num_networks
    return cost._replace(network_seconds=min(cost.network_seconds, share))


def _unit_path(workdir: Path, name: str) -> Path:
    return workdir / "units" / f"{name}.npz"


def _read_unit(
    workdir: Path, ensemble: Ensemble, config: ConfigDict, identity: dict[str, Any]
) -> dict[str, np.ndarray]:
    """A stored unit; raises `DamagedError` where it is not intact."""
    path, shapes = _unit_path(workdir, ensemble.name), _shapes(config, ensemble)
    arrays = store.read_npz(path, (*shapes, "config"))
    origin = arrays.pop("config")
    if store.check_origin(path, origin, identity).get("unit") != ensemble.name:
        raise DamagedError(f"{path}: is a unit of another ensemble")
    for name, array in arrays.items():
        if (
            array.shape != (arrays["networks"].size, *shapes[name])
            or array.dtype.kind not in "iuf"
            or not array.size
        ):
            raise DamagedError(f"{path}: {name} has shape {array.shape} of {array.dtype}")
    networks, most = arrays["networks"], ensemble.num_networks
    # Its time is over where the longest possible next look would not have been within it.
    early = (
        networks[-1] < most and arrays["seconds"][-1] * most / networks[-1] <= ensemble.max_seconds
    )
    if early or networks[-1] > most or (np.diff(networks, prepend=0) <= 0).any():
        raise DamagedError(
            f"{path}: looks at {networks.tolist()} networks, expected them to grow up to {most}"
        )
    return arrays


def _make_rows(
    config: ConfigDict, ensemble: Ensemble, arrays: dict[str, np.ndarray], reference: np.ndarray
) -> list[results.Row]:
    """The rows of the table that a unit gives, with the overlaps of its variants with a reference
    [K, D].
    """
    rows = []
    for variant in ensemble.variants:
        overlaps = [
            subspace_overlap(directions, reference, tuple(config.sizes))
            for directions in arrays[variant]
        ]
        overlaps = np.array(arrays.get("split_half_overlap", overlaps))
        if variant.startswith("sampled"):  # so many directions are all that have been seen
            seen = arrays["networks"] * (1 if variant == "sampled" else config.num_readouts)
            overlaps = np.where(np.array(config.sizes)[None] <= seen[:, None], overlaps, np.nan)
        for networks, seconds, overlap in zip(
            arrays["networks"], arrays["seconds"], overlaps, strict=True
        ):
            values = (ensemble.derivative, variant, ensemble.seed, networks, seconds, *overlap)
            rows.append(dict(zip(_columns(config), values, strict=True)))
    return rows


def _columns(config: ConfigDict) -> tuple[str, ...]:
    return (
        "derivative",
        "variant",
        "seed",
        "networks",
        "seconds",
        *(f"overlap_{size}" for size in config.sizes),
    )


def _curves(rows: list[results.Row], derivative: str) -> dict[tuple[str, int], list[results.Row]]:
    """The rows of each variant and seed, in the order of the table; the reference comes first."""
    curves: dict[tuple[str, int], list[results.Row]] = {}
    for row in rows:
        if row["derivative"] == derivative:
            curves.setdefault((row["variant"], row["seed"]), []).append(row)
    return curves


def _report(config: ConfigDict, rows: list[results.Row]) -> None:
    """Prints the first look of each curve at which the target is reached; nothing is interpolated."""
    target = config.target_overlap
    print(
        f"{config.architecture}: networks and seconds until leading subspaces overlap with the "
        f"reference by {target}"
    )
    for derivative in dict.fromkeys(row["derivative"] for row in rows):
        curves = _curves(rows, derivative)
        last = curves.pop(("reference", config.reference_seed))[-1]
        for size in config.sizes:
            overlap = f"overlap_{size}"
            halves = f"{last['networks']} networks, halves overlap by {last[overlap]:.3f}"
            print(f"  {derivative}, size {size} (reference: {halves})")
            for (variant, seed), curve in curves.items():
                reached = [row for row in curve if row[overlap] >= target]
                row = (
                    reached[0]
                    if reached
                    else max(curve, key=lambda row: np.nan_to_num(row[overlap]))
                )
                text = f"{row['networks']:6} networks {row['seconds']:8.2f} s   {row[overlap]:.3f}"
                print(
                    f"    {variant:24} seed {seed} "
                    f"{text}{'' if reached else ', the best: not reached'}"
                )


def make_plan(config: ConfigDict, workdir: Path) -> Plan:
    """The ensembles of a config as units."""
    validate(config)
    identity = {name: config[name] for name in ("experiment", *IDENTITY_FIELDS)}
    all_units = []
    for ensemble in _make_ensembles(config):
        program = (config.architecture, ensemble.derivative, ensemble.readout)
        all_units.append(Unit(ensemble.name, program, ensemble.num_networks, ensemble))
    of_program = {unit.program: unit.members for unit in all_units}

    def open_folder() -> None:
        store.open_run_folder(workdir, identity)
        store.make_folder(workdir / "units")

    def list_units(shard: Shard) -> list[Unit]:
        return all_units[shard.index :: shard.count]

    def read(unit: Unit, repair: bool) -> dict[str, np.ndarray] | None:
        read_unit = partial(_read_unit, workdir, unit.members, config, identity)
        return units.read_intact(_unit_path(workdir, unit.name), read_unit, repair)

    def find_missing(shard: Shard, repair: bool) -> list[Unit]:
        return [unit for unit in list_units(shard) if read(unit, repair) is None]

    def collect(num_missing: int) -> None:
        rows, references = [], {}
        for unit in all_units:  # a reference comes before what is compared with it
            arrays, ensemble = read(unit, True), unit.members
            if arrays is not None and ensemble.readout == "reference":
                references[ensemble.derivative] = arrays["reference"][-1]
            if arrays is not None and ensemble.derivative in references:
                rows += _make_rows(config, ensemble, arrays, references[ensemble.derivative])
        if not rows:
            raise runner.RunAgain(f"{workdir}: no reference is stored yet")
        store.write_text(workdir / "results.csv", results.format_table(rows, _columns(config)))
        units.write_command(workdir, _command(config), num_missing)
        _report(config, rows)

    return Plan(
        open_folder,
        lambda: store.check_run_folder(workdir, identity),
        list_units,
        find_missing,
        lambda program, chunk_size: _make_program(
            config, workdir, identity, of_program[program], chunk_size
        ),
        lambda program: _measure(config, of_program[program]),
        collect,
        [workdir],
    )


def _command(config: ConfigDict) -> dict[str, Any]:
    """The fields that say what is in the table of a run."""
    return {
        name: config[name] for name in (*IDENTITY_FIELDS, *FREE_FIELDS) if name != "target_overlap"
    }


def run(config: ConfigDict, workdir: Path, shard: Shard = runner.ALONE) -> bool:
    """Computes what is missing, writes `results.csv` when all is there, and prints when the target
    was reached.
    """
    return runner.run(make_plan(config, workdir), workdir, shard)


def draw(config: ConfigDict, workdir: Path) -> list[Path]:
    """Draws `results.csv` of `workdir`."""
    validate(config)
    missing = units.check_command(workdir, _command(config))
    rows = results.read_results(workdir / "results.csv", _columns(config))
    panels: dict[tuple[str, int], dict[str, list[tuple[np.ndarray, np.ndarray]]]] = {}
    halves: dict[tuple[str, int], float] = {}
    for derivative in dict.fromkeys(row["derivative"] for row in rows):
        curves = _curves(rows, derivative)
        last = curves.pop(("reference", config.reference_seed))[-1]
        for size in config.sizes:
            lines = panels.setdefault((derivative, size), {})
            halves[derivative, size] = last[f"overlap_{size}"]
            for (variant, _), curve in curves.items():
                points = [(row["seconds"], row[f"overlap_{size}"]) for row in curve]
                lines.setdefault(variant, []).append(tuple(np.transpose(points)))
    title = f"{config.architecture}: leading subspaces against a reference of {config.reference_networks} networks"
    path = workdir / "time_to_accuracy.png"
    store.save_figure(
        path, plotting.plot_time_to_accuracy(panels, halves, config.target_overlap, title + missing)
    )
    return [path]
