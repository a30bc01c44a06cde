"""Geometries without the own direction of each network, and what is expected of them by chance."""

import numpy as np
import pytest

from experiments import own_direction
from experiments.own_direction import chance_energies, chance_overlaps, compare_geometry

SIZE = 36
INDICES = (0, 2, 5, 10, 20, 35, 50, 75, 100, 150, 200, 250)  # of the recipe, in 256 dimensions


def test_a_geometry_is_compared_without_the_own_direction_of_each_network():
    rng = np.random.default_rng(0)
    # Networks of gradients in the first four directions, but for the one they are trained along.
    gradients = [np.zeros((50, SIZE)) for _ in range(2)]
    for rows, own in zip(gradients, (20, 30), strict=True):
        rows[:, :4] = rng.normal(size=(50, 4)) * [4, 3, 2, 1]
        rows[:, own] = 100
    found = compare_geometry(gradients, (20, 30))
    assert found["size"].tolist() == [1, 4, 16]
    np.testing.assert_allclose(found["overlap"][1], 1, atol=1e-9)
    assert found["overlap"][0] > 0.8
    total = sum((rows[:, :4] ** 2).sum(0) for rows in gradients)
    np.testing.assert_allclose(found["energy"], [total[0] / total.sum(), 1, 1])
    kept = compare_geometry(gradients, (-1, -1))
    assert kept["overlap"][0] < 0.01 and kept["energy"][1] < 0.01
    dead = compare_geometry([np.zeros((5, SIZE))], (0,))
    assert np.isnan(dead["overlap"]).all() and np.isfinite(dead["chance"]).all()


def test_the_first_direction_is_left_out_like_any_other():
    first, second = np.random.default_rng(1).normal(size=(2, 12, SIZE))
    before = first.copy()
    found = compare_geometry([first, second], (0, 3))
    np.testing.assert_array_equal(first, before)
    first[:, 0], second[:, 3] = 0, 0
    rows = np.concatenate([first, second])
    energies, right = (rows**2).sum(0), np.linalg.svd(rows)[2]
    np.testing.assert_allclose(found["energy"], np.cumsum(energies)[[0, 3, 15]] / energies.sum())
    expected = [(right[:k, :k] ** 2).sum() / k for k in (1, 4, 16)]
    np.testing.assert_allclose(found["overlap"], expected, atol=1e-9)


def test_energies_by_chance_are_those_of_isotropic_gradients():
    rounded = [0.00359, 0.01503, 0.06144, 0.24869]
    np.testing.assert_allclose(chance_energies(INDICES, 256), rounded, atol=6e-6)
    np.testing.assert_allclose(chance_energies((-1, -1), 256), np.array([1, 4, 16, 64]) / 256)
    rng, own = np.random.default_rng(0), (0, 0, 2)
    found = np.array([
        compare_geometry([rng.normal(size=(30, 9)) for _ in own], own)["energy"] for _ in range(300)
    ])  # fmt: skip
    error = found.std(0) / np.sqrt(len(found))
    expected = chance_energies(own, 9)
    assert (abs(found.mean(0) - expected) < 4 * error).all()
    assert (abs(found.mean(0) - np.array([1, 4]) / 9) > 8 * error).all()


def test_overlaps_by_chance_are_those_of_simulated_networks():
    rng, own = np.random.default_rng(5), (0, 1, 6, 3)
    found = []
    for _ in range(300):
        gradients = [rng.normal(size=(20, 9)) for _ in own]
        found.append(compare_geometry(gradients, own)["overlap"])
    error = np.std(found, 0) / np.sqrt(len(found))
    expected = chance_overlaps(own, 20, 9)
    assert (abs(np.mean(found, 0) - expected) < 4 * error).all()
    assert (abs(np.mean(found, 0) - np.array([1, 4]) / 9) > 6 * error).all()
    assert (expected < chance_energies(own, 9)).all()
    np.testing.assert_allclose(chance_overlaps((-1, -1), 20, 9), np.array([1, 4]) / 9)


def test_many_gradients_have_no_leading_direction_that_a_network_leaves_out(monkeypatch):
    monkeypatch.setattr(own_direction, "_EIGENVECTORS", 12)
    # The first three of six directions are one network's each: the leading ones are the last three,
    # and one of the first.
    found = chance_overlaps((0, 1, 2), 20_000, 6)
    np.testing.assert_allclose(found, [0, 0.5], atol=1e-3)


def test_networks_that_leave_out_one_direction_have_none_of_it():
    assert chance_energies((0,), 9)[0] == pytest.approx(0)
    assert chance_overlaps((0,), 30, 9)[0] == pytest.approx(0, abs=1e-12)
