"""Where every derivative is zero, the message names the cause that can be seen, and what to do."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from experiments import compute_nads, leading_nads
from nad_jax import create_model, estimate_leading_nads, estimate_nads, from_functions, from_linen
from nad_jax.errors import InputError
from tests.test_configs import load_config, run

SHAPE = (3, 3, 1)


class ZeroHead(nn.Module):
    bias: float = 0.0

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(5)(x.reshape(len(x), -1)))
        zeros, bias = nn.initializers.zeros, nn.initializers.constant(self.bias)
        return nn.Dense(1, kernel_init=zeros, bias_init=bias)(x)


def _model(function, features=False, readout_variance=None):
    """A model of variables w [9, 5], φ [5], with outputs function(images [B, 9], w), weighted by φ."""

    def init(key):
        keys = jax.random.split(key)
        return jax.random.normal(keys[0], (9, 5)), jax.random.normal(keys[1], (5, 1))

    def hidden(variables, x):
        return function(x.reshape(len(x), -1), variables[0])

    def apply(variables, x):
        return hidden(variables, x) @ variables[1]

    return from_functions(
        init, apply, SHAPE, hidden if features else None, readout_variance, check=False
    )


def _relu(x, w):
    return nn.relu(x @ w)


GRADIENT = {"derivative": "input_gradient", "readout": "sampled"}
DIFFERENCE = {"derivative": "central_difference", "readout": "sampled"}
CAUSES = {
    "zero head": (
        from_linen(ZeroHead(), SHAPE, check=False),
        GRADIENT,
        r"last layer \(read-out\) starts at zero; readout='marg",
    ),
    "zero head with a bias": (
        from_linen(ZeroHead(2.0), SHAPE, check=False),
        DIFFERENCE,
        "last layer .* starts at zero",
    ),
    "zero head, no features": (
        _model(lambda x, w: 0 * x @ w),
        GRADIENT,
        "exactly 0 .*a last layer .*or a dead network",
    ),
    "constant": (
        _model(lambda x, w: 0 * x @ w + 1),
        DIFFERENCE,
        "outputs are the same for every image that was",
    ),
    "dead": (
        _model(lambda x, w: nn.relu(x @ w - 1e6), True, 1.0),
        GRADIENT,
        "outputs are exactly 0 .*: a dead network",
    ),
    "dead features": (
        _model(lambda x, w: nn.relu(x @ w - 1e6), True, 1.0),
        {"derivative": "input_gradient"},
        "features are exactly 0 .*: a dead network",
    ),
    "origin": (
        _model(_relu),
        {**GRADIENT, "point_scale": 0},
        r"zero at this point \(point_scale=0\), but not at others",
    ),
    "origin of features": (
        _model(_relu, True, 1.0),
        {"derivative": "input_gradient", "point_scale": 0.0},
        "zero at this point",
    ),
    "even function": (
        _model(lambda x, w: (x @ w) ** 2),
        {**DIFFERENCE, "point_scale": 0.0},
        "zero at this point",
    ),
    "underflow at once": (
        _model(lambda x, w: 1e-20 * jnp.tanh(1e-25 * (x @ w))),
        GRADIENT,
        "outputs are too small for float32",
    ),
    "underflow of a quotient": (
        _model(lambda x, w: (1e-20 * x) @ (1e-19 * w)),
        {**DIFFERENCE, "step": 1e4},
        "outputs are too small for float32",
    ),
    "underflow of the read-out": (
        _model(_relu, True, 1e-80),
        {"derivative": "input_gradient"},
        r"readout_variance=1e-80 makes every derivative smaller",
    ),
    "rounded": (_model(lambda x, w: jnp.round(x @ w)), GRADIENT, "rounded or compared"),
    "a step below the last digit": (
        _model(_relu),
        {**DIFFERENCE, "step": 1e-12},
        "^step: 1e-12 changes no pixel",
    ),
    "a step that is not resolved": (
        _model(lambda x, w: 1e6 + x @ w),
        {**DIFFERENCE, "step": 1e-5},
        "^step: outputs at x . h and x − h are equal",
    ),
    "a step within a stair": (
        _model(lambda x, w: jnp.floor(x @ w)),
        {**DIFFERENCE, "step": 1e-4, "point": "fresh"},
        "^step: outputs at x . h and x − h are equal to the last digit with h = 0.0001",
    ),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_cause_is_named_in_one_line(cause):
    model, choices, message = CAUSES[cause]
    with pytest.raises(InputError, match=message) as caught:
        estimate_nads(model, 4, **choices)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(("model: ", "step: "))
    if cause in (
        "zero head",
        "dead features",
        "a step within a stair",
    ):  # the same code for all of them
        with pytest.raises(InputError) as caught:
            estimate_leading_nads(model, 4, 1, 1, **choices)
        assert str(caught.value) == text


def test_what_is_advised_for_a_read_out_that_starts_at_zero_helps():
    model = from_linen(ZeroHead(), SHAPE, readout_variance=1 / 5, check=False)
    assert estimate_nads(model, 4, derivative="input_gradient").eigenvalues[0] > 0


def test_integer_outputs_are_refused_before_anything_is_computed():
    with pytest.raises(InputError, match=r"model: .*int32"):
        model = from_functions(
            lambda key: jax.random.normal(key, (9, 2)),
            lambda w, x: (x.reshape(-1, 9) @ w).argmax(1, keepdims=True),
            SHAPE,
        )
        estimate_nads(model, 4, **DIFFERENCE)


def test_equal_networks_have_nothing_left_without_their_mean():
    model = from_functions(
        lambda key: jnp.ones((9, 1)), lambda w, x: x.reshape(-1, 9) @ w, SHAPE, check=False
    )
    with pytest.raises(
        InputError, match="model: all derivatives are the same, so that nothing is left without"
    ):
        estimate_nads(model, 4, **GRADIENT, centred=True)


@pytest.mark.parametrize(
    ("module", "experiment"), [(compute_nads, "compute_nads"), (leading_nads, "leading_nads")]
)
def test_experiments_name_it_too(module, experiment, tmp_path):
    config = load_config(experiment).get_config("mlp")
    config.update(image_shape=(4, 4, 1), num_networks=4, unit_size=4, symmetrized=False, step=1e-12)
    config.update(derivative="central_difference", readout="sampled", num_readouts=1)
    if experiment == "leading_nads":
        config.update(num_directions=1, num_passes=2)
    with pytest.raises(InputError, match="step: 1e-12 changes no pixel"):
        run(module, config, tmp_path)


def test_networks_without_a_finite_derivative_are_not_called_zero():
    model = create_model("logreg", (2, 2, 1))
    broken = model._replace(
        init=lambda key: jax.tree.map(lambda leaf: leaf * jnp.nan, model.init(key))
    )
    with pytest.raises(InputError, match="4 of 4 networks is not finite"):
        estimate_nads(broken, 4, **GRADIENT)
