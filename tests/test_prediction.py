"""Rank correlations with bootstrap errors, against scipy and a plain loop."""

import numpy as np
import pytest
import scipy.stats

from nad_jax.errors import InputError
from nad_jax.prediction import rank_correlations, tie_levels
from nad_jax.subspaces import rank_correlation

RNG = np.random.default_rng(3)
OUTCOME = np.round(RNG.normal(size=30), 1)  # with ties
PREDICTORS = np.stack(
    [OUTCOME + RNG.normal(size=30), RNG.normal(size=30), np.round(-OUTCOME + RNG.normal(size=30))]
)


def test_values_are_those_of_scipy_and_of_the_package():
    found = rank_correlations(PREDICTORS, OUTCOME)
    expected = [scipy.stats.spearmanr(one, OUTCOME).statistic for one in PREDICTORS]
    np.testing.assert_allclose(found.value, expected, atol=1e-12)
    ours = [float(rank_correlation(one, OUTCOME)) for one in PREDICTORS]
    np.testing.assert_allclose(found.value, ours, atol=1e-6)
    assert found.value[0] > 0.4 > found.value[1] > found.value[2]


def test_errors_and_shares_are_those_of_a_plain_loop():
    found = rank_correlations(PREDICTORS, OUTCOME, num_bootstrap=300, seed=5)
    drawn = np.random.default_rng(5).integers(30, size=(300, 30))
    again = np.array(
        [[scipy.stats.spearmanr(one[k], OUTCOME[k]).statistic for k in drawn] for one in PREDICTORS]
    )
    np.testing.assert_allclose(found.sem, again.std(1, ddof=1), rtol=1e-9)
    wins = np.bincount(again.argmax(0), minlength=3) / 300
    np.testing.assert_allclose(found.best_share, wins, atol=1e-12)
    assert found.best_share.sum() == pytest.approx(1)


def test_the_error_is_the_spread_over_samples_of_directions():
    def draw(rng, count=40):
        outcome = rng.normal(size=count)
        return outcome + rng.normal(size=count), outcome

    rng = np.random.default_rng(0)
    found = [rank_correlations(one[None], two, 300) for one, two in (draw(rng) for _ in range(60))]
    spread = np.std([one.value[0] for one in found], ddof=1)
    # 60 samples know their spread to 9 %.
    assert np.mean([one.sem[0] for one in found]) == pytest.approx(spread, rel=0.3)


def test_what_is_constant_has_no_correlation_and_is_never_the_best():
    found = rank_correlations(np.stack([np.ones(30), PREDICTORS[1]]), OUTCOME)
    assert np.isnan([found.value[0], found.sem[0]]).all() and np.isfinite(found.value[1])
    assert found.best_share.tolist() == [0, 1]
    found = rank_correlations(PREDICTORS, np.ones(30))
    assert np.isnan(found).all()


def test_equal_predictors_share_what_they_win():
    found = rank_correlations(PREDICTORS[[0, 0, 1]], OUTCOME, 200)
    assert found.best_share[0] == found.best_share[1] > 0.4
    assert found.best_share.sum() == pytest.approx(1)


def test_noise_has_an_error_of_one_over_the_root_of_the_number_of_directions():
    rng = np.random.default_rng(1)
    sem = [rank_correlations(rng.normal(size=(1, 34)), rng.normal(size=34)).sem for _ in range(20)]
    assert np.mean(sem) == pytest.approx(1 / np.sqrt(33), rel=0.1)


def test_energies_that_rounding_tells_apart_are_one_level():
    energies = np.array([2.0, 1.0, 1.0 + 1e-7, 3.0, 2.0 - 1e-6, 1.5])
    assert tie_levels(energies).tolist() == [2, 0, 0, 3, 2, 1]
    assert tie_levels(np.full(5, 0.1) * (1 + 1e-8 * np.arange(5))).tolist() == [0] * 5
    assert tie_levels(np.array([1e-9, 2e-9, 0.0])).tolist() == [1, 2, 0]  # of any scale
    # Small steps do not add up to one level.
    assert tie_levels(np.array([1.0, 4e-6, 8e-6, 1.6e-5, 2e-5])).tolist() == [2, 0, 0, 1, 1]


@pytest.mark.parametrize("scale", [1e-50, 1.0, 1e300])
def test_ranks_are_those_of_double_precision(scale):
    fine = scale * (1 + 1e-9 * np.arange(6))
    found = rank_correlations(np.stack([fine, -fine]), 0.5 + 1e-9 * np.arange(6))
    assert found.value == pytest.approx([1, -1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PREDICTORS[0], OUTCOME), "predictors: "),
        ((PREDICTORS, OUTCOME[:5]), "outcome: "),
        ((PREDICTORS * np.nan, OUTCOME), "predictors: "),
        ((PREDICTORS[:, :1], OUTCOME[:1]), "outcome: must be of two directions or more, got 1"),
        ((PREDICTORS, OUTCOME, 1), "num_bootstrap: must be an integer of at least 2, got 1"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(InputError) as caught:
        rank_correlations(*arguments)
    assert str(caught.value).startswith(message)
