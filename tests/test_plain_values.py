"""Numbers of NumPy and JAX are taken as Python's own, once; keys are one typed key or a seed."""

import dataclasses
import json
import warnings
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nad_jax
from nad_jax import errors
from nad_jax.choices import record_choices
from nad_jax.chunks import choose_chunks
from nad_jax.errors import InputError

KINDS = {
    "numpy scalar": lambda value: np.asarray(value)[()],
    "small numpy scalar": lambda value: np.asarray(
        value, np.float32 if isinstance(value, float) else None
    )[()],
    "array without axes": np.asarray,
    "jax array": jnp.asarray,
}


class Net(nn.Module):
    logits: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.logits)(nn.tanh(nn.Dense(5)(x.reshape(len(x), -1))))


def _is_plain(value):
    if isinstance(value, dict):
        return all(_is_plain(entry) for item in value.items() for entry in item)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return type(value) in (int, float, str, bool, type(None))


@pytest.mark.parametrize("kind", KINDS)
def test_records_hold_plain_values_whatever_was_given(kind):
    given = KINDS[kind]
    estimator = nad_jax.Estimator(
        derivative=np.str_("input_gradient"), step=given(50.0), point_scale=given(0.5), readout="sampled",
        num_readouts=given(2), logit=given(1), centred=given(True), block_size=given(8),
    )  # fmt: skip
    plain = nad_jax.Estimator(
        "input_gradient", 50.0, "shared", 0.5, "sampled", 2, 1, False, True, 8
    )
    assert (
        estimator == plain and _is_plain(dataclasses.asdict(estimator)) and not estimator.problems()
    )
    recipe = nad_jax.Recipe(
        optimizer_options={"momentum": given(0.5), "nesterov": given(True)}, clip_norm=given(1.0), num_epochs=given(3),
        weight_decay=given(0.0), batch_size=given(4), num_train=given(8), num_test=given(8), loss_window=given(2),
    )  # fmt: skip
    assert _is_plain(dataclasses.asdict(recipe)) and not recipe.problems()
    assert recipe.optimizer_options == {"momentum": 0.5, "nesterov": True}


def test_whole_numbers_for_real_fields_are_one_record_and_others_stay_wrong():
    assert json.dumps(
        dataclasses.asdict(nad_jax.Estimator(step=100, point_scale=np.int8(1)))
    ) == json.dumps(dataclasses.asdict(nad_jax.Estimator()))
    assert type(nad_jax.Recipe(clip_norm=1).clip_norm) is float
    wrong = nad_jax.Estimator(
        num_readouts=2.0, step=10**400, block_size=True, centred=1, derivative=np.array(["a"])
    )
    names = [problem.split(":")[0] for problem in wrong.problems()]
    assert names == ["derivative", "step", "num_readouts", "centred", "block_size"]
    assert type(nad_jax.Estimator(point_scale=Fraction(1, 2)).point_scale) is float
    assert errors.check_number("x", Fraction(1, 2), 0.0) == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_checks_return_what_they_took(kind):
    given = KINDS[kind]
    assert (
        errors.check_integer("n", given(3), 1) == 3
        and type(errors.check_integer("n", given(3), 1)) is int
    )
    assert type(errors.check_number("x", given(0.5), 0.0)) is float
    assert type(errors.check_number("x", given(2), 0.0)) is float
    assert errors.check_choice("flag", given(True), (False, True)) is True
    for shape in ([given(4), given(5), given(1)], given([4, 5, 1]), np.zeros((4, 5, 1)).shape):
        found = errors.check_image_shape(shape)
        assert found == (4, 5, 1) and _is_plain(found)
    for wrong in (given(True), given(1.5), given([3])):
        with pytest.raises(InputError, match="n: must be an integer of at least 1, got"):
            errors.check_integer("n", wrong, 1)
    with pytest.raises(InputError, match="image_shape: must be three positive integers"):
        errors.check_image_shape(given(4))


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_of_such_values_are_stored_and_the_same(kind, tmp_path):
    given = KINDS[kind]
    model = nad_jax.from_linen(Net(), given([4, 4, 1]), check=False)
    choices = {"derivative": "input_gradient", "readout": "sampled"}
    record = nad_jax.estimate_nads(
        model,
        given(8),
        given(7),
        stop_overlap=given(0.5),
        stop_size=given(3),
        logit=given(1),
        **choices,
    )
    assert _is_plain(record.config) and type(record.num_networks) is int
    plain = nad_jax.estimate_nads(
        nad_jax.from_linen(Net(), (4, 4, 1), check=False),
        8,
        7,
        stop_overlap=0.5,
        stop_size=3,
        logit=1,
        **choices,
    )
    assert record.config == plain.config
    np.testing.assert_array_equal(record.eigenvalues, plain.eigenvalues)
    nad_jax.save_nads(tmp_path / "nads.npz", record)
    assert nad_jax.load_nads(tmp_path / "nads.npz").config == record.config
    leading = nad_jax.estimate_leading_nads(
        model, given(8), given(2), given(2), given(1), given(7), logit=given(0), **choices
    )
    assert _is_plain(leading.nads.config)


def test_whatever_describes_a_model_can_be_stored():
    described = {
        "sizes": np.arange(3),
        "rate": np.float32(0.5),
        "layer": Net,
        "nested": {"deep": (np.int64(2), None)},
    }
    model = nad_jax.from_linen(Net(1), (4, 4, 1), check=False)._replace(description=described)
    record = record_choices(model, nad_jax.Estimator(), nad_jax.Execution(), nad_jax.make_key(0))
    assert (
        _is_plain(record)
        and record["sizes"] == [0, 1, 2]
        and record["nested"] == {"deep": [2, None]}
    )
    assert record["versions"].keys() == {"nad_jax", "jax", "jaxlib", "flax", "optax", "numpy"}
    assert record["versions"]["nad_jax"] == nad_jax.__version__
    assert record["device"] == jax.local_devices()[0].device_kind


@pytest.mark.parametrize("kind", KINDS)
def test_functions_take_such_numbers(kind, tmp_path):
    given, shape = KINDS[kind], (4, 6, 1)
    np.testing.assert_array_equal(
        nad_jax.dft_direction(given([4, 6, 1]), given([1, 2]), "sine", given(0)),
        nad_jax.dft_direction(shape, (1, 2), "sine", 0),
    )
    np.testing.assert_array_equal(
        nad_jax.basis_random(given(3), given(6), given(2)), nad_jax.basis_random(3, 6, 2)
    )
    noise = nad_jax.sample_noise(given(3), given(4), given(2), given(5))
    np.testing.assert_array_equal(
        noise.train, nad_jax.sample_noise(nad_jax.make_key(3), 4, 2, 5).train
    )
    x, _ = nad_jax.sample_separable(given(1), np.eye(5)[0], given(4), given(2.0), given(0.5))
    np.testing.assert_array_equal(x, nad_jax.sample_separable(1, np.eye(5)[0], 4, 2.0, 0.5)[0])
    band = nad_jax.marchenko_pastur_band(given(1.0), given(4), given(16))
    assert band == nad_jax.marchenko_pastur_band(1.0, 4, 16) and _is_plain(band)
    assert _is_plain(tuple(choose_chunks(nad_jax.Execution("sequential", given(2), given(1)))))
    carriers, _ = nad_jax.published_carriers(np.eye(16), given(1), given([4, 4, 1]), given(2))
    assert carriers.shape == (2, 16)
    assert nad_jax.subspace_overlap(np.eye(4), np.eye(4), given([1, 2])).tolist() == [1, 1]
    with pytest.raises(InputError, match="frequency: must be two integers"):
        nad_jax.dft_direction(shape, given([0.5, 1.0]))
    nad_jax.Snapshots(tmp_path / "state", {"seed": given(3), "sizes": given([1, 2])}, 1.0)


MODEL = nad_jax.create_model("logreg", (2, 2, 1), num_logits=2)
RECIPE = nad_jax.Recipe(
    num_train=4, num_test=4, num_epochs=1, batch_size=2, loss_window=1, schedule="constant"
)
TAKE_A_KEY = {
    "estimate_nads": lambda key: nad_jax.estimate_nads(
        MODEL, 4, key, logit=0, derivative="input_gradient"
    ),
    "estimate_leading_nads": lambda key: nad_jax.estimate_leading_nads(
        MODEL, 4, 1, 1, seed=key, logit=0, derivative="input_gradient"
    ),
    "sample_noise": lambda key: nad_jax.sample_noise(key, 4, 4, 4),
    "sample_separable": lambda key: nad_jax.sample_separable(key, np.eye(4)[0], 4),
    "basis_random": lambda key: nad_jax.basis_random(key, 4),
    "train": lambda key: nad_jax.make_train(MODEL, RECIPE)(
        key, np.eye(4, dtype=np.float32)[0], 1.0, 1.0, 0.1, nad_jax.sample_noise(0, 4, 4, 4)
    ),
    "train of images": lambda key: nad_jax.make_train_images(MODEL, RECIPE)(key, 0.1, IMAGES),
}
IMAGES = nad_jax.ImageData(*2 * (jnp.ones((4, 2, 2, 1)), jnp.arange(4) % 2))


@pytest.mark.parametrize("function", TAKE_A_KEY)
def test_keys_are_one_typed_key_or_a_seed(function):
    call = TAKE_A_KEY[function]
    by_seed, by_key = jax.tree.leaves(call(3)), jax.tree.leaves(call(nad_jax.make_key(3)))
    for one, other in zip(by_seed, by_key, strict=True):
        np.testing.assert_array_equal(one, other)
    call(jax.random.key(0))
    needed = r"(seed|key): must be an integer in 0 … 4294967295, or one key as of jax\.random\.key\(0\), got "
    for wrong, message in {
        "legacy": (jax.random.PRNGKey(0), r"one of jax\.random\.PRNGKey"),
        "numpy": (np.asarray(jax.random.PRNGKey(0)), r"one of jax\.random\.PRNGKey"),
        "several": (jax.random.split(jax.random.key(0), 3), r"keys of shape \(3,\)"),
        "real": (1.0, "1.0"),
        "negative": (-1, "-1"),
        "large": (2**32, "4294967296"),
        "flag": (True, "True"),
        "nothing": (None, "None"),
        "text": ("0", "'0'"),
        "integers": (np.arange(3), r"an array of shape \(3,\)"),
    }.values():
        with pytest.raises(InputError, match=f"^{needed}{message}$"):
            call(wrong)
    with pytest.raises(
        InputError,
        match=r"^(seed|key): must be of philox4x32 or threefry2x32, got a key of rbg; pass an integer$",
    ):
        call(jax.random.key(0, impl="rbg"))


def test_seeds_are_still_taken_by_their_old_name():
    with pytest.warns(FutureWarning, match="^key: is called seed now$"):
        old = nad_jax.basis_random(key=3, dimension=4)
    np.testing.assert_array_equal(old, nad_jax.basis_random(seed=3, dimension=4))
    with pytest.raises(InputError, match=r"^key: is the old name of seed; both are given$"):
        nad_jax.basis_random(key=3, seed=3, dimension=4)


def test_a_fault_is_told_by_the_name_that_the_argument_was_given_by():
    model = nad_jax.create_model("logreg", (4,))
    for name in ("seed", "key"):
        how = {"derivative": "input_gradient", name: jax.random.PRNGKey(0)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            with pytest.raises(InputError, match=f"^{name}: must be an integer .*PRNGKey"):
                nad_jax.estimate_nads(model, 4, **how)
