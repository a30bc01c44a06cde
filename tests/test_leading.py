import numpy as np
import pytest

from nad_jax import create_model, estimate_leading_nads, estimate_nads, subspace_overlap
from nad_jax.errors import InputError

CHOICES = {"derivative": "input_gradient", "readout": "sampled", "num_readouts": 4}


@pytest.mark.parametrize("choices", [CHOICES, {**CHOICES, "num_readouts": 1, "centred": True}])
def test_leading_nads_are_those_of_the_dense_estimate(choices):
    model, seen = create_model("lenet", (16, 16, 1)), []
    choices = {**choices, "chunk_size": 10}  # the same batches
    leading = estimate_leading_nads(
        model, 60, 8, num_passes=4, num_extra=12, progress=seen.append, **choices
    )
    dense = estimate_nads(model, 60, **choices)
    assert subspace_overlap(leading.nads.directions, dense.directions, (8,))[0] > 0.99
    assert leading.pass_overlap.shape == (3, 3) and leading.nads.overlap_sizes.tolist() == [1, 4, 8]
    first, last = leading.pass_overlap[[0, -1], -1]
    assert last > max(0.99, first - 1e-6)  # both may be 1 to rounding
    np.testing.assert_allclose(leading.nads.eigenvalues, dense.eigenvalues[:8], rtol=0.02)
    np.testing.assert_allclose(
        leading.nads.split_half_overlap[:2], dense.split_half_overlap[:2], atol=0.02
    )
    np.testing.assert_allclose(
        leading.nads.eigenvalue_sem, dense.eigenvalue_sem[:8], atol=0.05 * dense.eigenvalues[0]
    )
    np.testing.assert_allclose(leading.trace, dense.eigenvalues.sum(), rtol=1e-3)
    assert seen[-1] == 4 * 60 and seen == sorted(seen)


@pytest.mark.parametrize(
    ("networks", "arguments", "message"),
    [
        (4, {"num_directions": 256}, "num_directions: .* 1 … 255, got 256"),
        (
            4,
            {"num_directions": 8},
            "a half of the ensemble gives 2 independent derivatives, fewer than",
        ),
        (4, {"num_passes": 0}, "num_passes: "),
        (4, {"num_extra": -1}, "num_extra: "),
        (1, {}, "num_networks: "),
        (4, {"reedout": "sampled"}, "estimate_leading_nads: unknown value 'reedout'"),
    ],
)
def test_bad_values_are_refused(networks, arguments, message):
    choices = {"derivative": "input_gradient", "readout": "sampled"}
    with pytest.raises(InputError, match=message):
        estimate_leading_nads(
            create_model("lenet", (16, 16, 1)), networks, **{**choices, **arguments}
        )
