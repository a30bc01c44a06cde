"""The network that a config says: an architecture, and those of its options that are not as
published.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.run.config import LATER
from nad_jax.architectures import OPTIONS, create_model
from nad_jax.errors import InputError, check_integer
from nad_jax.models import Model

# Folders from before these fields have the published networks, and theirs say nothing of them.
LATER.update(OPTIONS)


def read_model(config: ConfigDict, **fields: Any) -> Model:
    """The model that a config says; `fields` stand in place of its own."""
    fields = {**config, **fields}
    names = "architecture", "image_shape", "num_logits", "pooling", "initialization", "convolution"
    check_integer("width", fields["width"], 0)
    options = {"width": 0, **OPTIONS}
    chosen = {name: fields[name] for name in options if fields[name] != options[name]}
    try:
        return create_model(**{name: fields[name] for name in names}, **chosen)
    except InputError as error:
        for name, unset in {"pooling": "default", **options}.items():
            said = f"unknown value {name!r}", f"{name}: {fields[name]!r} makes no sense"
            if name in config and any(
                text in str(error) for text in said
            ):  # also where a recipe set it, not the user
                raise InputError(f"{error}; --config.{name}={unset} takes it back") from error
        raise
