"""Derivatives of any size give the same directions, and eigenvalues in proportion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compute_nads, geometry, leading_nads
from nad_jax import (
    estimate_leading_nads,
    estimate_nads,
    from_functions,
    load_nads,
    moments,
    store,
    subspace_overlap,
)
from nad_jax.errors import InputError
from nad_jax.moments import halves_from_arrays
from nad_jax.nads import degenerate_groups, null_band
from nad_jax.scaling import LARGEST, SMALLEST, find_exponent, power_of_two
from nad_jax.symmetries import permutations, representations
from tests.test_configs import load_config, run

WIDTH = 6


def _model(size, image_shape=(3, 4, 1), spread=0.0):
    """A small network times `size`; with a spread, each network times a factor of its own within
    10^±spread.
    """
    dimension = int(np.prod(image_shape))

    def init(key):
        keys = jax.random.split(key, 3)
        return {
            "kernel": jax.random.normal(keys[0], (dimension, WIDTH))
            * jnp.exp(-jnp.arange(dimension) / 4)[:, None],
            "readout": jax.random.normal(keys[1], (WIDTH, 1)),
            "factor": size * 10 ** (spread * jax.random.uniform(keys[2], (), minval=-1.0)),
        }

    def features(variables, x):
        return jnp.tanh(0.01 * x.reshape(len(x), -1) @ variables["kernel"])

    def apply(variables, x):
        return features(variables, x) @ variables["readout"] * variables["factor"]

    return from_functions(init, apply, image_shape, features, readout_variance=size**2, check=False)


def test_powers_of_two_are_exact_and_exponents_bound_the_largest_entry():
    exponents = np.arange(-140, 128)
    expected = np.where(exponents < -126, 0.0, np.ldexp(1.0, exponents))
    np.testing.assert_array_equal(
        jax.vmap(power_of_two)(jnp.asarray(exponents, jnp.int32)), expected
    )
    for entry in (3.0, -1e-30, 1e30, 1.0, np.nextafter(np.float32(1), np.float32(0))):
        rows = jnp.asarray([[entry, entry / 5]], jnp.float32)
        assert int(find_exponent(rows)) == np.frexp(np.float32(entry))[1]
    assert int(find_exponent(jnp.zeros((2, 3)))) == SMALLEST
    assert int(find_exponent(jnp.full((1, 2), 3e38))) == LARGEST


def _kinds():
    """Accumulators of both kinds, a state that has seen nothing, and the names of its sums."""
    basis = moments.random_basis(jax.random.key(0), 4, 7)
    group = (permutations((), (7, 1, 1)), representations((), (7, 1, 1)))
    kinds = ((moments.dense(7, group[1]), ("mean", "scatter")),
             (moments.sketched(4, *group), ("total", "square", "product")))  # fmt: skip
    return [(accumulator, accumulator.init(basis), sums) for accumulator, sums in kinds]


@pytest.mark.parametrize("kind", [0, 1])
def test_rows_times_a_power_of_two_give_the_same_digits(kind):
    module, empty, _ = _kinds()[kind]
    update = jax.jit(module.update)
    rows = np.random.default_rng(0).normal(size=(3, 20, 7)).astype(np.float32)
    rows[1] *= 40.0  # a state with an exponent of its own is added to
    states = []
    for power in (0, -90, 60):
        state = empty
        for batch in np.ldexp(rows, power):
            state = update(state, batch, np.arange(20) < 17)
        states.append((state, power))
    for state, power in states[1:]:
        for name, value, expected in zip(state._fields, state, states[0][0], strict=True):
            np.testing.assert_array_equal(value, expected + power * (name == "exponent"), name)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_state_without_rows_or_of_zeros_changes_nothing_but_the_count(kind):
    module, empty, sums = _kinds()[kind]
    rows = 1e-25 * np.random.default_rng(0).normal(size=(9, 7)).astype(np.float32)
    state = module.update(empty, rows, np.ones(9, bool))
    for merged in (module.merge(state, empty), module.merge(empty, state)):
        assert all(np.array_equal(one, other) for one, other in zip(merged, state, strict=True))
    nothing = module.update(empty, 1e30 * np.ones((9, 7), np.float32), np.zeros(9, bool))
    assert all(np.array_equal(one, other) for one, other in zip(nothing, empty, strict=True))
    zeros = module.merge(
        state, module.update(empty, np.zeros((9, 7), np.float32), np.ones(9, bool))
    )
    assert int(zeros.count) == 18 and int(zeros.exponent) == int(state.exponent)
    assert all(np.isfinite(getattr(zeros, name)).all() for name in sums)


@pytest.mark.parametrize(
    "sizes", [(1e-30, 1e30), (1e30, 1e-30), (1e-6, 1.0, 1e6), (1e-19, 1e-18, 1e-17)]
)
def test_rows_of_very_different_sizes_are_those_of_float64(sizes):
    rows = [size * np.random.default_rng(0).normal(size=(9, 7)) for size in sizes]
    whole = np.concatenate(rows).astype(np.float32).astype(np.float64)
    expected = whole.T @ whole / len(whole), np.cov(whole.T)
    group = (permutations((), (7, 1, 1)), representations((), (7, 1, 1)))
    dense, sketched = moments.dense(7, group[1]), moments.sketched(3, *group)
    basis = moments.random_basis(jax.random.key(0), 7, 7)
    states = [accumulator.init(basis) for accumulator in (dense, sketched)]
    for part in rows:
        given = jnp.asarray(part, jnp.float32), jnp.ones(9, bool)
        states = [
            accumulator.update(state, *given)
            for accumulator, state in zip((dense, sketched), states, strict=True)
        ]
    for centred in (False, True):
        found = moments.second_moment(states[0], centred)
        assert np.abs(found - expected[centred]).max() < 1e-5 * np.abs(expected[centred]).max()
        leading = sketched.read(states[1], centred)
        values = np.linalg.eigvalsh(expected[centred])[::-1]
        np.testing.assert_allclose(leading.eigenvalues, values[:3], rtol=1e-4)
        np.testing.assert_allclose(leading.trace, values.sum(), rtol=1e-5)


def _same(one, other, size):
    """Whether two records of leading directions are those of networks that differ by a factor
    `size`.
    """
    for sizes in (1, 2, 4):
        assert subspace_overlap(one.directions, other.directions, (sizes,))[0] > 1 - 1e-4
    np.testing.assert_allclose(one.eigenvalues[:4] / other.eigenvalues[:4] / size**2, 1, rtol=1e-5)
    sem = one.eigenvalue_sem / size**2 - other.eigenvalue_sem
    assert np.abs(sem).max() < 1e-4 * other.eigenvalues[0]
    np.testing.assert_allclose(one.split_half_overlap, other.split_half_overlap, atol=1e-4)


@pytest.mark.parametrize(
    ("derivative", "choices", "sizes"),
    [
        ("input_gradient", {"readout": "marginalized"}, (1e-30, 1e15)),
        ("central_difference", {"readout": "marginalized"}, (1e30,)),
        ("input_gradient", {"readout": "sampled"}, (1e-19, 1e30)),
        ("central_difference", {"readout": "sampled"}, (1e-30,)),
        ("input_gradient", {"readout": "sampled", "num_readouts": 3}, (1e-30,)),
        ("input_gradient", {"readout": "sampled", "centred": True}, (1e30,)),
    ],
)
def test_networks_of_any_size_have_the_same_nads(derivative, choices, sizes):
    choices = {**choices, "derivative": derivative, "chunk_size": 8}
    reference = estimate_nads(_model(1.0), 16, **choices)
    leading = estimate_leading_nads(_model(1.0), 16, 4, 2, **choices)
    assert reference.eigenvalues.dtype == reference.eigenvalue_sem.dtype == np.float64
    for size in sizes:
        dense = estimate_nads(_model(size), 16, **choices)
        _same(dense, reference, size)
        assert degenerate_groups(dense)[0] == degenerate_groups(reference)[0]
        if choices["readout"] == "sampled":
            np.testing.assert_allclose(
                np.divide(null_band(dense), null_band(reference)) / size**2, 1, rtol=1e-5
            )
        found = estimate_leading_nads(_model(size), 16, 4, 2, **choices)
        _same(found.nads, leading.nads, size)
        np.testing.assert_allclose(found.trace / leading.trace / size**2, 1, rtol=1e-5)


def test_the_largest_networks_of_an_ensemble_rule_it():
    choices = {"derivative": "input_gradient", "readout": "sampled", "chunk_size": 4}
    mild, wild = (
        estimate_nads(_model(1e-10, spread=spread), 40, **choices) for spread in (1.0, 14.0)
    )
    # The largest is 10^4 times one of the mild ones at most, and 10^13 times the smallest of its
    # own.
    assert 1e5 < wild.eigenvalues[0] / mild.eigenvalues[0] < 1e28
    assert wild.eigenvalues[0] > 0.99 * wild.eigenvalues.sum() > 0


def test_stored_units_of_such_networks_merge(tmp_path, monkeypatch):
    records = {}
    for factor in (1.0, 1e-30, 1e30):
        create = lambda config, factor=factor: _model(factor)._replace(  # noqa: E731
            description={"architecture": "mlp"}
        )
        monkeypatch.setattr(geometry, "read_model", create)
        for experiment, module in (("compute_nads", compute_nads), ("leading_nads", leading_nads)):
            config = load_config(experiment).get_config("mlp")
            config.update(image_shape=(3, 4, 1), num_networks=16, unit_size=10, symmetrized=False)
            config.update(
                derivative="input_gradient", readout="sampled", num_readouts=1, chunk_size=2
            )
            if experiment == "leading_nads":
                config.update(num_directions=4, num_extra=8, num_passes=2)
            workdir = tmp_path / f"{experiment}_{factor}"
            assert run(module, config, workdir)
            assert len(list((workdir / "units").glob("*networks*"))) == 2
            records[experiment, factor] = load_nads(workdir / "nads.npz")
            if factor == 1e-30:
                assert all(path.exists() for path in module.draw(config, workdir))
    for (experiment, factor), record in records.items():
        _same(record, records[experiment, 1.0], factor)
    batches = {"chunk_size": 10}  # those of the units
    choices = {"derivative": "input_gradient", "readout": "sampled", **batches}
    together = estimate_nads(_model(1e30), 16, **choices)
    _same(together, records["compute_nads", 1e30], 1.0)


def test_what_an_earlier_version_stored_is_refused(tmp_path):
    config = load_config("compute_nads").get_config("mlp")
    config.update(image_shape=(4, 4, 1), num_networks=4, unit_size=4, derivative="input_gradient")
    assert run(compute_nads, config, tmp_path)
    (path,) = (tmp_path / "units").iterdir()
    arrays = {name: array for name, array in store.read_npz(path).items() if name != "networks"}
    store.write_npz(path, arrays)
    with pytest.raises(
        InputError, match=r"networks_0.*: does not count its networks, an earlier version wrote it"
    ):
        run(compute_nads, config, tmp_path)
    assert path.exists()
    with pytest.raises(InputError, match="state: does not count its networks"):
        halves_from_arrays(arrays, None)
