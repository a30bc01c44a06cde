"""How well numbers of directions predict what networks make of these: rank correlations, and how
sure they are.
"""

import math
from typing import NamedTuple

import numpy as np
from jax.scipy.stats import rankdata

from nad_jax.errors import InputError, check_integer, host_array

_ROUNDING = 1e-5  # of the largest: energies that differ by less are equal up to float32 sums


class RankCorrelations(NamedTuple):
    """Spearman's rank correlations of P predictors with one outcome over K directions.

    value: [P], ties at their mean rank; nan where the predictor or the outcome is constant.
    sem: [P] standard error of the bootstrap over directions; nan where the value is.
    best_share: [P] the share of resamples in which a predictor has the largest correlation of all;
      those that tie there have equal parts. nan where no predictor has a correlation.
    """

    value: np.ndarray
    sem: np.ndarray
    best_share: np.ndarray


def tie_levels(energies: np.ndarray) -> np.ndarray:
    """Integers [K] in the order of energies [K]; those that rounding alone tells apart are equal.

    A level holds energies up to 1e-5 of the largest one above its lowest.
    """
    energies = host_array("energies", energies, "[K]")
    width = _ROUNDING * np.abs(energies).max(initial=0.0)
    levels, level, lowest = np.empty(len(energies), int), -1, -math.inf
    for place in np.argsort(energies, kind="stable"):
        if energies[place] > lowest + width:
            level, lowest = level + 1, energies[place]
        levels[place] = level
    return levels


def rank_correlations(
    predictors: np.ndarray, outcome: np.ndarray, num_bootstrap: int = 2000, seed: int = 0
) -> RankCorrelations:
    """Rank correlations of predictors [P, K] with an outcome [K], with bootstrap errors.

    K directions are drawn with replacement `num_bootstrap` times, the same ones for all predictors,
    so that these can be compared. Resamples in which the correlation does not exist are left out.

    Raises:
      InputError: unless all are finite numbers of K ≥ 2 directions.
    """
    predictors = host_array("predictors", predictors, "[P, K]")
    outcome = host_array("outcome", outcome, f"[{predictors.shape[1]}]")
    if len(outcome) < 2:
        raise InputError(f"outcome: must be of two directions or more, got {len(outcome)}")
    size = check_integer("num_bootstrap", num_bootstrap, 2), len(outcome)
    drawn = np.random.default_rng(seed).integers(len(outcome), size=size)
    found = _correlate(predictors, outcome)
    again = np.stack([_correlate(one[drawn], outcome[drawn]) for one in predictors])
    known = np.isfinite(again)
    again = np.where(known, again, -np.inf)
    best = known & (again == again.max(0))
    some = best.any(0)
    shares = best[:, some] / best[:, some].sum(0)
    return RankCorrelations(
        found,
        np.array([_spread(row[kept]) for row, kept in zip(again, known, strict=True)]),
        shares.mean(1) if some.any() else np.full(len(found), np.nan),
    )


def _spread(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def _correlate(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Spearman's rank correlations [...] of [..., K] and [..., K]."""
    # As integers: ranks are those of float32 numbers.
    levels = (np.unique(one, return_inverse=True)[1].reshape(one.shape) for one in (left, right))
    ranks = (np.asarray(rankdata(one, axis=-1), np.float64) for one in levels)
    left, right = (one - (one.shape[-1] + 1) / 2 for one in ranks)
    product = (left * right).sum(-1)
    norms = np.sqrt((left**2).sum(-1) * (right**2).sum(-1))
    return np.divide(product, norms, out=np.full(product.shape, np.nan), where=norms > 0)
