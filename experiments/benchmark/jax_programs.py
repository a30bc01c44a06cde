"""What the benchmark times of nad_jax: the programs that its experiments run, with their automatic
sizes.
"""

import functools
import math
import operator
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.stopwatch import Specification, Timed, peak_host_bytes, serve
from experiments.run.costs import Ensemble, Setup, choose_training, compile_ensemble
from nad_jax.architectures import create_model, densenet
from nad_jax.choices import Estimator
from nad_jax.chunks import choose_chunks, make_chunk
from nad_jax.ensemble import Execution, make_key, member_keys
from nad_jax.fitting import make_fit
from nad_jax.geometry import count_initialized
from nad_jax.memory import program_bytes
from nad_jax.models import Model
from nad_jax.operations import count_operations
from nad_jax.reading import make_dense
from nad_jax.recipe import PRECISIONS, Recipe
from nad_jax.tasks import separable
from nad_jax.training import make_members


class Program(NamedTuple):
    """A compiled program.

    call(): runs it. work: units of work of a call. seconds: its compilation took. num_bytes: of
      arrays. chunk_size: networks at once.
    """

    call: Callable[[], Any]
    work: int
    seconds: float
    num_bytes: int
    chunk_size: int = 1


def make(spec: Specification) -> Timed:
    """The program of a specification.

    task: "initialization" and "gradient" (exact, with initialization and covariance; sampled
      read-out), in networks; "central_difference" (the same, marginalized), in networks; "step" of
      training, in steps; "directions", steps of several networks at once, in steps of one;
      "product" and "numbers": the machine's rate, in operations of matrix products and in uniform
      random numbers.
    architecture, image_shape, convolution, precision, batch_size, num_steps, num_directions: of the
      network. mapping: of several networks. chunk_size: networks at once; 0: automatic.
    """
    program = TASKS[spec["task"]](spec)
    device = jax.devices()[0]
    facts = {
        "library": f"JAX {jax.__version__}",
        "device": device.device_kind,
        "compile_seconds": program.seconds,
        "program_bytes": program.num_bytes,
        "chunk_size": program.chunk_size,
    }
    if spec["task"] not in RATES:
        facts |= dict(zip(("operations", "numbers"), _floor(spec), strict=True))

    def peak_bytes() -> int:
        return (device.memory_stats() or {}).get("peak_bytes_in_use") or peak_host_bytes()

    return Timed(lambda: jax.block_until_ready(program.call()), program.work, facts, peak_bytes)


def _compile(function: Callable[..., Any], work: int, *args: Any) -> Program:
    """The program that calls any function with these arguments."""
    begun = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - begun
    return Program(partial(program, *args), work, seconds, program_bytes(program))


def _create_model(spec: Specification, num_logits: int = 1) -> Model:
    return create_model(
        spec["architecture"], spec["image_shape"], num_logits, convolution=spec["convolution"]
    )


def _initialize(spec: Specification) -> Program:
    model = _create_model(spec)
    networks = count_initialized(model, "sequential", 1000)
    keys = member_keys(make_key(0), jnp.arange(networks))
    return _compile(jax.vmap(model.init), networks, keys)


def _estimate(spec: Specification, **choices: Any) -> Program:
    model, estimator = _create_model(spec), Estimator(**choices)
    accumulator = make_dense(model, estimator)
    how = Execution(spec["mapping"], spec["chunk_size"]), 1000
    begun = time.perf_counter()
    program, states, (key, *rest) = compile_ensemble(Ensemble(model, estimator, accumulator, *how))
    seconds = time.perf_counter() - begun

    def call() -> Any:
        nonlocal states  # its arrays are given to the program
        states = program(key, states, *rest)
        return states

    return Program(call, int(rest[1]), seconds, program_bytes(program), int(rest[1]))


def _train(spec: Specification, num_directions: int) -> Program:
    """The first epoch of networks on D(v), as an experiment trains them: so many at a time as it
    would.
    """
    model, task = _create_model(spec, num_logits=2), separable()
    sizes = dict.fromkeys(("num_train", "num_test"), spec["num_steps"] * spec["batch_size"])
    recipe = Recipe(batch_size=spec["batch_size"], precision=spec["precision"], **sizes)
    execution = Execution(spec["mapping"], spec["chunk_size"], num_devices=1)
    one = {"direction": np.eye(math.prod(model.image_shape))[0]}
    most = choose_chunks(execution).chunk_size
    execution = choose_training(
        Setup(model, task, recipe, task.learning_rate), one, execution, most
    )
    chunk_size = min(execution.chunk_size, num_directions)
    chunk = make_chunk(make_fit(model, recipe, task), execution)
    data = task.data(model, recipe, 0)
    shape = math.prod(model.image_shape), num_directions
    directions = np.linalg.qr(np.random.default_rng(0).standard_normal(shape))[0].T
    members, _ = make_members(model, task, {"direction": directions}, task.learning_rate, 0)
    members = jax.tree.map(jnp.asarray, members)
    # The last chunk is filled up.
    rows = np.resize(np.arange(num_directions), (-(-num_directions // chunk_size), chunk_size))
    chunks = [jax.tree.map(operator.itemgetter(chosen), members) for chosen in rows]
    begun = time.perf_counter()
    start = chunk.start.lower(chunks[0]).compile()
    state = jax.eval_shape(chunk.start, chunks[0])
    epoch = chunk.epoch.lower(state, data, chunks[0]).compile()
    seconds = time.perf_counter() - begun

    def call() -> None:
        for part in chunks:
            jax.block_until_ready(epoch(start(part), data, part).losses)

    work = num_directions * spec["num_steps"]
    return Program(call, work, seconds, program_bytes(epoch), chunk_size)


def _multiply(spec: Specification) -> Program:
    """Products of large matrices: on an accelerator several in a call, which takes time itself."""
    size, count = (2048, 1) if jax.default_backend() == "cpu" else (8192, 8)
    matrix = jax.random.normal(jax.random.key(0), (size, size)) / size**0.5  # norms are kept

    def multiply(x: jax.Array) -> jax.Array:
        return functools.reduce(lambda y, _: x @ y, range(count), x)

    with jax.default_matmul_precision(PRECISIONS[spec["precision"]]):
        return _compile(multiply, count * 2 * size**3, matrix)


def _draw(spec: Specification) -> Program:
    count = 2**23 if jax.default_backend() == "cpu" else 2**27
    return _compile(lambda key: jax.random.uniform(key, (count,)), count, make_key(0))


TASKS: dict[str, Callable[[Specification], Program]] = {
    "initialization": _initialize,
    "gradient": partial(_estimate, derivative="input_gradient", readout="sampled"),
    "central_difference": partial(_estimate, derivative="central_difference"),
    "step": partial(_train, num_directions=1),
    "directions": lambda spec: _train(spec, spec["num_directions"]),
    "product": _multiply,
    "numbers": _draw,
}

RATES = ("product", "numbers")  # tasks that measure the machine


def _floor(spec: Specification) -> tuple[int, int]:
    """What a unit of work cannot do without: operations in plain convolutions and products, random
    numbers.
    """
    # Loops of several layers compute with channels that are not there yet.
    looped, densenet.LOOPED = densenet.LOOPED, 1
    try:
        model = _create_model({**spec, "convolution": "lax"})
        variables = jax.eval_shape(model.init, jax.random.key(0))
        image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
        layers = list(count_operations(jax.make_jaxpr(model.apply)(variables, image).jaxpr))
    finally:
        densenet.LOOPED = looped
    # Forward and backward passes of one image cost the same.
    passes = {"initialization": 0, "gradient": 2, "central_difference": 2 * image.size}
    if spec["task"] not in passes:  # training: images need no gradient
        return spec["batch_size"] * (3 * sum(layers) - layers[0]), 0
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return passes[spec["task"]] * sum(layers), num_parameters


if __name__ == "__main__":
    serve(make)
