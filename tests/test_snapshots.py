"""Rolling snapshots: what is taken up again, and what is not; and that a resumed computation is the
same.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import (
    Estimator,
    Execution,
    chunks,
    create_model,
    from_functions,
    make_train_many,
    moments,
    store,
    target,
)
from nad_jax.accumulation import make_accumulate
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError
from nad_jax.recipe import Recipe
from nad_jax.snapshots import Snapshots
from nad_jax.symmetries import permutations, representations


def _snapshots(tmp_path, **changes):
    return Snapshots(
        tmp_path / "folder" / "unit", **{"identity": {"seed": 0}, "seconds": 0.0, **changes}
    )


def test_the_newest_intact_snapshot_of_the_same_computation_is_taken_up(tmp_path):
    snapshots = _snapshots(tmp_path)
    assert snapshots.load() is None
    for position in (3, 5, 8):
        snapshots.save(position, {"state": np.arange(position)})
    paths = sorted((tmp_path / "folder").iterdir())
    assert [path.name for path in paths] == ["unit.0.npz", "unit.1.npz"]
    assert len(_snapshots(tmp_path).load()["state"]) == 8
    assert _snapshots(tmp_path, identity={"seed": 1}).load() is None

    newest, older = paths  # the third went into the first file again
    content = newest.read_bytes()
    for damaged in (
        b"",
        content[:100],
        content[:-1],
        bytes([*content[:200], content[200] ^ 1, *content[201:]]),
    ):
        newest.write_bytes(damaged)
        assert len(_snapshots(tmp_path).load()["state"]) == 5
        assert newest.with_name("unit.0.npz.corrupt").read_bytes() == damaged
    older.write_bytes(b"")
    newest.write_bytes(b"")
    assert _snapshots(tmp_path).load() is None


def test_a_resumed_computation_writes_over_the_older_of_the_two(tmp_path):
    snapshots = _snapshots(tmp_path)
    for position in (3, 5):
        snapshots.save(position, {})
    resumed = _snapshots(tmp_path)
    resumed.load()
    resumed.save(8, {})
    positions = {
        int(np.load(path, allow_pickle=False)["position"])
        for path in (tmp_path / "folder").iterdir()
    }
    assert positions == {5, 8}
    resumed.clear()
    assert not list((tmp_path / "folder").iterdir())


def test_the_seconds_of_a_computation_go_on_from_its_snapshot(tmp_path):
    now = [100.0]
    snapshots = _snapshots(tmp_path, clock=lambda: now[0])
    now[0] = 107.0
    snapshots.save(1, {"elapsed_otherwise": np.ones(1)})
    now[0] = 500.0  # the process was killed, and another begins
    resumed = _snapshots(tmp_path, clock=lambda: now[0])
    assert resumed.elapsed() == 0.0
    assert set(resumed.load()) == {"elapsed_otherwise"}
    now[0] = 502.0
    assert resumed.elapsed() == 7.0 + 2.0
    with pytest.raises(InputError, match="clock: must be a function, got 3"):
        _snapshots(tmp_path, clock=3)


def test_a_snapshot_is_bound_to_what_the_computation_finds_when_it_begins(tmp_path):
    for basis in (None, "a", "b"):
        snapshots = _snapshots(tmp_path)
        if basis is not None:
            snapshots.bind({"basis": basis})
        assert snapshots.load() is None
        snapshots.save(1, {})
        assert snapshots.load() is not None
        snapshots.clear()
        snapshots.save(1, {})
    with pytest.raises(InputError, match="identity: must be JSON values"):
        _snapshots(tmp_path).bind({"basis": object()})


def test_snapshots_are_due_by_time_or_on_demand(tmp_path):
    assert _snapshots(tmp_path).due()
    assert not _snapshots(tmp_path, seconds=1e6).due()
    assert _snapshots(tmp_path, seconds=1e6, urgent=lambda: True).due()


def test_snapshots_that_are_slow_to_write_are_rare(tmp_path, monkeypatch):
    snapshots = _snapshots(tmp_path)
    monkeypatch.setattr(store, "write_npz", lambda *args: time.sleep(0.05))
    snapshots.save(1, {})
    assert not snapshots.due()
    time.sleep(0.1)
    assert not snapshots.due()


class Stopped(Exception):
    pass


def _stop_at(number):
    """A progress function that ends the computation at its `number`-th call."""
    calls = []

    def progress(done):
        calls.append(done)
        if len(calls) == number:
            raise Stopped

    return progress


@pytest.mark.parametrize("stop_at", [1, 8])
def test_a_resumed_training_is_bit_for_bit_an_uninterrupted_one(tmp_path, stop_at):
    recipe = Recipe(num_train=100, num_test=50, batch_size=32, num_epochs=3, loss_window=3)
    model = create_model("mlp", (8, 8, 1), num_logits=2)
    run = make_train_many(model, recipe, chunk_size=2)
    sweep = {
        "directions": np.eye(64, dtype=np.float32)[:5],
        "seed": [0, 1, 0, 0, 1],
        "sigma": [1, 1, 2, 3, 3],
    }
    straight = run(**sweep)  # chunks of seed 0: two networks and one, of seed 1: two
    with pytest.raises(Stopped):
        run(
            **sweep, progress=_stop_at(stop_at), snapshots=_snapshots(tmp_path, urgent=lambda: True)
        )
    epochs = []
    resumed = make_train_many(model, recipe, chunk_size=2)(
        **sweep, progress=epochs.append, snapshots=_snapshots(tmp_path)
    )
    assert len(epochs) == 9 - stop_at
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)


def test_keys_and_short_floats_of_a_state_survive():
    state = {"key": make_key(3), "weights": jnp.arange(3, dtype=jnp.bfloat16), "step": jnp.int32(7)}
    restored = chunks.restore_tree(state, chunks.flatten_tree(state))
    assert jax.random.key_impl(restored["key"]) == jax.random.key_impl(state["key"])
    np.testing.assert_array_equal(
        jax.random.key_data(restored["key"]), jax.random.key_data(state["key"])
    )
    np.testing.assert_array_equal(restored["weights"], state["weights"])
    assert restored["step"] == 7 and restored["weights"].dtype == jnp.bfloat16


@pytest.fixture(scope="module")
def accumulate():
    """Adds networks of a linear model, two at a time, some of which diverge, to moments or to
    sketches.
    """

    def init(key):
        weights = jax.random.normal(key, (16, 1))
        return jnp.where(weights[0] > 1, jnp.nan, weights)

    model = from_functions(
        init, lambda weights, x: x.reshape(len(x), -1) @ weights, (4, 4, 1), check=False
    )
    estimator = Estimator(derivative="input_gradient", readout="sampled")
    group = (permutations((), model.image_shape), representations((), model.image_shape))
    accumulators = {"moments": moments.dense(16, group[1]), "sketches": moments.sketched(3, *group)}

    @functools.cache
    def program(kind, devices):
        with target.compiled_for(jax.devices()[:devices]):
            how = Execution(chunk_size=2), 31
            return make_accumulate(model, estimator, accumulators[kind], *how)[0]

    def accumulate(kind, devices, *how):
        basis = moments.random_basis(make_key(1), 3, 16)
        empty = moments.init_halves(accumulators[kind], basis)
        return program(kind, devices)(make_key(0), empty, 4, 35, *how)

    return accumulate


@pytest.mark.parametrize("kind", ["moments", "sketches"])
def test_an_ensemble_is_resumed_on_any_number_of_devices_and_no_network_is_lost(
    kind, accumulate, tmp_path
):
    straight = moments.halves_to_arrays(accumulate(kind, 4))
    assert straight["networks"] + straight["diverged"] == 31 and straight["diverged"] > 0
    for number in (1, 2, 3, 4, 8):
        kept = _snapshots(tmp_path / str(number), urgent=lambda: True)
        with pytest.raises(Stopped):
            accumulate(kind, 4, _stop_at(2), kept)
        assert not [
            name for path in tmp_path.rglob("*.npz") for name in np.load(path) if "basis" in name
        ]
        done = []
        resumed = moments.halves_to_arrays(
            accumulate(kind, number, done.append, _snapshots(tmp_path / str(number)))
        )
        assert done[0] == min(16 + 2 * number, 31) and done[-1] == 31
        for name, array in straight.items():
            atol = 0 if number == 4 or array.dtype.kind == "i" else 1e-5 * np.abs(array).max()
            np.testing.assert_allclose(resumed[name], array, rtol=0, atol=atol)


def test_a_snapshot_that_lacks_networks_is_not_taken_up(accumulate, tmp_path):
    straight = moments.halves_to_arrays(accumulate("moments", 4))
    with pytest.raises(Stopped):
        accumulate("moments", 4, _stop_at(2), _snapshots(tmp_path, urgent=lambda: True))
    newest = tmp_path / "folder" / "unit.1.npz"
    store.write_npz(
        newest, {name: a for name, a in store.read_npz(newest).items() if not name.startswith("3_")}
    )
    done = []
    resumed = moments.halves_to_arrays(accumulate("moments", 4, done.append, _snapshots(tmp_path)))
    assert done == [16, 24, 31]  # from the older one
    assert newest.with_name("unit.1.npz.corrupt").exists()
    for name, array in straight.items():
        np.testing.assert_array_equal(resumed[name], array)
