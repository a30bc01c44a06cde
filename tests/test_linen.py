"""What a Linen module asks for, sows and returns, and the read-out that is found in it."""

from concurrent.futures import ThreadPoolExecutor

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import (
    from_functions,
    from_linen,
    from_nnx,
    make_key,
)
from nad_jax.choices import Estimator, choose_readout
from nad_jax.errors import InputError
from tests.test_contract import SHAPE, Head, Lambda, _flat, _init, _logits, _train


class Jitted(nn.Module):
    """Its layers are traced once by Flax: a second model must find the same streams and owners."""

    @nn.compact
    def __call__(self, x, train):
        class Noise(nn.Module):
            @nn.compact
            def __call__(self, x, train):
                if self.has_rng("noise"):
                    x += jax.random.normal(self.make_rng("noise"), x.shape) * train
                return nn.Dense(4)(x)

        return nn.Dense(2)(JIT(Noise)(_flat(x), train))


JITTED = {}


def JIT(kind):
    return JITTED.setdefault("one", nn.jit(kind, static_argnums=2))()


def test_layers_that_were_traced_before_are_seen_again():
    for _ in range(2):
        model = from_linen(Jitted(), SHAPE, "reference")
        variables, x = model.init(make_key(0)), jnp.ones((5, *SHAPE))
        first, other = (
            model.apply(variables, x, jax.random.key(seed), train=True)[0] for seed in (0, 1)
        )
        assert not np.allclose(first, other)


def test_models_made_in_threads_leave_flax_as_it_was():
    methods = nn.Module.make_rng, nn.Module.has_rng, nn.Module.sow, nn.Module.perturb
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: from_linen(Noisy(), SHAPE, check=False), range(8)))
    assert methods == (nn.Module.make_rng, nn.Module.has_rng, nn.Module.sow, nn.Module.perturb)
    assert len({model.num_logits for model in made}) == 1


class Noisy(nn.Module):
    """Draws from streams of any names, of some only where they are there; layers of its own in a
    scan.
    """

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(6)(_flat(x))
        if train and self.has_rng("augment"):
            x += jax.random.normal(self.make_rng("augment"), x.shape)
        for stream in ("dropout", "drop_path"):
            x = nn.Dropout(0.5, rng_collection=stream, deterministic=not train)(x)
        return nn.Dense(2)(x)


def test_every_random_stream_has_a_key_of_its_own():
    model = from_linen(Noisy(), SHAPE)
    variables, x = model.init(make_key(0)), jnp.ones((200, *SHAPE))
    logits, _ = model.apply(variables, x, jax.random.key(0), train=True)
    again, _ = model.apply(variables, x, jax.random.key(0), train=True)
    np.testing.assert_array_equal(logits, again)
    bias = variables["params"]["Dense_1"]["bias"]
    dropped = 1 - (jnp.abs(logits - bias[None]).max(1) > 1e-6).mean()
    # Of the two masks on six units: all are off with probability (3/4)^6 = .18; with one mask it
    # would be 1/64.
    assert abs(dropped - 0.75**6) < 5 * np.sqrt(0.75**6 / 200)
    assert len(np.unique(np.asarray(logits), axis=0)) > 100  # the noise of "augment" is in them
    assert 0 <= _train(model) <= 1


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.Dropout(0.5, rng_collection="path", deterministic=not train)(
                    nn.Dense(6)(x)
                ), None

        layers = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "path": True},
            length=3,
            in_axes=nn.broadcast,
        )
        return nn.Dense(2)(layers()(nn.Dense(6)(_flat(x)), None)[0])


def test_streams_inside_of_scanned_layers_are_found():
    model = from_linen(Scanned(), SHAPE)
    variables, x = model.init(make_key(0)), jnp.ones((3, *SHAPE))
    first, other = (
        model.apply(variables, x, jax.random.key(seed), train=True)[0] for seed in (0, 1)
    )
    assert not np.allclose(first, other)


class Sows(nn.Module):
    collection: str

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(_flat(x)))
        self.sow(self.collection, "activity", x.mean())
        return nn.Dense(2)(x)


@pytest.mark.parametrize("collection", ["losses", "intermediates", "metrics"])
def test_what_is_only_sown_is_no_variable(collection):
    model = from_linen(Sows(collection), SHAPE)
    assert set(model.init(make_key(0))) == {"params", "batch_stats"}
    assert 0 <= _train(model) <= 1


class Guarded(nn.Module):
    """Reads a statistic only where it is there."""

    @nn.compact
    def __call__(self, x):
        mean = self.get_variable("stats", "mean") if self.has_variable("stats", "mean") else 0.0
        if self.is_mutable_collection("stats"):
            self.put_variable("stats", "mean", x.mean())
        return nn.Dense(2)(_flat(x) - mean)


def test_a_collection_that_is_read_where_it_is_there_is_kept():
    assert set(from_linen(Guarded(), SHAPE).init(make_key(0))) == {"params", "stats"}


class Remembers(nn.Module):
    """Reads what it writes: that is a variable, whatever its collection is called."""

    @nn.compact
    def __call__(self, x, train):
        seen = self.variable("memory", "seen", lambda: jnp.zeros(()))
        if train:
            seen.value = seen.value + 1.0
        return nn.Dense(2)(_flat(x)) + seen.value


def test_what_is_read_is_kept():
    model = from_linen(Remembers(), SHAPE)
    variables = model.init(make_key(0))
    _, updated = model.apply(variables, jnp.ones((2, *SHAPE)), jax.random.key(0), train=True)
    assert float(updated["memory"]["seen"]) == 1


def test_variables_come_back_in_the_containers_they_were_given_in():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6, kernel_init=init)(_flat(x)))
            return nn.Dense(2)(x)

    for initialization in ("flax", "reference"):
        model = from_linen(Boxed(), SHAPE, initialization)
        variables = model.init(make_key(0))
        assert isinstance(variables["params"]["Dense_0"]["kernel"], nn.LogicallyPartitioned)
        frozen = flax.core.freeze(variables)
        for given in (variables, frozen):
            _, updated = model.apply(given, jnp.ones((2, *SHAPE)), jax.random.key(0), train=True)
            assert type(updated) is type(given)
            assert jax.tree.structure(updated) == jax.tree.structure(given)


def test_a_fault_of_the_users_program_is_said_to_be_one():
    class Broken(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            if train:
                raise ZeroDivisionError("of my own making")
            return nn.Dense(2)(_flat(x))

    model = from_linen(Broken(), SHAPE)
    with pytest.raises(
        InputError,
        match=r"Broken.__call__ in training mode raised ZeroDivisionError: of my own making",
    ):
        _train(model)
    with pytest.raises(
        InputError, match=r"Lambda\.__call__ in evaluation mode raised|Head\.init raised TypeError"
    ):
        from_linen(Head(Lambda(lambda x: x @ "text")), SHAPE)
    with pytest.raises(InputError, match="factory: raised ValueError: no network today"):
        from_nnx(lambda rngs: (_ for _ in ()).throw(ValueError("no network today")), SHAPE)
    with pytest.raises(InputError, match="factory: must build an NNX module, got int"):
        from_nnx(lambda rngs: 3, SHAPE)
    with pytest.raises(InputError, match="apply: must be a function, got 3"):
        from_functions(_init, 3, SHAPE)
    with pytest.raises(InputError, match=r"must return .*raised TypeError: .*'?train'?"):
        _train(from_functions(_init, _logits, SHAPE))
    with pytest.raises(InputError, match=r"variable w is float32.* and comes back as missing"):
        _train(
            from_functions(
                _init,
                lambda v, x, key=None, train=False: (_logits(v, x), {}) if train else _logits(v, x),
                SHAPE,
            )
        )


def test_a_read_out_behind_mapped_variables_is_no_plain_one():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(nn.relu(nn.Dense(6)(_flat(x))))

    def scaled(factor):
        return lambda variables: jax.tree.map(lambda leaf: factor * leaf, variables)

    module = nn.map_variables(
        Net, "params", trans_in_fn=scaled(10.0), trans_out_fn=scaled(0.1), init=True
    )()
    model = from_linen(module, SHAPE)
    assert model.features is None and model.readout_variance is None
    with pytest.raises(InputError, match=r"of a Dense, under nn\.map_variables"):
        from_linen(module, SHAPE, "reference")


def test_the_read_out_is_a_plain_dense_layer_or_none():
    class Half(nn.Dense):
        def __call__(self, x):
            return super().__call__(x) / 2

    class Net(nn.Module):
        readout: nn.Module

        @nn.compact
        def __call__(self, x):
            return self.readout(nn.relu(nn.Dense(6)(_flat(x))))

    def scaled(x, kernel, dimensions, **options):
        return 3 * jax.lax.dot_general(x, kernel, dimensions, **options)

    assert from_linen(Net(nn.Dense(1)), SHAPE).readout_variance == pytest.approx(1 / 6)
    for readout in (
        Half(1),
        nn.Dense(1, dot_general=scaled),
        nn.DenseGeneral(1),
        nn.remat(Half)(1),
    ):
        model = from_linen(Net(readout), SHAPE)
        assert model.features is None and model.readout_variance is None


def test_what_a_read_out_asks_of_a_model_is_known_since_it_was_made():
    """Tracing a network takes longer than all else that commands check."""
    calls = []

    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x):
            calls.append(x.shape)
            return nn.Dense(1)(nn.relu(nn.Dense(3)(x)))

    model = from_linen(Counted(), (5,), check=False)
    made = len(calls)
    for readout in ("sampled", "marginalized"):
        choose_readout(model, Estimator(derivative="input_gradient", readout=readout))
    assert len(calls) == made > 0
