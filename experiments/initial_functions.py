"""What untrained networks prefer, in three orders of one ensemble: the class that they give most
inputs (order zero), the directions of E[g gᵀ] (order one), and the frequencies of the functions that
they are, on the plane of the two leading directions and on random ones.

The networks of an architecture are the same in all three. Every architecture is one unit.

Writes into the run folder: `units/*.npz` (what was measured of each network), `results.csv` (a row
for each architecture) and the figure `orders`.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import results
from experiments.networks import read_model
from experiments.run import costs
from experiments.run.config import Fields, check_all, check_integers, check_seeds, check_sweeps
from experiments.run.folder import Folder
from experiments.run.plan import Arrays, Cost, Member, Program, RunAgain, Shapes, Study, Work
from experiments.run.progress import read_seconds
from nad_jax.accumulation import make_accumulate
from nad_jax.architectures import OPTIONS
from nad_jax.batches import jackknife, thin_looks
from nad_jax.choices import Estimator, record_choices
from nad_jax.diagnosis import check_not_zero
from nad_jax.ensemble import Execution, make_key
from nad_jax.errors import InputError, check_choice, check_image_shape, check_number, raise_problems
from nad_jax.estimation import accumulate_batches, batch_size
from nad_jax.function_plots import Orders, plot_orders
from nad_jax.function_spectrum import (
    FunctionSpectrum,
    as_spectrum,
    make_grid,
    radial_spectrum,
    transform,
)
from nad_jax.geometry import find_problems
from nad_jax.initial_bias import InitialBias, as_bias, classify
from nad_jax.models import Model
from nad_jax.moments import Halves, init_halves, sums_of_rows
from nad_jax.nads import NADs
from nad_jax.reading import check_finite, find_directions, finish, keep_batches, make_dense
from nad_jax.spectrum_metrics import Metric, spectrum_metrics
from nad_jax.untrained import evaluate, measure_networks

PLANES = ("nads", "random")
_ROUNDING = 1e-4  # of shares
# Metrics of the geometry, and the arrays of units that hold them: `leading_share` of earlier units
# is another estimate.
_METRICS = {"effective_rank": "effective_rank", "leading_share": "leading_share_of_halves"}
MEASURES = ("largest", "gamma", "effective_rank", "leading_share", "frequency_nads",
            "frequency_random")  # fmt: skip
COLUMNS = (
    "architecture", "num_networks", "num_constant", *(f"{n}{end}" for n in MEASURES for end in ("", "_sem")),
    *results.PROVENANCE,
)  # fmt: skip
FIELDS = Fields(
    "initial_functions",
    how=("num_devices", "mapping", "chunk_size"),
    grows=("architectures",),
    reports=("num_curves",),
)


Half = tuple[np.ndarray, np.ndarray]  # of batches of networks: rows g [B] and Σ g gᵀ [B, D, D]


class Found(NamedTuple):
    """What was measured of an architecture: its classes, the eigenvalues and two metrics of its
    geometry, and its spectra on both planes.
    """

    bias: InitialBias
    eigenvalues: np.ndarray
    metrics: dict[str, Metric]
    spectra: dict[str, FunctionSpectrum]

    def measures(self) -> dict[str, Metric]:
        """The numbers of the table, by the names of `MEASURES`."""
        frequencies = {
            f"frequency_{name}": one.mean_frequency for name, one in self.spectra.items()
        }
        order_zero = {"largest": self.bias.mean_largest, "gamma": self.bias.gamma}
        return {**order_zero, **self.metrics, **frequencies}

    @property
    def num_constant(self) -> int:
        """How many networks are constant on one of the planes, and have no frequency there."""
        found = [np.isnan(one.frequencies) for one in self.spectra.values()]
        return int(np.any(found, 0).sum())


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)
    check_all(
        lambda: check_sweeps(config, ("architectures",)),
        lambda: _check_plane(config.image_shape),
    )
    check_all(
        lambda: check_integers(config, num_networks=4, num_inputs=2, num_points=2, num_curves=1),
        lambda: check_seeds("seed", config.seed),
        lambda: check_number("input_scale", config.input_scale, 0.0, exclusive=True),
        lambda: check_number("plane_scale", config.plane_scale, 0.0),
        lambda: check_choice("readout", config.readout, ("marginalized", "sampled")),
        lambda: raise_problems(find_problems(_execution(config))),
        *(partial(create_network, config, name) for name in config.architectures),
    )


def _check_plane(image_shape: Any) -> None:
    if math.prod(check_image_shape(image_shape)) < 2:
        shown = "×".join(map(str, image_shape))
        raise InputError(f"image_shape: must have two entries or more, for a plane, got {shown}")


def _execution(config: ConfigDict) -> Execution:
    return Execution(config.mapping, config.chunk_size, config.num_devices)


def create_network(config: ConfigDict, architecture: str) -> Model:
    """The model of an architecture, of one logit."""
    unset = {"pooling": "default", "width": 0, **OPTIONS, "num_logits": 1}
    return read_model(ConfigDict({**config, **unset}), architecture=architecture)


def draw_inputs(config: ConfigDict) -> np.ndarray:
    """The inputs whose classes are asked for, N(0, input_scale² I), the same of all networks."""
    shape = config.num_inputs, *config.image_shape
    noise = np.random.default_rng(config.seed).normal(size=shape)
    return (config.input_scale * noise).astype(np.float32)


def measure(config: ConfigDict, architecture: str, progress: Callable[[float], None]) -> Found:
    """The three orders of an architecture."""
    model, count = create_network(config, architecture), config.num_networks
    nads, looks = estimate_geometry(config, model, lambda done: progress(done / 2))
    leading, inputs = nads.directions[:2], draw_inputs(config)
    bias, spectra = measure_functions(
        config, model, inputs, leading, lambda done: progress((count + done) / 2)
    )
    rank, share = spectrum_metrics(nads).effective_rank, measure_leading_share(looks)
    metrics = {"effective_rank": rank, "leading_share": share}
    return Found(bias, nads.eigenvalues, metrics, spectra)


def _estimator(config: ConfigDict) -> Estimator:
    how = {"point_scale": config.input_scale, "readout": config.readout}
    return Estimator("input_gradient", point="fresh", **how)


def estimate_geometry(
    config: ConfigDict, model: Model, progress: Callable[[int], None] | None = None
) -> tuple[NADs, list[Halves]]:
    """The record that `estimate_nads` has of these networks, and looks at their state as it grew,
    which `measure_leading_share` needs besides.
    """
    estimator, key, count = _estimator(config), make_key(config.seed), config.num_networks
    accumulator = make_dense(model, estimator)
    accumulate, execution = make_accumulate(
        model, estimator, accumulator, _execution(config), batch_size(count)
    )
    how = execution, key, init_halves(accumulator), count, progress
    halves, looks = accumulate_batches(accumulate, *how)
    check_finite(halves)
    check_not_zero(halves, model, estimator, key)
    found = find_directions(accumulator, halves, centered=False)
    choices = record_choices(model, estimator, execution, key)
    kept = {"looks": looks, "batches": keep_batches(model, estimator, looks)}
    return finish(accumulator, halves, found, choices, (1,), **kept), looks


def measure_functions(
    config: ConfigDict,
    model: Model,
    inputs: np.ndarray,
    plane: np.ndarray,
    progress: Callable[[int], None] | None = None,
) -> tuple[InitialBias, dict[str, FunctionSpectrum]]:
    """What `initial_bias` gives at inputs, and `function_spectrum` on a plane and on random ones, by
    one program: compiling a ResNet takes longer than evaluating all of them.
    """
    grid = config.num_points, config.plane_scale or None

    def measure_one(variables: Any, key: jax.Array, data: tuple[jax.Array, jax.Array]) -> Any:
        inputs, plane = data
        grids = [make_grid(model, one, *grid) for one in (plane, key)]
        logits = evaluate(model, variables, jnp.concatenate([inputs, *grids]))
        values = logits[len(inputs) :, 0].reshape(len(PLANES), -1)
        return classify(logits[: len(inputs)]), [transform(one) for one in values]

    how = config.num_networks, config.seed, progress, _execution(config)
    classes, spectra = measure_networks(model, measure_one, (inputs, plane), *how)
    records = map(as_spectrum, spectra)
    return as_bias(classes), dict(zip(PLANES, records, strict=True))


def measure_leading_share(looks: list[Halves]) -> Metric:
    """λ_0/tr G of an ensemble from its halves, networks of even and of odd number, and its standard
    error between networks: see `share_of_halves`.

    looks: dense states, each of which has seen the networks of the one before and more.
    """
    looks = thin_looks(looks)
    return share_of_halves(*(_split([getattr(look, n) for look in looks]) for n in ("even", "odd")))


def _split(states: list[Any]) -> Half:
    """What each state has beyond the one before."""
    counts, _, sums = zip(*map(sums_of_rows, states), strict=True)
    counts, sums = np.diff(counts, prepend=0), np.diff(np.stack(sums), axis=0, prepend=0.0)
    return counts[counts > 0], sums[counts > 0]


def share_of_halves(even: Half, odd: Half) -> Metric:
    """vᵀGv/tr G, v the leading eigenvector of one half of the networks and G of the other, the mean
    of both ways, and its standard error.

    The largest eigenvalue of few networks is too large: networks that choose v must not measure it.
    But for the bias of a ratio, the expectation is then λ_0/tr G at most: this where v is determined
    and where G is isotropic, below it where other eigenvalues are as large within errors.

    The error is that of the jackknife over batches, which chooses v anew without each. It is right
    where v is determined, and up to twice too large where it is not. nan where a half has a single
    batch.
    """
    sums, variance = [one.sum(0) for _, one in (even, odd)], 0.0
    leading = [_leading(one) for one in sums]
    whole = (_energy(leading[0], sums[1]) + _energy(leading[1], sums[0])) / 2
    for place, (counts, batches) in enumerate((even, odd)):
        own, other, v = sums[place], sums[1 - place], leading[1 - place]
        if len(counts) < 2:
            return Metric(whole, math.nan)
        rests = [own - batch for batch in batches]
        without = [(_energy(_leading(rest), other) + _energy(v, rest)) / 2 for rest in rests]
        # Halves are independent: their variances add up.
        variance += jackknife(whole, np.array(without), counts / counts.sum())[1] ** 2
    return Metric(whole, math.sqrt(variance))


def _leading(moment: np.ndarray) -> np.ndarray:
    """The eigenvector [D] of the largest eigenvalue."""
    return np.linalg.eigh(moment)[1][:, -1]


def _energy(v: np.ndarray, moment: np.ndarray) -> float:
    """vᵀGv/tr G; nan where G is zero."""
    trace = np.trace(moment)
    return float(v @ moment @ v / trace) if trace > 0 else math.nan


def _pack(found: Found) -> Arrays:
    """What was found as plain arrays."""
    arrays = {**found.bias._asdict(), "eigenvalues": found.eigenvalues}
    arrays |= {_METRICS[name]: np.array(metric) for name, metric in found.metrics.items()}
    for name, spectrum in found.spectra.items():
        arrays |= {f"{field}_{name}": one for field, one in spectrum._asdict().items()}
    return arrays


def _unpack(arrays: Arrays) -> Found:
    """The inverse of `_pack`."""
    bias = InitialBias(**{name: arrays[name] for name in InitialBias._fields})
    metrics = {name: Metric(*arrays[stored].tolist()) for name, stored in _METRICS.items()}
    spectra = {
        name: FunctionSpectrum(*(arrays[f"{field}_{name}"] for field in FunctionSpectrum._fields))
        for name in PLANES
    }
    return Found(bias, arrays["eigenvalues"], metrics, spectra)


def _shapes(config: ConfigDict) -> Shapes:
    count, size = config.num_networks, math.prod(config.image_shape)
    lengths = radial_spectrum(np.eye(config.num_points)).shares.shape
    shapes = {"fractions": (count, 2), "common": (count,), "own": (count,), "eigenvalues": (size,)}
    shapes |= dict.fromkeys(_METRICS.values(), (2,))
    for name in PLANES:
        shapes |= {f"shares_{name}": (count, *lengths), f"frequencies_{name}": (count,)}
    return shapes


def make_study(config: ConfigDict) -> Study:
    """The ensembles of a config."""
    validate(config)
    shapes = _shapes(config)
    members = [
        Member(name.replace("/", "|"), (name,), name, config.num_networks)
        for name in config.architectures
    ]

    def make_program(member: Member, chunk_size: int) -> Program:
        smaller = ConfigDict({**config, "chunk_size": chunk_size or config.chunk_size})
        execution = _execution(smaller).resolved()

        def compute(work: Work) -> tuple[Arrays, int]:
            (architecture,) = (member.what for member in work.members)
            try:
                return _pack(measure(smaller, architecture, work.progress)), 0
            except InputError as error:
                raise InputError(f"architectures: {architecture}: {error}") from error

        how = {"mapping": execution.mapping, "chunk_size": execution.chunk_size}
        how["model"] = dict(create_network(config, member.what).description)
        return Program(compute, execution.chunk_size or config.num_networks, 2, how)

    return Study(
        {"": FIELDS.identity(config)},
        members,
        lambda member: shapes,
        make_program,
        partial(_measure_cost, config),
        partial(_collect, config),
        weigh=lambda member: costs.weigh(create_network(config, member.what)),
    )


def _measure_cost(config: ConfigDict, member: Member) -> Cost:
    """What a network costs: its rows, and its values at all inputs and points."""
    model, execution = create_network(config, member.what), _execution(config)
    estimator = _estimator(config)
    accumulator = make_dense(model, estimator)
    how = execution, config.num_networks
    cost = costs.measure_ensemble(costs.Ensemble(model, estimator, accumulator, *how))
    inputs, variables = draw_inputs(config), model.init(jax.random.key(0))
    program = jax.jit(partial(evaluate, model))
    jax.block_until_ready(program(variables, inputs))  # compiled
    seconds = costs.fastest(lambda: program(variables, inputs)) / len(inputs)
    seconds *= len(inputs) + len(PLANES) * config.num_points**2
    note = "compilation of what evaluates networks is not counted"
    return cost._replace(network_seconds=cost.network_seconds + seconds, note=note)


def _collect(config: ConfigDict, folder: Folder, num_missing: int) -> None:
    """Writes and prints the table of what is stored."""
    rows, seconds = [], read_seconds(folder.workdir)
    for member, arrays in folder.stored():
        found = _unpack(arrays)
        (origin,) = folder.read_origins([member])
        said = {"architecture": member.what, "num_networks": config.num_networks}
        said |= {"num_constant": found.num_constant}
        said |= {**results.provenance(origin, "this"), "seconds": seconds.get(member.name, "")}
        counts = {"on a plane": found.num_constant, "at all inputs": found.bias.num_constant}
        constant = [f", {count} constant {where}" for where, count in counts.items() if count]
        print(f"{member.what}: {config.num_networks} networks{''.join(constant)}")
        for name, (value, sem) in found.measures().items():
            said |= {name: value, f"{name}_sem": sem}
            print(f"  {name}: {_describe(name, Metric(value, sem))}")
        predicted = found.bias.gaussian_largest
        print(f"  largest of Gaussian outputs of this gamma: {predicted:.4g}")
        rows.append(said)
    if not rows:
        raise RunAgain(f"{folder.workdir}: no ensemble is stored yet")
    results.write_table(folder.workdir, rows, COLUMNS, FIELDS.command(config), num_missing)


def _describe(name: str, metric: Metric) -> str:
    """A number as it is printed; in words what constant networks have none of."""
    if math.isinf(metric.value):
        return "infinite, outputs are constant"
    if name.startswith("frequency") and math.isnan(metric.value):
        return "none, all are constant on the plane"
    return repr(metric)


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws what is stored in `workdir`: the curves of the first `num_curves` architectures, and
    the numbers of all.
    """
    validate(config)
    _, missing = results.read_table(workdir, COLUMNS, FIELDS.command(config))
    stored = Folder(workdir, make_study(config), repair=False).stored()
    found = {member.what: _unpack(arrays) for member, arrays in stored}
    orders = {name: _as_orders(one) for name, one in found.items()}
    ramp = np.tile(np.arange(config.num_points, dtype=np.float32), (config.num_points, 1))
    size = "×".join(map(str, config.image_shape))
    title = f"{config.num_networks} untrained networks each, inputs {size}{missing}"
    linear = np.asarray(radial_spectrum(ramp).shares)
    linear = np.where(linear > _ROUNDING, linear, 0.0)  # off the axes there is nothing
    figure = plot_orders(orders, config.num_curves, linear, title)
    return results.save_figures(workdir, {"orders": figure}, formats)


def _as_orders(found: Found) -> Orders:
    size, measures = len(found.eigenvalues), found.measures()
    rank, error = measures["effective_rank"]
    measures["effective_rank"] = Metric(rank / size, error / size)
    shares = found.spectra["nads"].mean_shares
    return Orders(found.bias.fractions[:, 0], found.eigenvalues, shares, measures)
