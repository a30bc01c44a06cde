"""How many networks are computed at once: what fits into memory."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest

import nad_jax
from experiments import compute_nads, directional_bias
from nad_jax import Execution, chunks, create_model, directions, memory, target
from nad_jax.accumulation import make_accumulate
from nad_jax.choices import Estimator
from nad_jax.estimation import Passes
from nad_jax.memory import largest_chunk
from nad_jax.moments import init_halves
from nad_jax.reading import make_dense
from tests.test_configs import load_config

SHAPE = (8, 8, 1)
RECIPE = nad_jax.Recipe(batch_size=16, num_train=32, num_test=32, num_epochs=1)


@pytest.mark.parametrize(
    ("most", "multiple", "allowed", "chunk_size", "asked"),
    [
        (32, 1, 10_000, 32, [32]),
        (32, 1, 1000, 8, [32, 8]),
        (32, 1, 100, 1, [32]),
        (32, 4, 1000, 8, [32, 8]),
        (3, 4, 1, 4, []),
        (33, 2, 10_000, 32, [32]),
    ],
)
def test_the_most_networks_are_taken_that_fit(most, multiple, allowed, chunk_size, asked):
    compiled = []

    def needs(size):
        compiled.append(size)
        return 100 + 100 * size

    assert largest_chunk(needs, most, multiple, allowed) == chunk_size
    assert compiled == asked


def test_what_cannot_be_compiled_for_want_of_memory_does_not_fit():
    compiled = []

    def needs(size):
        compiled.append(size)
        return float("inf") if size > 9 else 100 * size

    assert largest_chunk(needs, 32, 1, 1000) == 8
    assert compiled == [32, 1, 8]


def _train(model, **options):
    rows = directions.basis_pixel(SHAPE)[:5]
    return nad_jax.train_many(model, rows, recipe=RECIPE, mapping="vectorized", **options)


def _compilations(call):
    """How often an epoch of training, or what adds to an ensemble, is compiled by a call."""
    compiled = []

    def count(event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(fun_name.removeprefix("jit(").removesuffix(")"))

    jax.monitoring.register_event_duration_secs_listener(count)
    call()
    jax.monitoring.unregister_event_duration_listener(count)
    return [name for name in compiled if name.startswith(("epoch", "add_chunk"))]


def test_a_chunk_that_fits_is_compiled_once():
    model = create_model("mlp", SHAPE, num_logits=2)
    assert _compilations(lambda: _train(model)) == ["epoch"]
    model, estimator = create_model("mlp", SHAPE), Estimator("input_gradient")
    dense, execution = make_dense(model, estimator), Execution("vectorized")

    def accumulate():
        program, _ = make_accumulate(model, estimator, dense, execution, 12)
        program(nad_jax.ensemble.make_key(0), init_halves(dense), 0, 12)

    assert _compilations(accumulate) == ["add_chunk"]
    with target.compiled_for(jax.devices()[:2]):
        assert _compilations(accumulate) == ["add_chunks"]


def test_vectorized_chunks_are_what_fits_into_memory(monkeypatch):
    """A device with memory for 70 % of what more than 8 networks need."""
    model = create_model("mlp", SHAPE, num_logits=2)
    expected, sizes, make_chunk = _train(model), [], chunks.make_chunk
    monkeypatch.setattr(memory, "program_bytes", lambda program: 100 * sizes[-1])

    def remember(stages, execution):
        sizes.append(execution.chunk_size)
        return make_chunk(stages, execution)

    monkeypatch.setattr(chunks, "make_chunk", remember)
    with target.compiled_for(jax.devices()[:1], 1200):
        found = _train(model)
    assert sizes == [32, 8]
    np.testing.assert_allclose(found.losses, expected.losses, atol=1e-5)


@pytest.mark.parametrize("leading", [False, True])
def test_ensembles_are_accumulated_in_what_fits_into_memory(leading, monkeypatch):
    model, estimator = create_model("mlp", SHAPE), Estimator("input_gradient", readout="sampled")
    passes = Passes(4, 2, 4)
    accumulator = (passes.make_accumulator if leading else make_dense)(model, estimator)
    key = nad_jax.ensemble.make_key(0)
    empty = init_halves(accumulator, passes.first_basis(key, 64) if leading else None)
    sizes, needed = [], []
    program_bytes = memory.program_bytes
    monkeypatch.setattr(
        memory, "program_bytes", lambda one: needed.append(program_bytes(one)) or needed[-1]
    )
    for part in (0, 0.5, 1e-9):
        bytes_of_device = int(part * needed[0] / memory.SHARE) + 1 if part else 0
        with target.compiled_for(jax.devices()[:1], bytes_of_device):
            how = Execution("vectorized"), 64
            _, execution = make_accumulate(model, estimator, accumulator, *how, empty=empty)
        sizes.append(execution.chunk_size)
    most, fewer, fewest = sizes
    assert most == 64 and 2 < fewer < 64 and fewest == 2, (sizes, needed)


make_chunk = chunks.make_chunk


class Failing(NamedTuple):
    """A program that is compiled and cannot be carried out."""

    lower: Callable

    def __call__(self, state, data, members):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")


@pytest.mark.parametrize(("networks", "chunk_size"), [(40, 10), (14, 4), (3, 2)])
def test_each_of_several_devices_has_some_of_an_ensemble(networks, chunk_size):
    model, estimator = create_model("logreg", SHAPE), Estimator("input_gradient")
    with target.compiled_for(jax.devices()[:4]):
        how = Execution("vectorized"), networks
        _, execution = make_accumulate(model, estimator, make_dense(model, estimator), *how)
    assert execution.chunk_size == chunk_size


def _exhausted_above(size):
    """Makes stages that are out of memory where more networks than `size` are trained at once."""

    def make(stages, execution):
        chunk = make_chunk(stages, execution)

        return (
            chunk
            if execution.chunk_size <= size
            else chunk._replace(epoch=Failing(chunk.epoch.lower))
        )

    return make


def test_training_goes_on_with_half_the_chunk_where_memory_is_too_small(monkeypatch):
    model = create_model("mlp", SHAPE, num_logits=2)
    expected = _train(model)
    for module in (chunks, nad_jax.training):
        monkeypatch.setattr(module, "make_chunk", _exhausted_above(8))
    with pytest.warns(UserWarning) as said:
        found = _train(model)
    texts = [str(warning.message) for warning in said]
    assert "out of memory with 32 networks at once: 16 from now on" in texts
    assert "out of memory with 16 networks at once: 8 from now on" in texts
    np.testing.assert_allclose(found.losses, expected.losses, atol=1e-5)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        _train(model, chunk_size=16)  # it was asked for
    for module in (chunks, nad_jax.training):
        monkeypatch.setattr(module, "make_chunk", _exhausted_above(0))
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE"), pytest.warns(UserWarning):
        _train(model)


def test_sweeps_choose_what_fits_and_keep_what_is_given():
    config = load_config("directional_bias").get_config("accuracy_map")
    config.update(image_shape=SHAPE, num_train=(64,), num_test=64, batch_size=16)
    config.update(architectures=("mlp",), frequency_range=(-4, 4))
    study = directional_bias.make_study(config)
    member = study.members[0]
    assert study.make_program(member, 0).chunk_size == 1  # sequential on a CPU
    config.mapping = "vectorized"
    study = directional_bias.make_study(config)
    with target.compiled_for(jax.devices()[:1], 1):
        assert study.make_program(member, 4).chunk_size == 4
        assert study.make_program(member, 0).chunk_size == 1
    assert study.make_program(member, 0).chunk_size == 32
    config = load_config("compute_nads").get_config("mlp")
    config.update(mapping="vectorized", readout="sampled", image_shape=SHAPE, unit_size=20)
    study = compute_nads.make_study(config)
    assert study.make_program(study.members[0], 0).chunk_size == 20
    with target.compiled_for(jax.devices()[:1], 1):
        assert study.make_program(study.members[0], 0).chunk_size == 2


def test_memory_is_that_of_the_machine():
    assert 2**30 < memory.device_bytes() < 2**50
