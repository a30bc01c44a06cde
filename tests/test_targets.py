"""Programs for accelerators, compiled or lowered without one: what they take, and that their devices
have nothing to say to each other.

Those that compile for a TPU need libtpu (`pip install -e '.[tpu]'`), and a minute or two each.
"""

import importlib.util
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.run import hlo
from experiments.run.costs import Ensemble, Setup, shorten
from experiments.run.targets import estimate_ensemble, estimate_training, read_target
from nad_jax import Recipe, create_model, separable, target
from nad_jax.choices import Estimator
from nad_jax.ensemble import Execution, make_key
from nad_jax.errors import InputError
from nad_jax.estimation import Passes
from nad_jax.fitting import make_whole
from nad_jax.geometry import make_add_chunk
from nad_jax.moments import init_halves
from nad_jax.pooling import pool
from nad_jax.reading import make_dense
from nad_jax.tasks.separable import Noise

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs libtpu: pip install -e '.[tpu]'",
)
SHAPE = (32, 32, 1)
ARRAYS = {"direction": np.eye(1024)[0], "epsilon": 1.0, "sigma": 1.0}
GIB = 2**30

# Networks a chip and, at most: milliseconds a step, GFLOP, GB moved, GiB of temporary arrays. The
# least GFLOP of a LeNet is .289, of a VGG11 87.2, of a ResNet18 369.
STEPS = {
    ("lenet", 32): (2.6, 45, 3, 0.5),
    ("lenet", 128): (15, 1.1 * 128 * 0.289, 10, 1.0),
    ("vgg11", 8): (32, 1.05 * 8 * 87.2, 30, 2.0),
    ("resnet18", 4): (36, 1.05 * 4 * 369, 30, 3.0),
}


def _estimate(architecture, count, name):
    given = read_target(name)
    with target.compiled_for(given.devices, given.bytes):
        model = create_model(architecture, SHAPE, 2)
        setup = Setup(model, separable(), Recipe(num_test=1000), 0.5)
        execution = Execution(chunk_size=count * len(given.devices))
        return estimate_training(setup, ARRAYS, given, execution)


@needs_libtpu
@pytest.mark.parametrize(("architecture", "count"), STEPS)
def test_a_training_step_is_cheap_on_a_chip(architecture, count):
    found = _estimate(architecture, count, "v5e:1x1")
    milliseconds, flops, moved, temporary = STEPS[architecture, count]
    assert found.step_seconds <= milliseconds / 1e3 and found.flops <= flops * 1e9
    assert found.bytes_moved <= moved * 1e9 and found.temporary_bytes <= temporary * GIB
    assert not found.collectives and "f64[" not in found.text


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:4x4", "v5e:16x16"])
def test_chips_do_not_talk_to_each_other(name):
    found = _estimate("lenet", 32, name)
    assert not found.collectives and found.step_seconds <= 2.6e-3


@needs_libtpu
@pytest.mark.parametrize(
    ("derivative", "milliseconds"), [("central_difference", 4), ("input_gradient", 2)]
)
def test_a_chunk_of_an_ensemble_is_cheap_on_a_chip(derivative, milliseconds):
    given = read_target("v5e:1x1")
    with target.compiled_for(given.devices, given.bytes):
        model, estimator = create_model("lenet", SHAPE), Estimator(derivative)
        how = make_dense(model, estimator), Execution(chunk_size=12), 12
        found = estimate_ensemble(Ensemble(model, estimator, *how), given)
    assert found.step_seconds <= milliseconds / 1e3
    assert not found.collectives and "f64[" not in found.text


def _train(architecture):
    """A network from its initialization to its metrics, as one function, and what it takes."""
    model, task = create_model(architecture, SHAPE, 2), separable()
    recipe = shorten(Recipe(batch_size=4, num_train=20, num_test=20))
    noise = (jnp.zeros((size, 1024)) for size in (recipe.num_train, recipe.num_test))
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in ARRAYS.items()}
    return make_whole(model, recipe, task), (jax.random.key(0), 0.5, arrays, Noise(*noise))


def _ensemble(derivative, leading=False):
    """The program that adds a chunk of networks to the state of an ensemble, and what it takes."""
    model = create_model("lenet", SHAPE)
    estimator = Estimator(derivative, point="fresh", symmetrized=True)
    passes = Passes(4, 2, 4)
    accumulator = (passes.make_accumulator if leading else make_dense)(model, estimator)
    add_chunk = make_add_chunk(model, estimator, accumulator, Execution("vectorized", 4))
    basis = passes.first_basis(make_key(0), 1024) if leading else None
    ends = jnp.int32(0), jnp.int32(4)
    return add_chunk, (make_key(0), init_halves(accumulator, basis), *ends, None, None)


PROGRAMS = {
    "LeNet on D(v)": partial(_train, "lenet"),
    "ResNet18 on D(v)": partial(_train, "resnet18_w16"),
    "central difference": partial(_ensemble, "central_difference"),
    "exact gradient": partial(_ensemble, "input_gradient"),
    "sketch": partial(_ensemble, "input_gradient", leading=True),
}


@pytest.mark.parametrize("platforms", [("cuda", "rocm"), ("tpu",)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_lower_for_accelerators(program, platforms):
    """No double precision, and no call that only a CPU knows, which `export` refuses."""
    with target.compiled_for([SimpleNamespace(platform=platforms[0])]):
        function, given = PROGRAMS[program]()
        shapes = jax.eval_shape(lambda: given)
        lowered = jax.export.export(jax.jit(function), platforms=platforms)(*shapes)
    assert "f64" not in lowered.mlir_module()


def test_pooling_of_a_tpu_is_the_same_with_ties():
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (4, 9, 6, 2)), jnp.float32)

    def pooled(x, kind, size):
        return (pool(x, kind, size) ** 2 * jnp.arange(1.0, 3.0).reshape(1, 1, 1, 2)).sum()

    for kind, size in (("max", 2), ("max", 3), ("avg", 2)):
        both = []
        for platform in ("cpu", "tpu"):
            with target.compiled_for([SimpleNamespace(platform=platform)]):
                both.append(
                    jax.jit(jax.value_and_grad(pooled), static_argnums=(1, 2))(x, kind, size)
                )
        np.testing.assert_allclose(*[one[0] for one in both], rtol=1e-6)
        np.testing.assert_allclose(*[one[1] for one in both], rtol=1e-6)


HLO = """HloModule step

%body (p: f32[2]) -> f32[2] {
  %a = f32[2]{0} fusion(%p), backend_config={"estimated_cycles":"100"}
  %b = f32[2]{0} fusion(%a), backend_config={"estimated_cycles":"9223372036854775807"}
}

%cond (p: f32[2]) -> pred[] {
  %c = pred[] compare(%p, %p)
}

%to_five (p: s32[]) -> pred[] {
  %e = s32[]{:T(128)} constant(5)
  ROOT %l = pred[] compare(%p, %e), direction=LT
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %w = f32[2]{0} while(%p), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %g = f32[4]{0} all-gather-start(%w)
  %d = f32[2]{0} dot(%w, %w), backend_config={"estimated_cycles":"7"}
  %v = f32[2]{0} while(%w), condition=%to_five, body=%body
  %u = f32[2]{0} while(%v), condition=%cond, body=%body
}
"""


ENTRY = """ENTRY %main (p: f32[2]) -> f32[2] {
  %x = f32[2]{0} fusion(%p)
  %y = f32[2]{0} fusion(%x)
  %z = f32[2]{0} copy(%y)"""


def test_what_a_program_says_is_read():
    assert hlo.count_cycles(HLO) == 307 + 5 * 100 + 100  # the last loop does not say
    assert hlo.count_kernels(HLO) == 2
    assert hlo.count_kernels(HLO.replace("ENTRY %main (p: f32[2]) -> f32[2] {", ENTRY)) == 4
    assert hlo.find_collectives(HLO) == ["all-gather"]
    assert hlo.find_collectives("%all-gather.1 = f32[] add(%a, %b)") == []


@pytest.mark.parametrize("name", ["v5e", "h200", "", "v5e:"])
def test_other_targets_are_refused(name):
    with pytest.raises(InputError, match="target: must be a kind of TPU and the size of a slice"):
        read_target(name)
