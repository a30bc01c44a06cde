"""The geometry of an ensemble of networks, E[g gᵀ], from their rows g.

A law of networks θ, points x and a vector field g on input space give rows g [D]; their second
moment is the geometry ("average geometry" of GIH and SAD), its eigenvectors are the directions.
Each network n depends on (key, n) alone.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from nad_jax import memory, target
from nad_jax.choices import Estimator, choose_points, choose_readout
from nad_jax.contract import reported, shape_of_variables
from nad_jax.ensemble import (
    Execution,
    map_members,
    member_keys,
    named_key,
    padded_members,
)
from nad_jax.errors import InputError, raise_problems
from nad_jax.models import Model
from nad_jax.moments import (
    Accumulator,
    Halves,
    State,
)
from nad_jax.points import Points, shape_of_points
from nad_jax.vector_fields import count_together

_ROWS = 2**20  # numbers of a chunk on a CPU, 4 MB: they stay in the cache, and progress is steady
_SHARE = 64  # part of the memory of an accelerator that they are: there each chunk has a price
_VARIABLES = 2**20  # numbers of networks that are initialized together, which draws at full speed


Rows = Callable[[Any, jax.Array, Any], jax.Array]
Measure = Callable[[Any, jax.Array, Halves, jax.Array, Any, jax.Array], Halves]


def split_member(key: jax.Array) -> jax.Array:
    """Keys [3] of a network, from its own: of its variables, of its read-outs, of its points."""
    return jax.random.split(key, 3)


def make_rows(model: Model, estimator: Estimator, points: Points | None = None) -> Rows:
    """Builds `rows(variables, key, pool) -> [P, R, D]`, of one network at P points.

    The mean of g gᵀ over all rows of all networks is the geometry. `key` is of the network, see
    `split_member`; `pool` from `Points.prepare`.

    Raises:
      InputError: where the estimator's values are wrong or do not fit the model.
    """
    readout = choose_readout(model, estimator)
    points, field = choose_points(model, estimator, points), estimator.make_field()

    def rows(variables: Any, key: jax.Array, pool: Any) -> jax.Array:
        _, readout_key, point_key = split_member(key)
        field_key = named_key(readout_key, "field")
        network, drawn = readout.draw(readout_key), points.draw(pool, point_key)

        def at(point: jax.Array, key: jax.Array) -> jax.Array:
            return readout.scale * field(network, variables, point, key).astype(jnp.float32)

        if len(drawn) == 1:
            return at(drawn[0], field_key)[None]
        keys = jax.random.split(field_key, len(drawn))
        # A field of several rows has batches of its own.
        single = estimator.derivative == "input_gradient" and not estimator.from_features
        together = count_together(drawn.shape[1:]) if single else None
        return jax.lax.map(lambda pair: at(*pair), (drawn, keys), batch_size=together)

    return rows


def add_rows(
    accumulator: Accumulator,
    halves: Halves,
    rows: jax.Array,
    valid: jax.Array,
    split_points: bool = False,
    numbers: jax.Array | None = None,
) -> Halves:
    """Adds the rows [N, P, R, D] of networks to the two halves.

    Those where `valid` [N] is False are left out; so are those with a row that is not finite, which
    are counted.

    Args:
      split_points: the halves are those of points of even and of odd number.
      numbers: [N], of the networks; None: consecutive, the first is even.
    """
    _, num_points, num_rows, dimension = rows.shape
    finite = jnp.isfinite(rows).all((1, 2, 3))
    networks = jnp.sum(valid & finite, dtype=jnp.int32)
    diverged = jnp.sum(valid & ~finite, dtype=jnp.int32)
    rows = rows.reshape(-1, num_rows if split_points else num_points * num_rows, dimension)
    valid = jnp.repeat(valid & finite, num_points * num_rows).reshape(rows.shape[:2])

    def half(state: State, parity: int) -> State:
        if numbers is None:
            mine, chosen = rows[parity::2], valid[parity::2]
        else:
            mine, chosen = rows, valid & (numbers % 2 == parity)[:, None]
        return accumulator.update(state, mine.reshape(-1, dimension), chosen.reshape(-1))

    even, odd = half(halves.even, 0), half(halves.odd, 1)
    return Halves(even, odd, halves.networks + networks, halves.diverged + diverged)


def make_measure(
    model: Model,
    estimator: Estimator,
    accumulator: Accumulator,
    points: Points | None = None,
    mapping: str = "sequential",
) -> Measure:
    """Builds `measure(variables, keys, halves, valid, pool, numbers) -> halves` of given networks,
    initialized or trained; pure.

    The state has then also seen the N networks of `variables`, every leaf [N, …], and `numbers`
    [N], of which those that are not `valid` [N] are left out; `keys` [N] are of their read-outs and
    points, `pool` is from `Points.prepare`.

    Raises:
      InputError: where the estimator's values are wrong or do not fit the model.
    """
    rows_of = make_rows(model, estimator, points)

    def measure(
        variables: Any,
        keys: jax.Array,
        halves: Halves,
        valid: jax.Array,
        pool: Any,
        numbers: jax.Array,
    ) -> Halves:
        # TensorFloat-32 and bfloat16, the accelerators' defaults, would spoil small eigenvalues.
        with jax.default_matmul_precision("highest"):
            rows = map_members(partial(rows_of, pool=pool), mapping, variables, keys)
            return add_rows(accumulator, halves, rows, valid, numbers=numbers)

    return measure


def count_initialized(model: Model, mapping: str, chunk_size: int) -> int:
    """How many networks are initialized at a time: small ones together, which draws at full speed."""
    if mapping == "vectorized":
        return chunk_size
    leaves = jax.tree.leaves(shape_of_variables(model))
    most = max(1, _VARIABLES // max(1, sum(leaf.size for leaf in leaves)))
    return max(size for size in range(1, min(most, chunk_size) + 1) if chunk_size % size == 0)


def find_problems(execution: Execution) -> list[str]:
    """What is wrong with how an ensemble is to be accumulated, one line each."""
    problems = execution.problems()
    if not problems and execution.chunk_size % 2:
        problems.append(
            f"chunk_size: must be even (halves of even and odd members), got {execution.chunk_size}"
        )
    return problems


def resolve_execution(
    model: Model,
    estimator: Estimator,
    execution: Execution,
    num_networks: int,
    points: Points | None = None,
) -> tuple[Execution, int]:
    """How an ensemble is accumulated without automatic choices, and the rows that a network gives.

    No automatic chunk is larger than a device's share of `num_networks`; whether it fits into memory
    is not asked here (see `accumulation.Programs.choose`).

    Raises:
      InputError: where values are wrong or do not fit the model.
    """
    raise_problems(find_problems(execution))
    execution, dimension = execution.resolved(), math.prod(model.image_shape)
    readout, law = choose_readout(model, estimator), choose_points(model, estimator, points)
    num_rows, field = readout.num_outputs, estimator.make_field()

    def rows(key: jax.Array) -> jax.Array:
        return field(readout.draw(key), model.init(key), jnp.zeros(model.image_shape), key)

    if callable(estimator.derivative):  # others give a row of each output
        with reported("derivative"):
            shape = jax.eval_shape(rows, jax.random.key(0)).shape
        if len(shape) != 2 or shape[1] != dimension:
            raise InputError(f"derivative: must give rows [R, {dimension}], got shape {shape}")
        num_rows = shape[0]
    num_rows *= shape_of_points(law)[0]
    if num_networks == 1:
        execution = execution._replace(chunk_size=1)
    if execution.chunk_size == 0:
        on_cpu = target.platform() == "cpu"
        numbers = _ROWS if on_cpu else memory.device_bytes() // (4 * _SHARE)
        pairs = numbers // (2 * num_rows * dimension)
        each = -(-num_networks // len(execution.devices))  # so that every device has some
        chunk_size = 2 * max(1, min(pairs, 256, (each + 1) // 2))
        execution = execution._replace(chunk_size=chunk_size)
    return execution, num_rows


def make_add_chunk(
    model: Model,
    estimator: Estimator,
    accumulator: Accumulator,
    execution: Execution,
    points: Points | None = None,
    split_points: bool = False,
) -> jax.stages.Wrapped:
    """Builds `add_chunk(key, halves, first, stop, data, variables) -> halves`, compiled.

    It adds the networks first … min(stop, first + chunk_size) − 1, for an `execution` without
    automatic choices. `data` is that of the law of points; `variables` are of these networks, None:
    as `model.init` draws them.
    """
    rows_of, points = make_rows(model, estimator, points), choose_points(model, estimator, points)
    chunk_size, mapping = execution.chunk_size, execution.mapping
    together = count_initialized(model, mapping, chunk_size)

    @partial(jax.jit, donate_argnums=1)
    def add_chunk(
        key: jax.Array,
        halves: Halves,
        first: jax.Array,
        stop: jax.Array,
        data: Any,
        variables: Any,
    ) -> Halves:
        with jax.default_matmul_precision("highest"):  # see `make_measure`
            pool = points.prepare(named_key(key, "point"), data)
            members, valid = padded_members(first, stop, chunk_size)
            keys = member_keys(named_key(key, "networks"), members)

            def rows_of_block(block: tuple[jax.Array, Any]) -> jax.Array:
                keys, variables = block
                if variables is None:
                    variables = jax.vmap(model.init)(jax.vmap(split_member)(keys)[:, 0])
                return map_members(partial(rows_of, pool=pool), mapping, variables, keys)

            blocks = jax.tree.map(
                lambda leaf: leaf.reshape(-1, together, *leaf.shape[1:]), (keys, variables)
            )
            rows = jax.lax.map(rows_of_block, blocks)
            rows = rows.reshape(chunk_size, *rows.shape[2:])
            return add_rows(accumulator, halves, rows, valid, split_points)

    return add_chunk
