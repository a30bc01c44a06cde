"""Training one network on D(v) as a pure function, and many of them, one for each direction.

Source of the default recipe: NAD, reference code; see `Recipe`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nad_jax import ensemble, errors, separable
from nad_jax.directions import direction_identity
from nad_jax.errors import InputError, check_choice, check_integer, check_number, unknown
from nad_jax.models import Model, split_trainable
from nad_jax.separable import Noise

SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    "constant": lambda progress: jnp.ones_like(progress),
}
PRECISIONS = ("default", "high", "highest")
_SCALARS = ("epsilon", "sigma", "learning_rate")  # what one network takes besides its direction, in this order


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained on D(v); the defaults are the published recipe (NAD, reference code).

    optimizer: the name of an optimizer of optax that takes a learning rate ("sgd", "adam", "adamw", "lion", …).
    optimizer_options: its keyword arguments, e.g. {"momentum": 0.9}.
    schedule: factor on the learning rate at step t = 1 … T: "linear" 1 − t/T (the last step is 0), "cosine"
      ½(1 + cos πt/T), "constant" 1.
    clip_norm: the global norm to which a network's gradient is clipped; 0: no clipping.
    weight_decay: multiple of the parameters added to the clipped gradient, before the optimizer sees it.
    batch_size: B; the last batch of an epoch is smaller where B does not divide the number of samples.
    num_epochs: passes over the data, each in a new order.
    num_train, num_test: samples of D(v), even: the classes are balanced exactly.
    loss_threshold, loss_window: `steps_to_loss` is the first step at which the mean minibatch loss over the last
      `loss_window` steps is at most `loss_threshold` (never where a run has fewer steps than that).
    precision: of matrix products on accelerators: "default", "high", "highest".
    """

    optimizer: str = "sgd"
    optimizer_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    schedule: str = "linear"
    clip_norm: float = 0.5
    weight_decay: float = 0.0
    batch_size: int = 128
    num_epochs: int = 20
    num_train: int = 10_000
    num_test: int = 10_000
    loss_threshold: float = 0.01
    loss_window: int = 79
    precision: str = "default"

    def problems(self) -> list[str]:
        """What is wrong with these values, one line each."""
        problems = errors.problems(
            self._check_optimizer,
            lambda: check_choice("schedule", self.schedule, SCHEDULES),
            lambda: check_number("clip_norm", self.clip_norm, 0.0),
            lambda: check_number("weight_decay", self.weight_decay, 0.0),
            lambda: check_integer("batch_size", self.batch_size, 1),
            lambda: check_integer("num_epochs", self.num_epochs, 1),
            lambda: separable.check_num_samples("num_train", self.num_train),
            lambda: separable.check_num_samples("num_test", self.num_test),
            lambda: check_number("loss_threshold", self.loss_threshold, 0.0),
            lambda: check_integer("loss_window", self.loss_window, 1),
            lambda: check_choice("precision", self.precision, PRECISIONS),
        )
        if not problems and self.num_steps == 1 and self.schedule != "constant":
            problems.append(
                f"schedule: the only step of a {self.schedule!r} schedule has learning rate 0; train longer"
            )
        return problems

    def _check_optimizer(self) -> None:
        """Raises `InputError` unless optax has such an optimizer and it updates from gradients alone."""
        if not isinstance(self.optimizer, str) or not hasattr(optax, self.optimizer):
            raise unknown("optimizer", self.optimizer, sorted(filter(_takes_learning_rate, vars(optax))))
        call = f"optax.{self.optimizer}(learning_rate=schedule, **{self.optimizer_options})"
        try:
            optimizer = getattr(optax, self.optimizer)(learning_rate=jnp.ones_like, **self.optimizer_options)
            jax.eval_shape(lambda x: optimizer.update(x, optimizer.init(x), x), jnp.zeros(3))
        except Exception as error:  # any function of optax may have been named
            raise InputError(f"optimizer: {call} gives no optimizer of gradients ({error})") from error

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_train // self.batch_size)

    @property
    def num_steps(self) -> int:
        """T, the number of steps of a run."""
        return self.num_epochs * self.steps_per_epoch

    def make_optimizer(self, learning_rate: jax.Array) -> optax.GradientTransformation:
        """Clipping, then weight decay, then the optimizer under the schedule; `learning_rate` may be traced."""

        def scheduled(count: jax.Array) -> jax.Array:
            return learning_rate * SCHEDULES[self.schedule]((count + 1) / self.num_steps)

        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
            optax.add_decayed_weights(self.weight_decay) if self.weight_decay else optax.identity(),
            getattr(optax, self.optimizer)(learning_rate=scheduled, **self.optimizer_options),
        )


def _takes_learning_rate(name: str) -> bool:
    function = getattr(optax, name)
    public = inspect.isfunction(function) and not name.startswith(("_", "scale_"))
    return public and "learning_rate" in inspect.signature(function).parameters


class TrainMetrics(NamedTuple):
    """What became of a network trained on D(v); `train_many` adds a leading axis [N].

    train_accuracy, test_accuracy: share of samples classified correctly after training, in evaluation mode.
    train_loss, test_loss: mean cross-entropy there.
    steps_to_loss: first step t = 1 … T at which the mean minibatch loss of the last `loss_window` steps is at most
      `loss_threshold`; −1: never.
    gradient_cosine: |cos| between v and the mean over the test set of ∇ₓ(logit₀ − logit₁); 0 where that is zero.
    diverged_at: the step at which the loss, the gradient or the network it led to was not finite; the network is
      kept as it was before that step, and evaluated so. −1: never.
    losses: [T] minibatch losses; nan from the divergence on.
    """

    train_accuracy: jax.Array
    test_accuracy: jax.Array
    train_loss: jax.Array
    test_loss: jax.Array
    steps_to_loss: jax.Array
    gradient_cosine: jax.Array
    diverged_at: jax.Array
    losses: jax.Array


class _State(NamedTuple):
    trained: list[jax.Array]
    others: list[jax.Array]
    optimizer: optax.OptState
    step: jax.Array
    diverged_at: jax.Array


def _first_step_below(losses: jax.Array, window: int, threshold: float) -> jax.Array:
    """The first step, counted from 1, at which the mean of the last `window` losses [T] is at most `threshold`; −1."""
    if len(losses) < window:
        return jnp.int32(-1)
    reached = jax.lax.reduce_window(losses, 0.0, jax.lax.add, (window,), (1,), "VALID") / window <= threshold
    return jnp.where(reached.any(), jnp.argmax(reached).astype(jnp.int32) + window, -1)


def _cosine(left: jax.Array, right: jax.Array) -> jax.Array:
    """|cos| of a vector and a unit vector, which may be too long for its square to be a float32."""
    left = left / jnp.maximum(jnp.abs(left).max(), jnp.finfo(jnp.float32).tiny)
    norm = jnp.linalg.norm(left)
    return jnp.where(norm == 0, 0.0, jnp.abs(jnp.vdot(left, right)) / norm)


def _all_finite(leaves: Iterable[jax.Array]) -> jax.Array:
    real = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in real]).all()


def _make_evaluate(model: Model, batch_size: int, with_gradient: bool) -> Callable[..., tuple[jax.Array, ...]]:
    """`evaluate(variables, sample, num_samples) -> (accuracy, loss, gradient)`; the mean of ∇ₓ(l₀ − l₁) [H, W, C]."""

    def evaluate(variables: Any, sample: Callable, num_samples: int) -> tuple[jax.Array, ...]:
        def add_batch(sums: tuple[jax.Array, ...], first: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
            indices = first + jnp.arange(batch_size)
            valid = indices < num_samples  # the last batch is filled up with copies of the last sample
            x, labels = sample(jnp.minimum(indices, num_samples - 1))

            def difference(x: jax.Array) -> tuple[jax.Array, jax.Array]:
                logits = model.apply(variables, x)
                return jnp.sum(jnp.where(valid, logits[:, 0] - logits[:, 1], 0.0)), logits

            if with_gradient:
                (_, logits), gradients = jax.value_and_grad(difference, has_aux=True)(x)
                gradient = gradients.sum(0)
            else:
                logits, gradient = model.apply(variables, x), jnp.zeros(x.shape[1:])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            correct = logits.argmax(-1) == labels
            count, hits = valid.sum(dtype=jnp.float32), (correct & valid).sum(dtype=jnp.float32)
            new = (count, hits, jnp.sum(jnp.where(valid, losses, 0.0)), gradient)
            return jax.tree.map(jnp.add, sums, new), None

        zero = (jnp.zeros(()), jnp.zeros(()), jnp.zeros(()), jnp.zeros(model.image_shape))
        (count, *sums), _ = jax.lax.scan(add_batch, zero, jnp.arange(0, num_samples, batch_size))
        return tuple(total / count for total in sums)  # by a constant, XLA would multiply: all of n would be 0.9999999

    return evaluate


def _check_model(model: Model, batch_size: int) -> None:
    """Raises `InputError` unless the model has two logits and its `apply` a training mode."""
    if not isinstance(model, Model):
        raise InputError(f"model: must come from create_model, from_linen, from_nnx or from_functions, got {model!r}")
    if model.num_logits != 2:
        raise InputError(
            f"model: training on D(v) needs two logits, one for each class; this one has {model.num_logits}"
        )
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(model.init, key)
    images = jax.ShapeDtypeStruct((batch_size, *model.image_shape), jnp.float32)
    try:
        logits, updated = jax.eval_shape(partial(model.apply, train=True), variables, images, key)
        same = jax.tree.structure(updated) == jax.tree.structure(variables)
    except Exception as error:  # the model is the user's program
        raise InputError(
            f"model: apply(variables, x, key, train=True) must return (logits, variables): {error}"
        ) from error
    if not same or logits.shape != (batch_size, 2):
        raise InputError("model: apply(variables, x, key, train=True) must return (logits [B, 2], variables as given)")


def make_train(model: Model, recipe: Recipe | None = None) -> Callable[..., tuple[Any, TrainMetrics]]:
    """Builds `train(key, direction, epsilon, sigma, learning_rate, noise) -> (variables, TrainMetrics)`.

    `train` is pure: it initializes a network, trains it on D(v) by the recipe, the whole schedule in `lax.scan`,
    and evaluates it. Everything it takes is an array, so it can be mapped over any of them; `train_many` does.

      key:           of initialization, order of the samples and dropout; consumed.
      direction:     v, [D], of unit norm.
      epsilon, sigma, learning_rate: scalars; ε and σ as in `separable`.
      noise:         `separable.Noise` of [num_train, D] and [num_test, D]; labels alternate, see `label_samples`.

    Raises:
      InputError: for bad values in the recipe (default: `Recipe()`), a model without exactly two logits or without a
        training mode, and, from `train`, for noise of other sizes.
    """
    recipe = Recipe() if recipe is None else recipe
    if not isinstance(recipe, Recipe):
        raise InputError(f"recipe: must be a Recipe, got {recipe!r}")
    problems = recipe.problems()
    if problems:
        raise InputError("\n".join(problems))
    _check_model(model, recipe.batch_size)
    evaluate_train = _make_evaluate(model, recipe.batch_size, with_gradient=False)
    evaluate_test = _make_evaluate(model, recipe.batch_size, with_gradient=True)
    num_full = recipe.num_train // recipe.batch_size * recipe.batch_size  # samples in full batches

    def train(
        key: jax.Array,
        direction: jax.Array,
        epsilon: jax.Array,
        sigma: jax.Array,
        learning_rate: jax.Array,
        noise: Noise,
    ) -> tuple[Any, TrainMetrics]:
        if (len(noise.train), len(noise.test)) != (recipe.num_train, recipe.num_test):
            raise InputError(
                f"noise: the recipe has {recipe.num_train} and {recipe.num_test} samples, "
                f"got {len(noise.train)} and {len(noise.test)}"
            )
        init_key, order_key, dropout_key = jax.random.split(key, 3)
        optimizer = recipe.make_optimizer(learning_rate)
        trained, others, join = split_trainable(model, model.init(init_key))

        def sample(noise: jax.Array, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
            labels = separable.label_samples(indices)
            x = separable.separate(noise[indices], labels, direction, epsilon, sigma)
            return x.reshape(-1, *model.image_shape), labels

        def step(state: _State, indices: jax.Array) -> tuple[_State, jax.Array]:
            number = state.step + 1
            x, labels = sample(noise.train, indices)

            def loss(trained: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
                variables = join(trained, state.others)
                logits, updated = model.apply(variables, x, jax.random.fold_in(dropout_key, number), train=True)
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return losses.mean(), split_trainable(model, updated)[1]

            (value, others), gradients = jax.value_and_grad(loss, has_aux=True)(state.trained)
            updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trained)
            trained = optax.apply_updates(state.trained, updates)
            finite = _all_finite([value, *gradients, *trained, *others]) & (state.diverged_at < 0)
            new, old = (trained, others, optimizer_state), (state.trained, state.others, state.optimizer)
            kept = jax.tree.map(partial(jnp.where, finite), new, old)
            diverged_at = jnp.where(finite | (state.diverged_at >= 0), state.diverged_at, number)
            return _State(*kept, number, diverged_at), jnp.where(finite, value, jnp.nan)

        def epoch(state: _State, key: jax.Array) -> tuple[_State, jax.Array]:
            order = jax.random.permutation(key, recipe.num_train)
            state, losses = jax.lax.scan(step, state, order[:num_full].reshape(-1, recipe.batch_size))
            if num_full < recipe.num_train:
                state, last = step(state, order[num_full:])
                losses = jnp.append(losses, last)
            return state, losses

        state = _State(trained, others, optimizer.init(trained), jnp.int32(0), jnp.int32(-1))
        state, losses = jax.lax.scan(epoch, state, jax.random.split(order_key, recipe.num_epochs))
        losses = losses.reshape(-1)
        variables = join(state.trained, state.others)
        train_accuracy, train_loss, _ = evaluate_train(variables, partial(sample, noise.train), recipe.num_train)
        test_accuracy, test_loss, gradient = evaluate_test(variables, partial(sample, noise.test), recipe.num_test)
        return variables, TrainMetrics(
            train_accuracy,
            test_accuracy,
            train_loss,
            test_loss,
            _first_step_below(losses, recipe.loss_window, recipe.loss_threshold),
            _cosine(gradient.reshape(-1), direction),
            state.diverged_at,
            losses,
        )

    if recipe.precision == "default":
        return train

    def train_in_precision(*args: Any) -> tuple[Any, TrainMetrics]:
        with jax.default_matmul_precision(recipe.precision):
            return train(*args)

    return train_in_precision


def make_train_many(
    model: Model,
    recipe: Recipe | None = None,
    mapping: str = "auto",
    chunk_size: int = 0,
    num_devices: int = 0,
) -> Callable[..., TrainMetrics]:
    """Builds `run(directions, epsilon, sigma, learning_rate, seed, progress=None) -> TrainMetrics`, see `train_many`.

    One compiled program trains `chunk_size` networks; the last chunk is filled up with copies, so that a network's
    numbers do not depend on how many there are.

    Args:
      mapping: "sequential", one network after the other on each device; "vectorized", all networks of a chunk in
        one batched program; "auto": sequential on a CPU, vectorized elsewhere.
      chunk_size: a multiple of the number of devices; 0: one per device where sequential, 32 where vectorized.
      num_devices: local devices to shard over; 0: all. (On a CPU there is one, using every core, unless
        JAX_NUM_CPU_DEVICES says otherwise.)
    """
    train = make_train(model, recipe)
    recipe = Recipe() if recipe is None else recipe
    mapping, chunk_size, devices = resolve_mapping(mapping, chunk_size, num_devices)
    dimension = int(np.prod(model.image_shape))
    draw_noise = jax.jit(lambda key: separable.sample_noise(key, recipe.num_train, recipe.num_test, dimension))
    train_chunk = make_train_chunk(train, mapping, devices)

    @lru_cache(maxsize=1)
    def replicate_noise(seed: int) -> Noise:
        return jax.device_put(draw_noise(noise_key(seed)), ensemble.replicated(devices))

    def run(
        directions: jax.Array,
        epsilon: Any = 1.0,
        sigma: Any = 1.0,
        learning_rate: Any = 0.5,
        seed: Any = 0,
        progress: Callable[[int], None] | None = None,
    ) -> TrainMetrics:
        directions = _check_directions(directions, dimension)
        points = _broadcast(len(directions), epsilon=epsilon, sigma=sigma, learning_rate=learning_rate, seed=seed)
        results: list[TrainMetrics | None] = [None] * len(directions)
        done = 0
        for replicate in dict.fromkeys(points["seed"].tolist()):
            noise = replicate_noise(replicate)
            members = np.flatnonzero(points["seed"] == replicate)
            for first in range(0, len(members), chunk_size):
                chunk = members[first : first + chunk_size]
                padded = np.resize(chunk, chunk_size)
                keys = jnp.stack([network_key(replicate, directions[member]) for member in padded])
                scalars = [jnp.asarray(points[name][padded], jnp.float32) for name in _SCALARS]
                metrics = jax.device_get(train_chunk(noise, keys, jnp.asarray(directions[padded]), *scalars))
                for position, member in enumerate(chunk):
                    results[member] = jax.tree.map(lambda values, position=position: values[position], metrics)
                done += len(chunk)
                if progress is not None:
                    progress(done)
        return jax.tree.map(lambda *values: np.stack(values), *results)

    return run


def resolve_mapping(mapping: str, chunk_size: int, num_devices: int) -> tuple[str, int, list[jax.Device]]:
    """The mapping, the networks per call and the devices that automatic choices come to, see `make_train_many`."""
    check_choice("mapping", mapping, ("auto", *ensemble.MAPPINGS))
    check_integer("num_devices", num_devices, 0, jax.local_device_count())
    check_integer("chunk_size", chunk_size, 0)
    devices = jax.local_devices()[: num_devices or None]
    if mapping == "auto":
        mapping = "sequential" if jax.default_backend() == "cpu" else "vectorized"
    chunk_size = chunk_size or len(devices) * (1 if mapping == "sequential" else 32)
    if chunk_size % len(devices):
        raise InputError(f"chunk_size: must be a multiple of the {len(devices)} devices, got {chunk_size}")
    return mapping, chunk_size, devices


def make_train_chunk(train: Callable, mapping: str, devices: list[jax.Device]) -> Callable[..., TrainMetrics]:
    """The compiled `train_chunk(noise, keys, directions, epsilon, sigma, learning_rate)` of N networks, [N] each."""

    def chunk(noise: Noise, *members: jax.Array) -> TrainMetrics:
        return ensemble.map_members(lambda *member: train(*member, noise)[1], mapping, *members)

    return jax.jit(ensemble.shard_members(chunk, devices))


def noise_key(seed: int) -> jax.Array:
    """The key of the noise of one replicate: all directions share it."""
    return ensemble.named_key(ensemble.make_key(seed), "noise")


def network_key(seed: int, direction: np.ndarray) -> jax.Array:
    """The key of one network, from the replicate and the direction itself (up to its sign)."""
    key = ensemble.named_key(ensemble.make_key(seed), "networks")
    return ensemble.portable_key(jax.random.fold_in(key, direction_identity(direction) % 2**32))


def _check_directions(directions: Any, dimension: int) -> np.ndarray:
    directions = np.asarray(directions, np.float32)
    if directions.ndim != 2 or directions.shape[1] != dimension or not len(directions):
        raise InputError(f"directions: must be [N, {dimension}] for this model, got shape {directions.shape}")
    norms = np.linalg.norm(directions, axis=1)
    for index, norm in enumerate(norms):
        if not abs(norm - 1) <= 1e-3:
            raise InputError(f"directions: direction {index} has norm {norm:.4g}, expected 1")
    return directions / norms[:, None]


def _broadcast(count: int, **values: Any) -> dict[str, np.ndarray]:
    """Each value as [N]; raises `InputError` naming the one that is neither a number nor a list of N."""
    arrays = {}
    for name, value in values.items():
        array = np.asarray(value)
        if array.shape not in ((), (count,)):
            raise InputError(f"{name}: must be a number or one for each of the {count} directions, got {array.shape}")
        array = np.broadcast_to(array, (count,))
        for entry in array.tolist():
            if name == "seed":
                check_integer(name, entry, 0, 2**32 - 1)
            else:
                check_number(name, entry, 0.0)
        arrays[name] = array
    return arrays


def train_many(
    model: Model,
    directions: jax.Array,
    epsilon: Any = 1.0,
    sigma: Any = 1.0,
    learning_rate: Any = 0.5,
    seed: Any = 0,
    recipe: Recipe | None = None,
    mapping: str = "auto",
    chunk_size: int = 0,
    num_devices: int = 0,
    progress: Callable[[int], None] | None = None,
) -> TrainMetrics:
    """Trains one network on D(v) for each row v of `directions`: the directional inductive bias of a model.

    Source: NAD, Section 2. The noise of D(v) depends on the seed alone, initialization and order of the samples on
    the seed and the direction: networks that differ in ε, σ or learning rate share all their random numbers.

    Args:
      model: with two logits, from `create_model(..., num_logits=2)` or an adapter of `models`.
      directions: v, unit rows [N, D].
      epsilon, sigma, learning_rate, seed: one for all, or one for each network [N].
      recipe: default `Recipe()`, the published one.
      mapping, chunk_size, num_devices: how the networks are mapped, see `make_train_many`. Results agree to rounding,
        which training with max-pooling amplifies: in the end hard directions may differ as much as between seeds.
      progress: called with the number of networks done.

    Returns: `TrainMetrics` of NumPy arrays with a leading axis [N].

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    run = make_train_many(model, recipe, mapping, chunk_size, num_devices)
    return run(directions, epsilon, sigma, learning_rate, seed, progress)
