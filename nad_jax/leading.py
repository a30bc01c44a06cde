"""Leading NADs of inputs too large for a D×D matrix: a sketch of the second moment, refined in several passes.

The networks are not kept: each pass draws them again from their keys.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import ensemble, sketch, subspaces
from nad_jax.accumulation import Halves, check_finite, make_accumulate
from nad_jax.errors import InputError, check_integer
from nad_jax.estimator import check_num_networks, create_estimator, record_choices
from nad_jax.models import Model
from nad_jax.nads import NADs


class LeadingNADs(NamedTuple):
    """Leading NADs and how far their computation has converged.

    nads: the record of K directions; the statistical errors in it are those of the ensemble.
    pass_overlap: [P − 1, S] ‖U_k V_kᵀ‖²/k between each pass and the one before, for the sizes k of
      `nads.overlap_sizes`. The last row is the estimate of the numerical error: changes shrink from pass to pass.
    trace: tr E[g gᵀ], of all D directions.
    """

    nads: NADs
    pass_overlap: np.ndarray
    trace: float


def estimate_leading_nads(
    model: Model,
    num_networks: int,
    num_directions: int = 64,
    num_passes: int = 3,
    num_extra: int = 32,
    key: jax.Array | int = 0,
    progress: Callable[[int], None] | None = None,
    **choices: Any,
) -> LeadingNADs:
    """The leading NADs of a model, in memory proportional to L·D instead of D², L = 3·(K + extra).

    The same networks, derivatives and moments as `estimate_nads`, which it agrees with up to `pass_overlap`. The test
    directions of a pass are the leading eigenvectors found for all networks and for either half, so that the halves
    stay independent of each other.

    Source: NAD, Section 3, Definition 1; randomized subspace iteration: see `sketch`.

    Args:
      model, key, **choices: as in `estimate_nads`. For large inputs: derivative="input_gradient", readout="sampled"
        with several num_readouts.
      num_networks: N >= 2; every pass goes over all of them.
      num_directions: K.
      num_passes: P >= 1; flat spectra need more.
      num_extra: directions that are iterated beside the K, more of them converge faster.
      progress: called with the number of networks done, of N·P.

    Raises:
      InputError: as `estimate_nads`, and for fewer derivatives than directions in a half of the ensemble.
    """
    key = ensemble.resolve_key(key)
    estimator = create_estimator("estimate_leading_nads", choices)
    accumulate, estimator = make_accumulate(model, estimator, num_networks)
    check_num_networks(num_networks, estimator)
    dimension = int(np.prod(model.image_shape))
    check_integer("num_directions", num_directions, 1, dimension - 1)
    check_integer("num_passes", num_passes, 1)
    check_integer("num_extra", num_extra, 0)
    kept = min(num_directions + num_extra, dimension)
    sizes = {size for size in subspaces.default_sizes(dimension) if size < num_directions}
    sizes = (*sorted(sizes), num_directions)

    basis = sketch.random_basis(ensemble.named_key(key, "sketch"), min(3 * kept, dimension), dimension)
    pass_overlap, before = [], None
    for number in range(num_passes):
        report = None if progress is None else lambda done, number=number: progress(number * num_networks + done)
        halves = Halves(sketch.init(basis), sketch.init(basis), jnp.int32(0))
        halves = accumulate(key, halves, 0, num_networks, report)
        check_finite(halves, num_networks)
        parts = (sketch.merge(halves.even, halves.odd), halves.even, halves.odd)
        found = [sketch.leading(part, kept, estimator.centred) for part in parts]
        fewest = min(len(part.directions) for part in found)
        if fewest < num_directions:
            raise InputError(
                f"num_networks: a half of the ensemble gives {fewest} independent derivatives, fewer than "
                f"num_directions = {num_directions}; take more networks or read-outs"
            )
        if before is not None:
            pass_overlap.append(subspaces.subspace_overlap(found[0].directions, before, sizes))
        before = found[0].directions
        if number < num_passes - 1:
            together = np.concatenate([part.directions for part in found])
            basis = jnp.asarray(np.linalg.qr(together.T)[0].T)

    whole, even, odd = found
    directions = whole.directions[:num_directions]
    difference = np.subtract(*(sketch.energies(half, directions, estimator.centred) for half in parts[1:]))
    record = NADs(
        directions=directions,
        eigenvalues=whole.eigenvalues[:num_directions],
        eigenvalue_sem=(np.abs(difference) / 2).astype(np.float32),
        overlap_sizes=np.array(sizes),
        split_half_overlap=subspaces.subspace_overlap(even.directions, odd.directions, sizes).astype(np.float32),
        num_networks=num_networks,
        config={**record_choices(model, estimator, key), "num_passes": num_passes, "num_extra": num_extra},
    )
    return LeadingNADs(record, np.array(pass_overlap).reshape(-1, len(sizes)), whole.trace)
