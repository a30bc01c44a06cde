"""Models that break the contract, or that an adapter must treat with care."""

import re
from concurrent.futures import ThreadPoolExecutor

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nad_jax import (
    Recipe,
    estimate_nads,
    from_functions,
    from_linen,
    from_nnx,
    make_key,
    train_many,
)
from nad_jax.contract import named_leaves
from nad_jax.errors import InputError

SHAPE = (4, 4, 1)
DIRECTIONS = np.eye(16, dtype=np.float32)[:1]
RECIPE = Recipe(num_train=40, num_test=20, num_epochs=1, batch_size=20, loss_window=2)


def _train(model):
    return train_many(model, DIRECTIONS, recipe=RECIPE).test_accuracy[0]


def _flat(x):
    return x.reshape(len(x), -1)


def _init(key):
    return {"w": 0.1 * jax.random.normal(key, (16, 2))}


def _logits(variables, x):
    return _flat(x) @ variables["w"]


class Head(nn.Module):
    """A part between two dense layers."""

    part: nn.Module
    logits: int = 2

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.logits)(self.part(nn.Dense(6)(_flat(x))))


class Lambda(nn.Module):
    function: object

    def __call__(self, x):
        return self.function(x)


def _count_calls():
    calls = []

    def apply(variables, x):
        calls.append(None)
        return len(calls) * _logits(variables, x)

    return apply


def _draw_outside(variables, x):
    return _logits(variables, x) * np.random.default_rng().random()


def _sort_batch(variables, x):
    return jnp.sort(_logits(variables, x), axis=0)


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (lambda v, x: _logits(v, x) - _logits(v, x).mean(0)[None], "other inputs of the batch"),
        (lambda v, x: _logits(v, x) / jnp.abs(_logits(v, x)).max(), "other inputs of the batch"),
        (lambda v, x: _logits(v, x) / len(x), "or on its size"),
        (
            lambda v, x: _logits(v, x) + 0.01 * jnp.arange(len(x))[:, None],
            "other inputs of the batch",
        ),
        (_sort_batch, "other inputs of the batch"),
        (
            lambda v, x: _logits(v, x) + 1e-6 * _logits(v, x).mean(0)[None],
            "their derivative in another input",
        ),
        (_count_calls(), "change from one call to the next"),
        (_draw_outside, "change from one call to the next"),
        (lambda v, x: _logits(v, x).astype(int), "real floating-point logits, got int32"),
        (lambda v, x: _logits(v, x) + 1j, "real floating-point logits, got complex64"),
        (lambda v, x: {"logits": _logits(v, x)}, "must return logits"),
        (lambda v, x: _logits(v, x)[:, 0], "must return logits"),
        (lambda v, x: _logits(v, x[0]), r"vmap\(apply, in_axes=\(None, 0\)\)|raised TypeError"),
        (
            lambda v, x: _logits(v, x) if x.sum() > 0 else x,
            "model: apply raised TracerBoolConversionError",
        ),
        (lambda v, x: v["weights"], "model: apply raised KeyError: 'weights'"),
    ],
)
def test_evaluation_that_is_no_function_of_one_image_is_refused(apply, words):
    with pytest.raises(InputError, match=words) as raised:
        from_functions(_init, apply, SHAPE)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("shape", [(4,), (4, 2), (2, 2, 2, 1)])
def test_inputs_of_any_shape_are_told_apart_and_taken_in_batches(shape):
    def init(key):
        return jax.random.normal(key, (3, *shape))

    def one(w, x):
        return jnp.tensordot(w, x, len(shape))

    def centered(w, x):
        return jax.vmap(one, (None, 0))(w, x - x.mean(0)[None])

    with pytest.raises(InputError, match="logits of an input depend on the other inputs"):
        from_functions(init, centered, shape)
    message = f"apply takes one input of shape {shape}; it must take inputs {(2, *shape)} and"
    with pytest.raises(InputError, match=re.escape(message)):
        from_functions(init, one, shape)
    assert from_functions(init, jax.vmap(one, (None, 0)), shape).num_logits == 3


def test_a_network_that_is_unusual_but_right_is_taken():
    from_functions(_init, lambda v, x: 0 * _logits(v, x), SHAPE)
    from_functions(
        _init, lambda v, x: _logits(v, x) * jnp.inf, SHAPE
    )  # what estimates say of it is another matter
    from_functions(_init, lambda v, x: jnp.sin(_logits(v, x).astype(jnp.bfloat16)), SHAPE)
    from_functions(
        lambda key: jax.random.normal(key, (16, 1)), lambda w, x: 1e-30 * _flat(x) @ w, SHAPE
    )
    from_functions(
        lambda key: {"w": np.ones((16, 2)), "scale": 0.5},
        lambda v, x: v["scale"] * _logits(v, x),
        SHAPE,
    )


def test_variables_that_are_no_arrays_are_refused_by_name():
    init = lambda key: {"layer": {**_init(key), "activation": _flat}}  # noqa: E731
    with pytest.raises(InputError, match="got function as layer/activation"):
        from_functions(init, lambda v, x: _logits(v["layer"], x), SHAPE)
    with pytest.raises(InputError, match="got str as name"):
        from_functions(lambda key: {**_init(key), "name": "net"}, _logits, SHAPE)


def test_a_network_that_amplifies_rounding_is_no_mixture_of_images():
    def init(key):
        return {"hidden": 0.75 * jax.random.normal(key, (60, 16, 16)), "w": jnp.ones((16, 2))}

    def apply(variables, x):
        for kernel in variables["hidden"]:
            x = jnp.tanh(_flat(x) @ kernel)
        return _logits(variables, x)

    from_functions(init, apply, SHAPE)
    with pytest.raises(InputError, match="depend on the other inputs"):
        from_functions(init, lambda v, x: apply(v, x) + x.mean(), SHAPE)


def test_features_depend_on_their_image_alone():
    def features(variables, x):
        return _flat(x) - _flat(x).mean(0)[None]

    with pytest.raises(InputError, match="the features of an input depend"):
        from_functions(_init, _logits, SHAPE, features, readout_variance=1.0)


def test_behind_a_head_of_zeros_the_batch_is_still_seen():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(6)(_flat(x))
            x -= x.mean(0, keepdims=True)
            return 2 * nn.Dense(1, kernel_init=nn.initializers.zeros)(x)

    with pytest.raises(InputError, match="the logits of an input depend on the other inputs"):
        from_linen(Net(), SHAPE)


def test_initialization_that_depends_on_images_is_refused_by_name():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = _flat(x)
            return nn.Dense(1)(x * self.param("scale", lambda key: 1 / (x.std() + 1e-6)))

    with pytest.raises(InputError, match="initialization of params/scale depends on the input"):
        from_linen(Scaled(), SHAPE)


class Counts(nnx.Module):
    """Keeps how often it was called; where that enters its output, a call is no evaluation."""

    def __init__(self, rngs, enters):
        self.readout, self.count, self.enters = (
            nnx.Linear(16, 2, rngs=rngs),
            nnx.Variable(jnp.ones(())),
            enters,
        )

    def __call__(self, x):
        self.count[...] = self.count[...] + 1.0
        return self.readout(_flat(x)) * (self.count[...] if self.enters else 1.0)


class NoisyEvaluation(nnx.Module):
    def __init__(self, rngs):
        self.readout, self.rngs = nnx.Linear(16, 2, rngs=rngs), rngs

    def __call__(self, x):
        return self.readout(_flat(x)) * jax.random.normal(self.rngs.noise())


def test_what_an_nnx_module_keeps_does_not_enter_its_evaluation():
    assert from_nnx(lambda rngs: Counts(rngs, enters=False), SHAPE).num_logits == 2
    for factory in (lambda rngs: Counts(rngs, enters=True), NoisyEvaluation):
        with pytest.raises(InputError, match="change from one call to the next"):
            from_nnx(factory, SHAPE)


def test_statistics_that_training_leaves_alone_are_refused_by_name():
    module = Head(nn.BatchNorm(use_running_average=True))
    with pytest.raises(InputError, match="leaves the statistics batch_stats/part as they are"):
        from_linen(module, SHAPE)
    model = from_linen(module, SHAPE, check=False)
    assert model.description["checked"] is False
    assert estimate_nads(model, 4, logit=0, derivative="input_gradient").config["checked"] is False

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.readout = nnx.Linear(16, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
            self.norm = nnx.BatchNorm(6, rngs=rngs)

        def __call__(self, x):
            return self.readout(self.norm(self.hidden(_flat(x)), use_running_average=True))

    with pytest.raises(InputError, match="leaves the statistics norm as they are"):
        from_nnx(Net, SHAPE)


def test_a_trained_leaf_that_training_mode_changes_is_refused_by_name():
    def apply(variables, x, key=None, train=False):
        logits = _logits(variables, x)
        return (logits, {"w": 0.9 * variables["w"]}) if train else logits

    with pytest.raises(InputError, match="training mode itself changes w, which is trained"):
        from_functions(_init, apply, SHAPE)

    class Counts(nn.Module):
        @nn.compact
        def __call__(self, x):
            count = self.variable("params", "count", lambda: jnp.zeros(()))
            if self.is_mutable_collection("state"):
                count.value += 1.0
            self.variable("state", "seen", lambda: jnp.zeros(()))
            return x

    with pytest.raises(InputError, match="params"):
        _train(from_linen(Head(Counts()), SHAPE))


def test_leaves_that_cannot_be_trained_are_refused_by_name():
    class Shift(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.roll(x, self.param("shift", lambda key: jnp.ones((), jnp.int32)), 1)

    model = from_linen(Head(Shift()), SHAPE)
    with pytest.raises(InputError, match="params/part/shift is to be trained, but it is int32"):
        _train(model)

    def apply(variables, x, key=None, train=False):
        logits = _logits(variables, x)
        return (logits, variables) if train else logits

    def init(key):
        return {**_init(key), "steps": jnp.zeros((), int)}

    assert (
        0 <= _train(from_functions(init, apply, SHAPE)) <= 1
    )  # of itself it is none of those that are trained
    with pytest.raises(InputError, match="steps is to be trained, but it is int32"):
        from_functions(init, apply, SHAPE, trainable=lambda v: {"w": True, "steps": True})
    with pytest.raises(InputError, match="trainable: must give one boolean for each leaf"):
        from_functions(init, apply, SHAPE, trainable=lambda v: {"w": True})
    with pytest.raises(InputError, match="trainable: must give booleans, got 'yes' for w"):
        from_functions(init, apply, SHAPE, trainable=lambda v: {"w": "yes", "steps": False})


def test_complex_parameters_are_trained_as_pairs_of_real_ones():
    def init_pairs(key):
        return {"w": 0.1 * jax.random.normal(key, (2, 16, 2))}

    def init_complex(key):
        real, imaginary = init_pairs(key)["w"]
        return {"w": real + 1j * imaginary}

    def make_apply(as_pair):
        def apply(variables, x, key=None, train=False):
            real, imaginary = as_pair(variables["w"])
            logits = _flat(x) @ real + jnp.tanh(_flat(x) @ imaginary)
            return (logits, variables) if train else logits

        return apply

    recipe = Recipe(
        "sgd",
        {"momentum": 0.9},
        num_train=80,
        num_test=40,
        num_epochs=2,
        batch_size=20,
        weight_decay=1e-3,
    )
    pairs = from_functions(init_pairs, make_apply(lambda w: (w[0], w[1])), SHAPE)
    one = from_functions(init_complex, make_apply(lambda w: (w.real, w.imag)), SHAPE)
    losses = [
        train_many(model, DIRECTIONS, sigma=3.0, recipe=recipe).losses[0] for model in (pairs, one)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0][-1] < losses[0][0]


class Flagged(nn.Module):
    """Takes its mode under a name of its own choice."""

    flag: str

    def setup(self):
        self.hidden, self.readout, self.norm = nn.Dense(6), nn.Dense(2), nn.BatchNorm()

    def run(self, x, evaluation):
        return self.readout(self.norm(self.hidden(_flat(x)), use_running_average=evaluation))


class Inference(Flagged):
    def __call__(self, x, *, inference):
        return self.run(x, inference)


class IsTraining(Flagged):
    def __call__(self, x, is_training):
        return self.run(x, not is_training)


class Learning(Flagged):
    def __call__(self, x, scale, is_learning=False):
        return scale * self.run(x, not is_learning)


class Anything(Flagged):
    def __call__(self, *images, **options):
        return self.run(*images, options.get("frozen", False))


def test_modes_are_passed_under_the_names_that_modules_give_them():
    for module in (
        Inference("inference"),
        IsTraining("is_training"),
        nn.jit(IsTraining, static_argnums=2)(""),
    ):
        model = from_linen(module, SHAPE)
        assert model.num_logits == 2
        assert 0 <= _train(model) <= 1


def test_arguments_that_are_not_known_are_refused_by_name_or_given():
    with pytest.raises(
        InputError,
        match=r"Learning.__call__ takes 'scale', 'is_learning': give .*'is_learning': False",
    ):
        from_linen(Learning(""), SHAPE)
    values = {
        "arguments": {"scale": 0.5, "is_learning": False},
        "train_arguments": {"is_learning": True},
    }
    model = from_linen(Learning(""), SHAPE, **values)
    assert model.description["arguments"] == {"scale": "0.5", "is_learning": "False"}
    variables = model.init(make_key(0))
    whole = from_linen(
        Learning(""), SHAPE, **{**values, "arguments": {"scale": 1.0, "is_learning": False}}
    )
    x = jax.random.normal(jax.random.key(1), (3, *SHAPE))
    np.testing.assert_allclose(2 * model.apply(variables, x), whole.apply(variables, x), rtol=1e-6)
    _, updated = model.apply(variables, x, jax.random.key(0), train=True)
    assert not np.allclose(dict(named_leaves(updated))["batch_stats/norm/var"], 1)
    with pytest.raises(InputError, match=r"arguments: IsTraining.__call__ takes no 'mask'"):
        from_linen(IsTraining(""), SHAPE, arguments={"mask": None})
    with pytest.raises(InputError, match="arguments: must be a dictionary"):
        from_linen(IsTraining(""), SHAPE, arguments=[True])
    with pytest.raises(InputError, match="in evaluation mode raised ModifyScopeVariableError"):
        from_linen(Anything(""), SHAPE)
    anything = from_linen(
        Anything(""), SHAPE, arguments={"frozen": True}, train_arguments={"frozen": False}
    )
    assert 0 <= _train(anything) <= 1


class ModeOfItsOwn(nn.Module):
    training: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.training)(nn.Dense(6)(_flat(x)))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not self.training)(x))


def test_a_mode_that_is_an_attribute_of_the_module_is_set():
    for module in (ModeOfItsOwn(), ModeOfItsOwn(training=True)):
        model = from_linen(module, SHAPE)
        variables, x = model.init(make_key(0)), jnp.ones((5, *SHAPE))
        first, other = (
            model.apply(variables, x, jax.random.key(seed), train=True)[0] for seed in (0, 1)
        )
        assert not np.allclose(first, other)


class ByProperty(nn.Module):
    train: bool = False

    @property
    def deterministic(self):
        return not self.train

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=self.deterministic)(_flat(x)))


class Merged(nn.Module):
    deterministic: bool | None = True

    @nn.compact
    def __call__(self, x, deterministic=None):
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        return nn.Dense(2)(nn.Dropout(0.5)(_flat(x), deterministic=deterministic))


class OwnTrain(nnx.Module):
    """Calls its mode as NNX calls a method."""

    def __init__(self, rngs):
        self.readout, self.drop, self.train = (
            nnx.Linear(16, 2, rngs=rngs),
            nnx.Dropout(0.5, rngs=rngs),
            False,
        )

    def __call__(self, x):
        return self.readout(self.drop(_flat(x), deterministic=not self.train))


@pytest.mark.parametrize(
    "make",
    [
        lambda: from_linen(ByProperty(), SHAPE),
        lambda: from_linen(Merged(), SHAPE),
        lambda: from_linen(Merged(None), SHAPE),
        lambda: from_nnx(OwnTrain, SHAPE),
    ],
)
def test_modes_kept_in_other_ways_are_set(make):
    model = make()
    variables, x = model.init(make_key(0)), jnp.ones((5, *SHAPE))
    first, other = (
        model.apply(variables, x, jax.random.key(seed), train=True)[0] for seed in (0, 1)
    )
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(model.apply(variables, x), model.apply(variables, x))


def test_a_mode_flag_is_not_fixed_in_training_unasked():
    with pytest.raises(InputError, match="arguments: 'is_training' is a mode flag"):
        from_linen(IsTraining(""), SHAPE, arguments={"is_training": False})


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


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.drop = nnx.Linear(6, 6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.drop(self.linear(x))


class Stack(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def build(rngs):
            return Layer(rngs)

        self.embed, self.layers, self.readout = (
            nnx.Linear(16, 6, rngs=rngs),
            build(rngs),
            nnx.Linear(6, 2, rngs=rngs),
        )

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(layer, x):
            return layer(x)

        return self.readout(run(self.layers, self.embed(_flat(x))))


class GivenStreams(nnx.Module):
    """Dropout by the streams of the call, batch statistics by a flag of the call."""

    def __init__(self, rngs):
        self.hidden, self.norm = nnx.Linear(16, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        self.drop, self.readout = nnx.Dropout(0.5), nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x, training, *, rngs):
        x = self.norm(self.hidden(_flat(x)), use_running_average=not training)
        return self.readout(self.drop(x, deterministic=not training, rngs=rngs))


class OwnMode(nnx.Module):
    """Keeps its mode in an attribute of its own, and sows."""

    def __init__(self, rngs):
        self.hidden, self.readout = nnx.Linear(16, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.rngs, self.training = nnx.Rngs(noise=rngs()), True

    def __call__(self, x):
        x = self.hidden(_flat(x))
        self.sow(nnx.Intermediate, "activity", x.mean())
        return self.readout(
            x + jax.random.normal(self.rngs.noise(), x.shape) if self.training else x
        )


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
@pytest.mark.parametrize("factory", [Stack, GivenStreams, OwnMode])
def test_nnx_modules_draw_anew_in_every_training_call_and_never_in_evaluation(factory):
    model = from_nnx(factory, SHAPE)
    variables, x = model.init(make_key(0)), jnp.ones((3, *SHAPE))
    np.testing.assert_array_equal(model.apply(variables, x), model.apply(variables, x))
    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    (first, updated), (again, _), (other, _) = (
        model.apply(variables, x, key, train=True) for key in keys
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert jax.tree.structure(updated) == jax.tree.structure(variables)
    assert 0 <= _train(model) <= 1
    assert (
        estimate_nads(
            model, 4, logit=0, derivative="input_gradient", readout="sampled"
        ).eigenvalues[0]
        > 0
    )


def test_stacked_nnx_layers_have_streams_of_their_own():
    model = from_nnx(Stack, SHAPE)
    _, updated = model.apply(
        model.init(make_key(0)), jnp.ones((1, *SHAPE)), jax.random.key(0), train=True
    )
    keys = next(leaf for name, leaf in named_leaves(updated) if name.endswith("key"))
    assert keys.shape == (3,) and len(np.unique(jax.random.key_data(keys), axis=0)) == 3


def test_nnx_arguments_are_known_given_or_refused():
    class Masked(nnx.Module):
        def __init__(self, rngs):
            self.readout = nnx.Linear(16, 2, rngs=rngs)

        def __call__(self, x, mask=None):
            return self.readout(_flat(x) if mask is None else _flat(x) * mask)

    with pytest.raises(
        InputError, match=r"Masked.__call__ takes 'mask': .*arguments=\{'mask': None\}"
    ):
        from_nnx(Masked, SHAPE)
    model = from_nnx(Masked, SHAPE, arguments={"mask": 0.0})
    assert (
        np.ptp(
            model.apply(model.init(make_key(0)), jax.random.normal(jax.random.key(0), (5, *SHAPE))),
            axis=0,
        ).max()
        == 0
    )


def test_an_nnx_variable_that_a_call_makes_is_refused_by_name():
    class Lazy(nnx.Module):
        def __init__(self, rngs):
            self.readout = nnx.Linear(16, 2, rngs=rngs)

        def __call__(self, x):
            self.seen = nnx.Variable(x.mean())
            return self.readout(_flat(x))

    with pytest.raises(InputError, match="variable seen is made in a call"):
        _train(from_nnx(Lazy, SHAPE))
