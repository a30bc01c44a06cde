"""How a network is trained: optimizer, schedule, batches and epochs, as one record.

Source of the defaults: NAD, reference code; see `Recipe`.
"""

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nad_jax import errors
from nad_jax.errors import (
    InputError,
    check_choice,
    check_integer,
    check_number,
    first_line,
    shown,
    unknown,
)

SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    "constant": lambda progress: jnp.ones_like(progress),
}
# From a learning rate, a schedule (step -> rate) say, to what makes updates of gradients.
MakeOptimizer = Callable[..., optax.GradientTransformation]
# Names as JAX knows them.
PRECISIONS = {
    "default": "default",
    "high": "high",
    "highest": "highest",
    "bfloat16": "BF16_BF16_F32",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained; the defaults are the published recipe for D(v) (NAD, reference
    code).

    optimizer: one of
      the name of an optimizer of optax that takes a learning rate: "sgd", "adam", "adamw", "lion";
      a function learning_rate -> `optax.GradientTransformation`, such as `optax.adam`, which is
      called with the schedule, a function step -> learning rate;
      an `optax.GradientTransformation`, such as `optax.adam(1e-3)`: its own learning rate and
      schedule hold, so `optimizer_options`, `schedule` and a learning rate are not given.
      The parameters of a network come to it as a list of arrays.
    optimizer_options: keyword arguments of the first two, e.g. {"momentum": 0.9}.
    schedule: factor on the learning rate at step t = 1 … T: "linear" 1 − t/T (the last step is 0),
      "cosine" ½(1 + cos πt/T), "constant" 1.
    clip_norm: the global norm to which a network's gradient is clipped; 0: no clipping.
    weight_decay: multiple of the parameters added to the clipped gradient, before the optimizer
      sees it. Both hold for every kind of optimizer.
    batch_size: B; the last batch of an epoch is smaller where B does not divide the number of
      samples.
    num_epochs: passes over the data, each in a new order.
    num_train, num_test: samples; of D(v) even numbers, since the classes are balanced exactly.
    loss_threshold, loss_window: `steps_to_loss` is the first step at which the mean minibatch loss
      over the last `loss_window` steps is at most `loss_threshold` (never where a run has fewer
      steps than that).
    precision: of matrix products on accelerators; sums are float32, as all of it is on a CPU.
      "default": on a GPU TensorFloat-32 (10 bits after the point), on a TPU bfloat16 (7 bits).
      "high": TensorFloat-32, on a TPU three products of bfloat16. "highest": float32, on a TPU six
      products of bfloat16. "bfloat16" (XLA's own convolutions stay at the default).
    """

    optimizer: str | MakeOptimizer | optax.GradientTransformation = "sgd"
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

    def __post_init__(self) -> None:
        errors.plain_fields(self)

    def problems(self) -> list[str]:
        """What is wrong with these values, one line each."""
        values = [(f.name, getattr(self, f.name), f.type) for f in dataclasses.fields(self)]
        problems = errors.problems(
            self._check_optimizer,
            lambda: self._check_alone("optimizer_options", {}),
            lambda: self._check_alone("schedule", "linear"),
            lambda: check_choice("schedule", self.schedule, SCHEDULES),
            *(partial(check_number, name, value, 0.0) for name, value, t in values if t is float),
            *(partial(check_integer, name, value, 1) for name, value, t in values if t is int),
            lambda: check_choice("precision", self.precision, PRECISIONS),
        )
        scheduled = not self.has_own_rate and self.schedule != "constant"
        if not problems and scheduled and self.num_steps == 1:
            problems.append(
                f"schedule: the only step of a {self.schedule!r} schedule has learning rate 0; "
                "train longer"
            )
        return problems

    @property
    def has_own_rate(self) -> bool:
        """Whether the optimizer is an object, with a learning rate and a schedule of its own."""
        return isinstance(self.optimizer, optax.GradientTransformation)

    def choose_learning_rate(self, given: Any, default: Any) -> Any:
        """The learning rate that is given, or else the default; None for an optimizer that has its
        own.

        Raises:
          InputError: where one is given to such an optimizer.
        """
        if not self.has_own_rate:
            return default if given is None else given
        if given is not None:
            raise InputError(f"learning_rate: {_no_other(given)}")
        return None

    def _check_alone(self, field: str, default: Any) -> None:
        """Raises `InputError` where a field is set that an optimizer with its own learning rate
        would not see.
        """
        value = getattr(self, field)
        if self.has_own_rate and value != default:
            raise InputError(f"{field}: {_no_other(value)}")

    def _check_optimizer(self) -> None:
        """Raises `InputError` unless from gradients alone the optimizer makes steps in a loop."""
        named = isinstance(self.optimizer, str)
        if named and self.optimizer not in vars(optax):
            raise unknown("optimizer", self.optimizer, _list_optimizers())
        if not (named or self.has_own_rate or callable(self.optimizer)):
            raise InputError(
                "optimizer: must be a name of optax, a function of the learning rate such as "
                "optax.adam, or an optax.GradientTransformation such as optax.adam(1e-3), got "
                f"{shown(self.optimizer)}"
            )
        if named:
            call = f"optax.{self.optimizer}(learning_rate=schedule, **{self.optimizer_options})"
        else:
            call = shown(self.optimizer)
            if not self.has_own_rate:
                call += f", called with schedule (step -> rate) and {self.optimizer_options},"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                # Of optax: that an argument is missing, say.
                warnings.simplefilter("error", UserWarning)
                _check_steps(self._create_optimizer)
        except Exception as error:  # any function may have been named or given
            raise InputError(
                f"optimizer: {call} gives no optimizer of gradients ({first_line(error)})"
            ) from error

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_train // self.batch_size)

    @property
    def num_steps(self) -> int:
        """T, the number of steps of a run."""
        return self.num_epochs * self.steps_per_epoch

    def make_optimizer(self, learning_rate: jax.Array) -> optax.GradientTransformation:
        """Clipping, then weight decay, then the optimizer under the schedule; `learning_rate` may
        be traced, and is not used by an optimizer that has its own.
        """

        def scheduled(count: jax.Array) -> jax.Array:
            progress = (count + 1).astype(jnp.float32) / self.num_steps
            return jnp.float32(learning_rate) * SCHEDULES[self.schedule](progress)

        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
            optax.add_decayed_weights(self.weight_decay) if self.weight_decay else optax.identity(),
            self._create_optimizer(scheduled),
        )

    def _create_optimizer(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        if self.has_own_rate:
            return self.optimizer
        if isinstance(self.optimizer, str):
            create = getattr(optax, self.optimizer)
            return create(learning_rate=schedule, **self.optimizer_options)
        return self.optimizer(schedule, **self.optimizer_options)


def _no_other(value: Any) -> str:
    """What is wrong with a value beside an optimizer object."""
    return (
        f"{shown(value)} cannot be combined with an optimizer object, whose own learning rate and "
        "schedule hold; give a function of the learning rate, such as optax.adam, or leave this out"
    )


def _check_steps(create: MakeOptimizer) -> None:
    """Raises an error unless an optimizer's state and updates keep their form, for parameters of
    any shape.
    """
    shapes = ((), (3,), (3, 4), (3, 3, 2, 4))
    dtypes = (jnp.float32, jnp.result_type(float))  # also in double precision
    parameters = [jax.ShapeDtypeStruct(shape, dtype) for dtype in dtypes for shape in shapes]

    def step(parameters: list[jax.Array]) -> tuple[Any, ...]:
        optimizer = create(lambda count: jnp.float32(0.1) * count)
        state = optimizer.init(parameters)
        updates, updated = optimizer.update(parameters, state, parameters)
        return state, updated, updates

    def form(tree: Any) -> tuple[Any, ...]:
        leaves, structure = jax.tree.flatten(tree)
        return structure, [leaf.shape for leaf in leaves], [leaf.dtype for leaf in leaves]

    state, updated, updates = jax.eval_shape(step, parameters)
    if form(updated) != form(state):
        raise TypeError("its state changes its form from step to step")
    if form(updates)[:2] != form(parameters)[:2]:
        raise TypeError("its updates are not those of the parameters")


def _list_optimizers() -> list[str]:
    """The names of optax that `Recipe` takes without options."""
    names = []
    for name, function in sorted(vars(optax).items()):
        public = inspect.isfunction(function) and not name.startswith(("_", "scale_"))
        takes_rate = public and "learning_rate" in inspect.signature(function).parameters
        if takes_rate and not Recipe(name).problems():
            names.append(name)
    return names


def first_step_below(losses: jax.Array, window: int, threshold: float) -> jax.Array:
    """The first step, counted from 1, at which the mean of the last `window` losses [T] is at most
    `threshold`; −1.
    """
    if len(losses) < window:
        return jnp.int32(-1)
    reached = (
        jax.lax.reduce_window(losses, jnp.float32(0), jax.lax.add, (window,), (1,), "VALID")
        / window
        <= threshold
    )
    return jnp.where(reached.any(), jnp.argmax(reached).astype(jnp.int32) + window, -1)
