"""What the benchmark times of nad_jax: the programs that its experiments run, with their automatic
sizes.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.stopwatch import Timed, peak_host_bytes, serve
from experiments.run.costs import choose_chunk, compile_ensemble, make_ensemble, program_bytes
from nad_jax import ensemble
from nad_jax.architectures import create_model, densenet
from nad_jax.choices import Estimator
from nad_jax.chunks import choose_chunks, make_chunk
from nad_jax.ensemble import Execution
from nad_jax.estimation import make_dense
from nad_jax.fitting import make_fit
from nad_jax.geometry import count_initialized
from nad_jax.models import Model
from nad_jax.recipe import PRECISIONS, Recipe
from nad_jax.tasks import separable
from nad_jax.training import make_members

Program = tuple[
    Callable[[], Any], int, float, int
]  # call, units of work, seconds to compile, bytes of arrays


def make(spec: dict[str, Any]) -> Timed:
    """The program of a specification.

    task: "initialization" and "gradient" (exact, with initialization and covariance; sampled
      read-out), in networks; "central_difference" (the same, marginalized), in networks; "step" of
      training, in steps; "directions", steps of several networks at once, in steps of one;
      "product" and "numbers": the machine's rate, in operations of matrix products and in uniform
      random numbers.
    architecture, image_shape, convolution, precision, batch_size, num_steps, num_directions: of the
      network.
    """
    call, work, compile_seconds, num_bytes = TASKS[spec["task"]](spec)
    device = jax.devices()[0]
    facts = {
        "library": f"JAX {jax.__version__}",
        "device": device.device_kind,
        "compile_seconds": compile_seconds,
        "program_bytes": num_bytes,
    }
    if spec["task"] in FORWARD_PASSES:
        facts |= dict(zip(("operations", "numbers"), _floor(spec), strict=True))
    stats = device.memory_stats() or {}
    peak = (
        (lambda: device.memory_stats()["peak_bytes_in_use"])
        if "peak_bytes_in_use" in stats
        else peak_host_bytes
    )
    return Timed(lambda: jax.block_until_ready(call()), work, facts, peak)


def _compile(function: Callable, *args: Any) -> tuple[Callable, float, int]:
    begun = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    return program, time.perf_counter() - begun, program_bytes(program)


def _create_model(spec: dict[str, Any], num_logits: int = 1) -> Model:
    return create_model(
        spec["architecture"], spec["image_shape"], num_logits, convolution=spec["convolution"]
    )


def _initialize(spec: dict[str, Any]) -> Program:
    model = _create_model(spec)
    networks = count_initialized(model, "sequential", 1000)
    keys = ensemble.member_keys(ensemble.make_key(0), jnp.arange(networks))
    program, seconds, num_bytes = _compile(jax.vmap(model.init), keys)
    return lambda: program(keys), networks, seconds, num_bytes


def _estimate(spec: dict[str, Any], **choices: Any) -> Program:
    model = _create_model(spec)
    estimator = Estimator(**choices)
    accumulator = make_dense(model, estimator)
    measured = make_ensemble(model, estimator, accumulator, Execution(), 1000)
    measured = measured._replace(execution=choose_chunk(measured))
    begun = time.perf_counter()
    program, (key, *rest) = compile_ensemble(measured)
    seconds, halves = time.perf_counter() - begun, measured.make_empty()

    def call() -> Any:
        nonlocal halves  # its arrays are given to the program
        halves = program(key, halves, *rest)
        return halves

    return call, int(rest[1]), seconds, program_bytes(program)


def _train(spec: dict[str, Any], num_directions: int) -> Program:
    """The first epoch of networks on D(v), as an experiment trains them: so many at a time as it
    would.
    """
    model, count = _create_model(spec, num_logits=2), spec["num_steps"] * spec["batch_size"]
    recipe = Recipe(
        num_train=count, num_test=count, batch_size=spec["batch_size"], precision=spec["precision"]
    )
    execution = choose_chunks(Execution(num_devices=1))
    chunk_size = min(execution.chunk_size, num_directions)
    task = separable()
    chunk = make_chunk(make_fit(model, recipe, task), execution)
    dimension = int(np.prod(model.image_shape))
    data = task.data(model, recipe, 0)
    directions = np.linalg.qr(
        np.random.default_rng(0).standard_normal((dimension, num_directions))
    )[0].T
    members, _ = make_members(model, task, {"direction": directions}, task.learning_rate, 0)
    # The last chunk is filled up.
    shape = -(-num_directions // chunk_size), chunk_size
    rows = np.resize(np.arange(num_directions), shape)
    members = jax.tree.map(jnp.asarray, members)
    chunks = [jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], members) for chosen in rows]
    begun = time.perf_counter()
    start = chunk.start.lower(chunks[0]).compile()
    state = jax.eval_shape(chunk.start, chunks[0])
    epoch = chunk.epoch.lower(state, data, chunks[0]).compile()
    seconds = time.perf_counter() - begun

    def call() -> None:
        for part in chunks:
            jax.block_until_ready(epoch(start(part), data, part).losses)

    return call, num_directions * spec["num_steps"], seconds, program_bytes(epoch)


def _multiply(spec: dict[str, Any]) -> Program:
    matrix = jax.random.normal(jax.random.key(0), (2048, 2048))
    with jax.default_matmul_precision(PRECISIONS[spec["precision"]]):
        program, seconds, num_bytes = _compile(jnp.matmul, matrix, matrix)
    return lambda: program(matrix, matrix), 2 * 2048**3, seconds, num_bytes


def _draw(spec: dict[str, Any]) -> Program:
    key = ensemble.make_key(0)
    program, seconds, num_bytes = _compile(lambda key: jax.random.uniform(key, (2**23,)), key)
    return lambda: program(key), 2**23, seconds, num_bytes


TASKS: dict[str, Callable[[dict[str, Any]], Program]] = {
    "initialization": _initialize,
    "gradient": partial(_estimate, derivative="input_gradient", readout="sampled"),
    "central_difference": _estimate,
    "step": partial(_train, num_directions=1),
    "directions": lambda spec: _train(spec, spec["num_directions"]),
    "product": _multiply,
    "numbers": _draw,
}

# Of one image, that a unit of work needs: forward and backward passes cost the same. D and B are
# filled in.
FORWARD_PASSES = {
    "initialization": lambda dimension, batch_size: 0,
    "gradient": lambda dimension, batch_size: 2,
    "central_difference": lambda dimension, batch_size: 2 * dimension,
    "step": lambda dimension, batch_size: 3 * batch_size,
    "directions": lambda dimension, batch_size: 3 * batch_size,
}


def _num_parameters(model: Model) -> int:
    return sum(
        leaf.size
        for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))["params"])
    )


def _floor(spec: dict[str, Any]) -> tuple[int, int]:
    """What a unit of work cannot do without: operations in plain convolutions and products, random
    numbers.
    """
    looped, densenet.LOOPED = (
        densenet.LOOPED,
        1,
    )  # loops of several layers compute with channels that are not there yet
    try:
        model = create_model(spec["architecture"], spec["image_shape"], convolution="lax")
        variables = jax.eval_shape(model.init, jax.random.key(0))
        image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
        layers = list(count_operations(jax.make_jaxpr(model.apply)(variables, image).jaxpr))
    finally:
        densenet.LOOPED = looped
    passes = FORWARD_PASSES[spec["task"]](image.size, spec["batch_size"])
    operations = passes * sum(layers)
    if spec["task"] in ("step", "directions"):  # images need no gradient
        return operations - spec["batch_size"] * layers[0], 0
    return operations, _num_parameters(model)


def count_operations(jaxpr: Any) -> Iterator[int]:
    """The multiplications and additions of each convolution and matrix product of a program, in
    order.
    """
    for equation in jaxpr.eqns:
        name, output = equation.primitive.name, equation.outvars[0].aval
        if name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval, equation.params["dimension_numbers"]
            yield 2 * output.size * kernel.size // kernel.shape[numbers.rhs_spec[0]]
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            yield (
                2
                * output.size
                * int(np.prod([equation.invars[0].aval.shape[axis] for axis in contracted]))
            )
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            layers = list(count_operations(inner))
            yield from layers * equation.params.get("length", 1)  # of a scan


if __name__ == "__main__":
    serve(make)
