import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax.architectures import ARCHITECTURES, create_model
from nad_jax.errors import InputError
from nad_jax.initializers import flax_readout_variance, reference_initialization, reference_readout_variance


def _flat(variables):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}


def _own_kernel(name, variables):
    """The kernel of the layer a leaf belongs to; None for the leaves of normalization layers."""
    return variables.get(name.rsplit("[", 1)[0] + "['kernel']")


@pytest.mark.parametrize("architecture", ["lenet", "vgg11", "resnet18"])
def test_reference_initialization_has_the_stated_law_leaf_by_leaf(architecture):
    variables = _flat(create_model(architecture).init(jax.random.key(0)))
    random = 0
    for name, leaf in variables.items():
        kernel = _own_kernel(name, variables)
        if kernel is None:
            np.testing.assert_array_equal(leaf, 1 if name.endswith(("['scale']", "['var']")) else 0)
            continue
        if kernel.ndim == 4 and architecture == "vgg11":
            if "bias" in name:
                np.testing.assert_array_equal(leaf, 0)
                continue
            variance, bound, fourth = 2 / (9 * kernel.shape[-1]), np.inf, 3.0
        else:
            bound = 1 / np.sqrt(np.prod(kernel.shape[:-1]))
            variance, fourth = bound**2 / 3, 9 / 5
        assert np.abs(leaf).max() <= bound
        if leaf.size >= 64:
            random += 1
            assert abs(leaf.mean()) < 5 * np.sqrt(variance / leaf.size), name
            assert abs((leaf**2).mean() / variance - 1) < 5 * np.sqrt((fourth - 1) / leaf.size), name
    assert random >= 4


def test_leaves_of_one_draw_are_independent():
    variables = _flat(create_model("lenet").init(jax.random.key(3)))
    leaves = [np.ravel(leaf)[:1000] for leaf in variables.values() if leaf.size >= 1000]
    correlations = np.corrcoef(leaves) - np.eye(len(leaves))
    assert np.abs(correlations).max() < 5 / np.sqrt(1000)


def test_keys_decide_everything():
    init = create_model("lenet").init
    first, again, other = init(jax.random.key(1)), init(jax.random.key(1)), init(jax.random.key(2))
    assert all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(again)))
    assert not any(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(other)))


def test_what_the_reference_does_not_settle_is_refused_by_name():
    shapes = {"params": {"layer": {"kernel": jnp.ones((3, 4, 5))}}}
    with pytest.raises(InputError, match="params/layer/kernel"):
        reference_initialization(shapes)
    with pytest.raises(InputError, match="params/embedding"):
        reference_initialization({"params": {"embedding": jnp.ones((3, 4))}})


@pytest.mark.parametrize(
    ("initialization", "variance"), [("reference", reference_readout_variance), ("flax", flax_readout_variance)]
)
def test_readout_variance_is_that_of_the_drawn_read_out(initialization, variance):
    for architecture in ("mlp", "lenet"):
        model = create_model(architecture, num_logits=200, initialization=initialization)
        kernel = [leaf for name, leaf in _flat(model.init(jax.random.key(0))).items() if leaf.shape[-1:] == (200,)]
        weights = next(leaf for leaf in kernel if leaf.ndim == 2)
        assert model.readout_variance == variance(weights.shape[0])
        assert abs((weights**2).mean() / model.readout_variance - 1) < 5 * np.sqrt(2 / weights.size)


def test_every_architecture_has_both_initializations():
    for architecture in ARCHITECTURES:
        for initialization in ("reference", "flax"):
            shapes = jax.eval_shape(create_model(architecture, initialization=initialization).init, jax.random.key(0))
            assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
