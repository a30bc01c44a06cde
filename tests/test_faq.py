"""Every message that docs/faq.md quotes is what the code says, word for word."""

import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nad_jax
from nad_jax.errors import InputError
from tests.commands import ROOT, Command

TEXT = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
QUOTED = [text for language, text in BLOCKS if not language]
EXACT = {"derivative": "input_gradient"}


class Net(nn.Module):
    """A network that states no symmetries."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(4)(x.reshape(len(x), -1))))


def _own():
    return nad_jax.from_linen(Net(), image_shape=(4, 4, 1), check=False)


def _logreg(num_logits=1):
    return nad_jax.create_model("logreg", (4, 4, 1), num_logits=num_logits)


def _init(key):
    return {"w": jax.random.normal(key, (16, 1))}


def _functions(**known):
    def apply(variables, x):
        return x.reshape(len(x), -1) @ variables["w"]

    return nad_jax.from_functions(_init, apply, (4, 4, 1), check=False, **known)


# In the order of the page.
CASES = {
    "a name": lambda: nad_jax.create_model("resnet"),
    "one input": lambda: nad_jax.from_functions(
        _init, lambda variables, x: x.reshape(-1) @ variables["w"], (4, 4, 1)
    ),
    "num_networks": lambda: nad_jax.estimate_nads(_own(), 1, **EXACT),
    "logit": lambda: nad_jax.estimate_nads(_logreg(2), 8, **EXACT),
    "features": lambda: nad_jax.estimate_nads(_functions(), 8, **EXACT),
    "variance": lambda: nad_jax.estimate_nads(
        _functions(features=lambda variables, x: jnp.reshape(x, (len(x), -1))), 8, **EXACT
    ),
    "symmetrized": lambda: nad_jax.estimate_nads(_own(), 8, symmetrized=True, **EXACT),
    "origin": lambda: nad_jax.estimate_nads(
        nad_jax.create_model("lenet", (16, 16, 1)), 8, symmetrized=True, point_scale=0, **EXACT
    ),
    "two logits": lambda: nad_jax.train_many(_logreg(), np.eye(16)[:2]),
    "unit rows": lambda: nad_jax.train_many(_logreg(2), 2 * np.eye(16)[:2]),
    "even": lambda: nad_jax.train_many(
        _logreg(2), np.eye(16)[:2], recipe=nad_jax.Recipe(num_train=2001)
    ),
    "bytes": lambda: nad_jax.flip(np.zeros((2, 4, 4, 1), np.uint8), np.eye(16)),
}  # fmt: skip


COMPUTE = ("--config=configs/compute_nads.py:logreg", "--workdir=FOLDER")
SMALL = ("--config.image_shape=4,4,1", "--config.num_networks=8")


def _command(*arguments, code=2):
    """What the command line writes to its standard error."""
    command = Command(*arguments)
    assert command.wait() == code, command.errors
    return command.errors


def _other_folder(folder):
    small = [text.replace("FOLDER", str(folder)) for text in (*COMPUTE, *SMALL)]
    _command(*small, code=0)
    return _command(*small, "--config.step=10").replace(str(folder), "runs/demo")


def _outside(folder):
    command = [sys.executable, "-c", f"import os; os.chdir({str(folder)!r}); {_ENTRY}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    return done.stderr


_ENTRY = "from nad_jax.__main__ import main; main()"
COMMANDS = {
    "no clone": _outside,
    "a field": lambda folder: _command(*COMPUTE, "--config.num_network=8"),
    "another configuration": _other_folder,
}


@pytest.mark.parametrize("name, quoted", [*zip(CASES, QUOTED, strict=False)])
def test_messages_are_what_the_code_raises(name, quoted):
    with pytest.raises(InputError) as caught:
        CASES[name]()
    assert quoted == f"{caught.value}\n", name


@pytest.mark.parametrize("name, quoted", [*zip(COMMANDS, QUOTED[len(CASES) :], strict=False)])
def test_messages_are_what_the_command_line_says(name, quoted, tmp_path):
    assert quoted == COMMANDS[name](tmp_path)


def test_every_quoted_message_is_tested():
    assert len(QUOTED) == len(CASES) + len(COMMANDS)
