"""Models of one's own by name: `package.module:Name`, `path/to/file.py:Name`, or a name given by
`register`; for command lines and sweeps.

What the name leads to makes the model: a Linen class, an NNX class or a function of `rngs` that
builds an NNX module, or a function that returns a Linen module or a `Model`. Options follow in
parentheses, as Python writes them: `nets:Net(width=32, sigma_w=2.0)`.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
from flax import nnx

from nad_jax.contract import reported
from nad_jax.convolution import resolve_convolution
from nad_jax.errors import InputError, check_choice, check_input_shape, first_line, plain, shown
from nad_jax.linen import from_linen
from nad_jax.masks import apply_mask_options
from nad_jax.models import Model
from nad_jax.nnx import from_nnx

Maker = type[nn.Module] | type[nnx.Module] | Callable[..., Any]
_REGISTERED: dict[str, Maker] = {}


def register(name: str, maker: Maker) -> None:
    """Gives what makes a model a name that `create_model` knows.

    Args:
      name: letters, digits and underscores; a name given before gets the new meaning.
      maker: see the module's docstring.

    Raises:
      InputError: for another name, or a maker that cannot be called.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise InputError(f"name: must be letters, digits and underscores, got {shown(name)}")
    from nad_jax.architectures import ARCHITECTURES  # which knows models by these names

    if name in ARCHITECTURES:
        raise InputError(f"name: {name!r} is that of a built-in architecture; take another one")
    _REGISTERED[name] = _check_maker("maker", maker)


def _check_maker(name: str, maker: Any) -> Maker:
    if not callable(maker) or isinstance(maker, nn.Module | nnx.Module):
        raise InputError(
            f"{name}: must be a class or a function that makes a model, got {type(maker).__name__}"
        )
    return maker


def is_own(architecture: Any) -> bool:
    """Whether a name is that of a model of one's own."""
    if not isinstance(architecture, str):
        return False
    if architecture.partition("(")[0] in _REGISTERED:
        return True
    # A name with options, one of which may have colons: lenet(initialization='sigma:2:0').
    return ":" in architecture and not re.fullmatch(r"\w+\(.*\)", architecture)


def read_options(name: str) -> tuple[str, dict[str, Any]]:
    """The reference and the options of `reference(option=value, …)`; words need no quotes."""
    reference, bracket, rest = name.partition("(")
    if not bracket:
        return reference, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError
        names = [word.arg for word in call.keywords]
        if len({*names}) < len(names):
            raise ValueError
        return reference, {word.arg: _read_value(word.value) for word in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"architecture: options must be as in {reference}(width=32, norm='layer'), each once, "
            f"got {name!r}"
        ) from error


def _read_value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


@functools.cache
def _import(reference: str) -> Any:
    """What `package.module:Name` or `path/to/file.py:Name` leads to."""
    place, _, name = reference.rpartition(":")
    try:
        if place.endswith(".py"):
            path = Path(place).resolve()
            # By its whole path, as files may share a name; dataclasses look for their module there.
            specification = importlib.util.spec_from_file_location(f"own{path}", path)
            module = importlib.util.module_from_spec(specification)
            sys.modules[specification.name] = module
            specification.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except Exception as error:  # whatever a file of someone else raises
        raise InputError(
            f"architecture: {reference} cannot be imported: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    if not hasattr(module, name):
        public = [one for one in vars(module) if not one.startswith("_")]
        raise InputError(f"architecture: {place} has no {name!r}; it has {', '.join(public)}")
    return getattr(module, name)


def _parameters(maker: Maker) -> list[str]:
    # The signature of an NNX class is that of its metaclass.
    names = list(inspect.signature(maker.__init__ if inspect.isclass(maker) else maker).parameters)
    return names[1:] if inspect.isclass(maker) else names


def make_own_model(
    name: str,
    image_shape: tuple[int, ...],
    num_logits: int,
    initialization: str = "flax",
    convolution: str = "auto",
    options: Mapping[str, Any] | None = None,
) -> Model:
    """The model of a name, see the module's docstring.

    `image_shape` (or `input_shape`) and `num_logits` are given to the class or function where it
    takes an argument of that name.

    Args:
      initialization: "flax", the module's own, or "reference" of a Linen module.
      convolution: see `from_linen`.
      options: further arguments, beside those in the name; None is left out. "density" and "mask"
        are those of `create_model` where the class or function takes no argument of that name.

    Raises:
      InputError: where nothing of that name is found, an option is not taken, or what is made is no
        model of these shapes.
    """
    reference, written = read_options(name)
    maker = _REGISTERED[reference] if reference in _REGISTERED else _import(reference)
    _check_maker(f"architecture: {reference}", maker)
    shape = check_input_shape(image_shape)
    given = {key: plain(value) for key, value in (options or {}).items() if value is not None}
    taken = [one for one in _parameters(maker) if one not in ("rngs", "parent", "name")]
    own = [one for one in ("density", "mask") if one not in taken]
    pruning = {one: written.pop(one, given.pop(one, None)) for one in own}
    for option in (*given, *written):
        check_choice(f"option of {reference}", option, taken)
    offered = {"image_shape": shape, "input_shape": shape, "num_logits": num_logits}
    given = {**{key: offered[key] for key in offered if key in taken}, **given, **written}
    how = (reference, tuple(given.items()), shape, initialization, resolve_convolution(convolution))
    try:
        hash(how)
        make = _make
    except TypeError:  # a list, say, which cannot be looked up
        make = _make.__wrapped__
    model = make(maker, *how)
    if tuple(model.image_shape) != shape:
        raise InputError(
            f"architecture: {reference} is for inputs {tuple(model.image_shape)}, not {shape}"
        )
    if model.num_logits != num_logits:
        raise InputError(
            f"architecture: {reference} has {model.num_logits} logits where {num_logits} are "
            "needed; give it an argument num_logits"
        )
    if "density" in own:
        model = apply_mask_options(model, pruning["density"], pruning.get("mask"))
    chosen = {key: value for key, value in given.items() if key not in offered}
    described = {"architecture": name, "image_shape": list(shape), "num_logits": num_logits}
    return model._replace(description={**model.description, **described, "options": chosen})


# Commands ask again and again, and testing a model takes seconds.
@functools.lru_cache(maxsize=512)
def _make(
    maker: Maker,
    reference: str,
    given: tuple[tuple[str, Any], ...],
    shape: tuple[int, ...],
    initialization: str,
    convolution: str,
) -> Model:
    if "rngs" in _parameters(maker):
        made = from_nnx(
            lambda rngs: maker(rngs=rngs, **dict(given)), shape, convolution=convolution
        )
    else:
        with reported(f"architecture: {reference}"):
            made = maker(**dict(given))
    if isinstance(made, nn.Module):
        return from_linen(made, shape, initialization, convolution=convolution)
    if not isinstance(made, Model):
        raise InputError(
            f"architecture: {reference} must make a Linen module, an NNX module (from rngs) or a "
            f"Model, got {type(made).__name__}"
        )
    if initialization != "flax":
        raise InputError(
            f"initialization: {reference} has its own; {initialization!r} is known of Linen modules "
            "alone"
        )
    return made
