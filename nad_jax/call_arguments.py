"""What a module's `__call__` takes besides the inputs: the mode under its usual names, and values
that users give.
"""

import inspect
from collections.abc import Callable, Container, Mapping
from typing import Any, Concatenate

from nad_jax.errors import InputError

# Names under which modules are told their mode: True in training, and True in evaluation.
TRAINING_FLAGS = (
    "train",
    "training",
    "is_training",
    "is_train",
    "train_mode",
    "enable_dropout",
    "update_stats",
)
EVALUATION_FLAGS = (
    "deterministic", "use_running_average", "eval", "evaluate", "evaluation", "is_eval",
    "eval_mode", "inference",
    "is_inference", "test", "testing", "is_test",
)  # fmt: skip

Values = Mapping[str, Any] | None  # of arguments, by name
Arguments = tuple[list[Any], dict[str, Any]]


def mode_flags(train: bool) -> dict[str, bool]:
    """The value of every flag by its name."""
    return {**dict.fromkeys(TRAINING_FLAGS, train), **dict.fromkeys(EVALUATION_FLAGS, not train)}


def make_call_arguments(
    module_class: type,
    evaluation: Values = None,
    training: Values = None,
    supplied: tuple[str, ...] = (),
    left: Container[str] = (),
) -> Callable[Concatenate[bool, ...], Arguments]:
    """Builds `arguments(train, **supplied) -> (positional, keyword)`, what follows the inputs in a
    call.

    Values are given by position wherever that is possible: `nn.jit` and `nn.remat` know static
    arguments by position.

    Args:
      module_class: of the module; the first argument of its `__call__` are the inputs.
      evaluation: values of arguments that are no mode flags, by name.
      training: those that differ in training mode.
      supplied: names of arguments that every call supplies itself.
      left: names of flags that are left at their default: the module has the mode itself.

    Raises:
      InputError: for arguments that are neither flags, nor given, nor supplied, and given ones that
        do not exist.
    """
    name = f"{module_class.__name__}.__call__"
    given, changed = _as_values("arguments", evaluation), _as_values("train_arguments", training)
    given_in_training = given | changed
    parameters, takes_any = _further_parameters(module_class)
    known = {*mode_flags(True), *supplied, *given_in_training}
    unknown = {
        argument: "…" if parameter.default is parameter.empty else repr(parameter.default)
        for argument, parameter in parameters.items()
        if argument not in known
    }
    if unknown:
        values = ", ".join(f"{argument!r}: {default}" for argument, default in unknown.items())
        raise InputError(
            f"module: {name} takes {', '.join(map(repr, unknown))}: "
            "give its value, "
            f"arguments={{{values}}}, and train_arguments={{…}} where it differs in training "
            "(known are the mode "
            f"flags {', '.join(mode_flags(True))})"
        )
    for flag in mode_flags(True).keys() & (given.keys() - changed.keys()):
        raise InputError(
            f"arguments: {flag!r} is a mode flag, which is passed by itself; give it in "
            "train_arguments, too"
        )
    for argument in given_in_training:
        if argument not in parameters and not takes_any:
            raise InputError(
                f"arguments: {name} takes no {argument!r}; it takes "
                f"{', '.join(parameters) or 'inputs alone'}"
            )

    def arguments(train: bool, **values: Any) -> Arguments:
        chosen = given_in_training if train else given
        values = mode_flags(train) | values | chosen
        positional, keyword = [], {}
        for argument, parameter in parameters.items():
            default = parameter.default
            if default is not parameter.empty and (argument in left or argument not in values):
                values[argument] = default
            if argument not in values:  # it is given in training alone
                raise InputError(f"arguments: {name} needs {argument!r} in evaluation mode too")
            if parameter.kind is parameter.KEYWORD_ONLY:
                keyword[argument] = values[argument]
            else:
                positional.append(values[argument])
        return positional, keyword | {
            extra: value for extra, value in chosen.items() if extra not in parameters
        }

    return arguments


def _further_parameters(module_class: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters of `__call__` after the inputs by name, and whether it takes any other too."""
    parameters = list(inspect.signature(module_class.__call__).parameters.values())[1:]
    kinds, of = [parameter.kind for parameter in parameters], inspect.Parameter
    if not kinds or kinds[0] in (of.KEYWORD_ONLY, of.VAR_KEYWORD):
        raise InputError(
            f"module: {module_class.__name__}.__call__ must take inputs as its first argument, got "
            f"({', '.join(map(str, parameters))})"
        )
    variadic = (of.VAR_POSITIONAL, of.VAR_KEYWORD)
    further = parameters[kinds[0] is not of.VAR_POSITIONAL :]
    named = {parameter.name: parameter for parameter in further if parameter.kind not in variadic}
    return named, of.VAR_KEYWORD in kinds


def describe_arguments(evaluation: Values, training: Values) -> dict[str, Any]:
    """The values that were given, as text, for the record of a result; empty where none were."""
    given = {"arguments": evaluation, "train_arguments": training}
    return {
        name: {key: repr(value) for key, value in values.items()}
        for name, values in given.items()
        if values
    }


def _as_values(name: str, values: Values) -> dict[str, Any]:
    values = {} if values is None else values
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise InputError(
            f"{name}: must be a dictionary of values by the name of an argument, got {values!r}"
        )
    return dict(values)
