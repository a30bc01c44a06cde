"""Leading NADs in stored units: the same as in one call, whoever computes them and however often
they stop.
"""

import shutil

import jax
import numpy as np
import pytest

from experiments import leading_nads
from experiments.run import dry_run, interruption, origin, runner
from experiments.run.folder import Folder
from experiments.run.shards import Shard
from nad_jax import create_model, estimate_leading_nads, load_nads, null_band, store, target
from nad_jax.errors import InputError
from tests.test_configs import load_config, run

SIZES = {"num_networks": 20, "num_directions": 6, "num_extra": 4, "num_passes": 2}


def _config(**changes):
    config = load_config("leading_nads").get_config("mlp")
    config.update(
        image_shape=(8, 8, 1),
        num_readouts=4,
        unit_size=6,
        chunk_size=2,
        figure_directions=3,
        **SIZES,
    )
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert run(leading_nads, _config(), workdir)
    return workdir


def _copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def _names(workdir):
    return sorted(path.stem for path in (workdir / "units").iterdir())


NETWORKS = ["0000000_0000006", "0000006_0000012", "0000012_0000018", "0000018_0000020"]
LAST_PASS = ["pass_1_basis", *(f"pass_1_networks_{networks}" for networks in NETWORKS)]


def test_units_give_what_one_call_gives(finished):
    choices = {
        "derivative": "input_gradient",
        "readout": "sampled",
        "num_readouts": 4,
        "symmetrized": True,
        "chunk_size": 2,
    }
    together = estimate_leading_nads(create_model("mlp", (8, 8, 1)), **SIZES, **choices)
    stored, arrays = load_nads(finished / "nads.npz"), store.read_npz(finished / "nads.npz")
    np.testing.assert_allclose(stored.directions, together.nads.directions, atol=1e-4)
    # The batches are the units here, chunks there: two estimates of one error.
    ratios = stored.eigenvalue_sem / together.eigenvalue_sem
    assert ratios.max() < 3 and ratios.min() > 1 / 3
    for name in ("eigenvalues", "split_half_overlap"):
        np.testing.assert_allclose(
            getattr(stored, name), getattr(together.nads, name), rtol=1e-3, atol=1e-8
        )
    np.testing.assert_allclose(arrays["pass_overlap"], together.pass_overlap, atol=1e-4)
    np.testing.assert_allclose(arrays["trace"], together.trace, rtol=1e-5)
    assert stored.num_networks == 20 and stored.overlap_sizes.tolist() == [1, 4, 6]
    assert together.nads.config.items() <= stored.config.items()
    assert _names(finished) == LAST_PASS


def test_a_unit_that_is_gone_is_computed_again_to_the_bit(finished, tmp_path):
    workdir, lost = _copy(finished, tmp_path), f"units/{LAST_PASS[2]}.npz"
    (workdir / lost).unlink()
    (workdir / "nads.npz").unlink()
    damaged = workdir / "units" / f"{LAST_PASS[3]}.npz"
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    assert run(leading_nads, _config(), workdir)
    for name in (lost, f"units/{LAST_PASS[3]}.npz", "nads.npz"):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes()
    assert damaged.with_name(damaged.name + ".corrupt").exists()


def _interrupt(finished, workdir, monkeypatch, devices):
    """Computes the second pass again until its first unit has kept a snapshot."""
    shutil.copytree(finished, workdir)
    for name in LAST_PASS[1:]:
        (workdir / "units" / f"{name}.npz").unlink()

    def check():
        if list(workdir.glob("snapshots/*")):
            raise interruption.Interrupted

    with monkeypatch.context() as patch, target.compiled_for(jax.devices()[:devices]):
        patch.setattr(runner, "SNAPSHOT_SECONDS", 0.0)
        patch.setattr(interruption, "check", check)
        with pytest.raises(interruption.Interrupted):
            run(leading_nads, _config(), workdir)
    (snapshot,) = workdir.glob("snapshots/*")
    return snapshot


@pytest.mark.parametrize("devices", [1, 2])
def test_a_unit_is_resumed_to_the_bit_and_from_other_devices_to_rounding(
    devices, finished, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    kept = store.read_npz(_interrupt(finished, workdir, monkeypatch, devices))
    assert int(kept["done"]) == 2 * devices and not [name for name in kept if "basis" in name]
    assert run(leading_nads, _config(), workdir) and not list(workdir.glob("snapshots/*"))
    if devices == 1:
        assert (workdir / "nads.npz").read_bytes() == (finished / "nads.npz").read_bytes()
    resumed, straight = (load_nads(folder / "nads.npz") for folder in (workdir, finished))
    np.testing.assert_allclose(resumed.eigenvalues, straight.eigenvalues, rtol=1e-4)
    assert resumed.num_networks == 20


def test_a_snapshot_of_other_test_directions_is_not_taken_up(finished, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    snapshot = _interrupt(finished, workdir, monkeypatch, 1)
    path = workdir / "units" / "pass_1_basis.npz"
    arrays = store.read_npz(path)
    store.write_npz(path, {**arrays, "directions": arrays["directions"][::-1].copy()})
    shutil.copytree(workdir, tmp_path / "anew")
    (tmp_path / "anew" / "snapshots" / snapshot.name).unlink()
    for name in ("run", "anew"):
        assert run(leading_nads, _config(), tmp_path / name)
    assert (workdir / "nads.npz").read_bytes() == (tmp_path / "anew" / "nads.npz").read_bytes()


def test_a_unit_that_lacks_networks_is_computed_again(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    path = workdir / "units" / f"{LAST_PASS[1]}.npz"
    arrays = store.read_npz(path)
    assert arrays["even_count"] == 3 * 4 * 8  # read-outs and mirror images
    store.write_npz(path, {**arrays, "even_count": arrays["even_count"] - 32})
    assert run(leading_nads, _config(), workdir)
    assert path.read_bytes() == (finished / "units" / path.name).read_bytes()


def test_damaged_test_directions_begin_anew_and_end_the_same(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    basis = workdir / "units" / "pass_1_basis.npz"
    basis.write_bytes(basis.read_bytes()[:-2000])
    assert run(leading_nads, _config(), workdir)
    assert (workdir / "nads.npz").read_bytes() == (finished / "nads.npz").read_bytes()


def test_shards_wait_for_each_other_and_give_the_same_file(finished, tmp_path):
    study, shards = leading_nads.make_study(_config()), [Shard(0, 2), Shard(1, 2)]
    missing = r"pass 2 of 2 begins when pass 1 is over, of which networks 6–11, 18–19 are missing"
    with pytest.raises(runner.RunAgain, match=missing):
        runner.run(study, tmp_path, shards[0])
    assert not runner.run(
        study, tmp_path, shards[1]
    )  # it has begun the second pass, and its share of both is done
    assert runner.run(study, tmp_path, shards[0])
    assert _names(tmp_path) == LAST_PASS
    assert (tmp_path / "nads.npz").read_bytes() == (finished / "nads.npz").read_bytes()


def test_a_folder_goes_on_with_more_passes(finished, tmp_path, monkeypatch):
    workdir, here = _copy(finished, tmp_path), origin.versions()
    with monkeypatch.context() as patch:
        patch.setattr(origin, "versions", lambda: {**here, "flax": "99"})
        with pytest.raises(
            InputError,
            match=rf"--allow_other_versions .*\n  flax: folder '{here['flax']}', command '99'",
        ):
            run(leading_nads, _config(num_passes=3), workdir)
        assert _names(workdir) == LAST_PASS
        assert runner.run(
            leading_nads.make_study(_config(num_passes=3)),
            workdir,
            allow_other_versions=True,
        )
    # The units of passes before are gone, but not forgotten.
    assert load_nads(workdir / "nads.npz").config["versions"] == {
        **here,
        "flax": sorted([here["flax"], "99"]),
    }
    assert {name[:6] for name in _names(workdir)} == {"pass_2"}
    more, fewer = (
        store.read_npz(folder / "nads.npz", ("pass_overlap",)) for folder in (workdir, finished)
    )
    np.testing.assert_array_equal(more["pass_overlap"][:1], fewer["pass_overlap"])
    changed = 1 - more["pass_overlap"]
    assert (changed[1] < np.maximum(changed[0], 1e-6)).all()
    study = leading_nads.make_study(_config())
    for act in (
        lambda: runner.run(study, workdir),
        lambda: study.collect(Folder(workdir, study), 0),
    ):  # collect: it has gone on meanwhile
        with pytest.raises(
            InputError,
            match=r"num_passes: can be raised, not lowered; .* has come to pass 3, got 2",
        ):
            act()


def test_figures_estimates_and_what_is_stored_so_far(finished, tmp_path, capsys):
    figures = leading_nads.draw(_config(), finished)
    assert [path.name for path in figures] == ["nads.png", "spectrum.png", "overlap.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in figures)
    workdir = _copy(finished, tmp_path)
    (workdir / "units" / f"{LAST_PASS[1]}.npz").unlink()
    study = leading_nads.make_study(_config())
    dry_run.describe(study, workdir)
    printed = capsys.readouterr().out
    assert (
        "plan: 40 networks in 8 units; stored 34 networks, missing 6 networks in 1 unit" in printed
    )
    assert "mlp: 6 networks in 1 unit" in printed
    assert not runner.collect(study, workdir)
    printed = capsys.readouterr().out
    assert (
        "leading NADs of mlp, 14 networks: exact gradient at one point of N(0, 1²), read-out "
        "sampled, 4 of each network, symmetrized, passes: 2" in printed
    )
    assert "size, split half, changed by the last pass" in printed


def test_the_null_band_of_leading_eigenvalues_needs_the_trace(finished):
    record = load_nads(finished / "nads.npz")
    with pytest.raises(InputError, match="not symmetrized"):
        null_band(record)
    record = record._replace(config={**record.config, "symmetrized": False})
    with pytest.raises(InputError, match="trace: needed where there are 6 eigenvalues of D = 64"):
        null_band(record._replace(trace=None))
    low, high = null_band(record)
    assert (low, high) == null_band(record, float(store.read_npz(finished / "nads.npz")["trace"]))
    assert low < record.eigenvalues[0] / 2 and high > low


def test_another_configuration_is_refused(finished):
    with pytest.raises(InputError, match=r"num_networks: folder 20, command 22"):
        run(leading_nads, _config(num_networks=22), finished)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"num_directions": 64, "num_extra": -1, "unit_size": 3, "seed": -1, "readout": "averaged"},
         ["readout", "num_directions", "num_extra", "unit_size", "seed"]),
        ({"num_networks": 1, "figure_directions": 0, "image_shape": (8, 0, 1)},
         ["image_shape", "num_networks", "figure_directions"]),
        ({"num_networks": 3, "num_directions": 33}, ["num_networks"]),
        ({"num_logits": 2}, ["logit"]),
    ],
)  # fmt: skip
def test_bad_values_are_one_line_each(changes, names, tmp_path):
    with pytest.raises(InputError) as caught:
        run(leading_nads, _config(**changes), tmp_path / "run")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == names
    assert not (tmp_path / "run").exists()
