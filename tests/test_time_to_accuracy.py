"""The experiment `time_to_accuracy` at smoke size: what its curves say, how its folder resumes,
what it refuses.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import nad_jax
from experiments import results, time_to_accuracy
from experiments.run import interruption, runner
from experiments.run.folder import Folder
from experiments.run.shards import Shard
from nad_jax import store, target
from nad_jax.errors import InputError
from nad_jax.snapshots import Snapshots
from tests.commands import read_numbers
from tests.test_configs import load_config, run

VARIANTS = ("sampled", "sampled_4", "marginalized", "marginalized_symmetrized")
COLUMNS = ("derivative", "variant", "seed", "reference_seed", "networks", "seconds", "overlap_4", "overlap_32",
           "device", "version", "command")  # fmt: skip
HURRIED = {
    "derivatives": ("central_difference", "input_gradient"), "max_seconds": 1e-6, "reference_networks": 48
}  # fmt: skip


def _config(**changes):
    config = load_config("time_to_accuracy").get_config("lenet")
    config.update(
        image_shape=(16, 16, 1), pooling="avg", sizes=(4, 32), num_readouts=4, first_networks=16
    )
    config.update(
        max_networks=96, max_seconds=1000.0, reference_networks=128, derivatives=("input_gradient",)
    )
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert run(time_to_accuracy, _config(), workdir)
    return workdir


def _curve(workdir, variant, column, derivative="input_gradient"):
    rows = results.read_results(workdir / "results.csv", COLUMNS)
    return np.array(
        [
            row[column]
            for row in rows
            if (row["derivative"], row["variant"]) == (derivative, variant)
        ]
    )


def _copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_overlaps_grow_with_networks_and_the_more_so_the_more_is_integrated_out(finished):
    overlaps = {variant: _curve(finished, variant, "overlap_32") for variant in VARIANTS}
    for variant, overlap in overlaps.items():
        assert _curve(finished, variant, "networks").tolist() == [16, 32, 48, 64, 96]
        assert (np.diff(_curve(finished, variant, "seconds")) > 0).all()
        assert np.isnan(overlap[0]) == (
            variant == "sampled"
        )  # 16 networks have sampled 16 directions
        assert (
            (np.diff(overlap[1:]) > 0).all()
            and overlap[1] > np.nan_to_num(overlap[0])
            and overlap[-1] < 1
        )
    for look in zip(*overlaps.values(), strict=True):
        known = [overlap for overlap in look if not np.isnan(overlap)]
        assert known == sorted(known) and len(known) >= 3
    assert overlaps["marginalized"][0] > overlaps["sampled"][-1]  # with a sixth of the networks
    halves = _curve(finished, "reference", "overlap_32")
    assert (np.diff(halves) > 0).all() and _curve(finished, "reference", "networks")[-1] == 128
    assert overlaps["marginalized_symmetrized"][-1] > halves[-1]  # 96 against 128, 64 against 64


def test_curves_of_an_earlier_command_stay_in_the_table(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    before = read_numbers(workdir / "results.csv")
    study = time_to_accuracy.make_study(_config(seeds=(7,)))
    assert not runner.collect(study, workdir)
    rows = read_numbers(workdir / "results.csv")
    kept = [{**row, "command": "this"} for row in rows]
    assert sorted(map(str, kept)) == sorted(map(str, before))
    asked = [row["command"] for row in rows]
    assert asked == sorted(asked, reverse=True)  # those of this one first
    assert {row["variant"] for row in rows if row["command"] == "this"} == {"reference"}
    assert {row["variant"] for row in rows if row["command"] == "earlier"} == {*VARIANTS}
    assert {row["version"] for row in rows} == {nad_jax.__version__}
    assert {(row["seed"], row["reference_seed"]) for row in rows} == {
        ("1000", "1000"),
        ("0", "1000"),
    }


def test_a_row_says_the_reference_it_is_compared_with_whoever_asked_for_that(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    path = workdir / "units" / "input_gradient,reference,seed=1000.npz"
    arrays = store.read_npz(path)
    arrays["config"] = np.asarray(str(arrays["config"]).replace("seed=1000", "seed=7"))
    store.write_npz(path.with_name("input_gradient,reference,seed=7.npz"), arrays)
    assert runner.collect(time_to_accuracy.make_study(_config(reference_seed=7)), workdir)
    rows = read_numbers(workdir / "results.csv")
    found = {(row["variant"], row["seed"], row["reference_seed"]) for row in rows}
    assert found == {(name, "0", "7") for name in VARIANTS} | {
        ("reference", n, n) for n in ("7", "1000")
    }


def test_a_table_from_before_the_seed_of_its_reference_is_drawn(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    rows = [line.split(",") for line in (workdir / "results.csv").read_text().splitlines()]
    table = "".join(",".join([*row[:3], *row[4:]]) + "\n" for row in rows)
    (workdir / "results.csv").write_text(table)
    said = json.loads((workdir / "command.json").read_text())
    said["digest"] = results._digest(workdir, said["command"], said["missing"])
    (workdir / "command.json").write_text(json.dumps(said))
    assert time_to_accuracy.draw(_config(), workdir)


def test_an_earlier_ensemble_is_not_compared_with_a_reference_of_its_own_seed(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    path = workdir / "units" / "input_gradient,reference,seed=1000.npz"
    arrays = store.read_npz(path)
    arrays["config"] = np.asarray(str(arrays["config"]).replace("seed=1000", "seed=0"))
    store.write_npz(path.with_name("input_gradient,reference,seed=0.npz"), arrays)
    path.unlink()
    assert not runner.collect(
        time_to_accuracy.make_study(_config(seeds=(7,), reference_seed=0)), workdir
    )
    rows = read_numbers(workdir / "results.csv")
    assert {(row["variant"], row["command"]) for row in rows} == {("reference", "this")}


def test_an_interrupted_run_ends_with_the_same_directions_and_a_rerun_computes_nothing(
    finished, tmp_path, monkeypatch
):
    workdir = _copy(finished, tmp_path)
    path = workdir / "units" / "input_gradient,marginalized,seed=0.npz"
    path.write_bytes(path.read_bytes()[:1000])
    calls = iter(range(5))

    def check():
        if next(calls, None) is None:
            raise interruption.Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(runner, "SNAPSHOT_SECONDS", 0.0)
        patch.setattr(interruption, "check", check)
        with pytest.raises(interruption.Interrupted):
            run(time_to_accuracy, _config(), workdir)
    assert path.with_name(path.name + ".corrupt").exists() and not path.exists()
    assert list((workdir / "snapshots").iterdir())
    run(time_to_accuracy, _config(), workdir)
    was, now = (store.read_npz(folder / "units" / path.name) for folder in (finished, workdir))
    for name in ("networks", "marginalized", "marginalized_symmetrized"):
        np.testing.assert_array_equal(was[name], now[name])
    monkeypatch.setattr(
        time_to_accuracy, "_make_program", lambda *args: pytest.fail("a unit was computed again")
    )
    run(time_to_accuracy, _config(), workdir)


@pytest.mark.parametrize(("before", "after", "saves"), [(4, 1, 1), (1, 4, 3)])
def test_a_reference_resumed_on_other_devices_has_all_its_networks(
    before, after, saves, tmp_path, monkeypatch
):
    config = _config(architecture="mlp", image_shape=(4, 4, 1), sizes=(4,))
    config.update(first_networks=8, reference_networks=64)
    saved, save = [], Snapshots.save
    monkeypatch.setattr(Snapshots, "due", lambda snapshots: True)
    monkeypatch.setattr(Snapshots, "save", lambda *args: saved.append(args[1]) or save(*args))

    def compute(workdir, devices):
        study = time_to_accuracy.make_study(config)
        (reference, *_) = study.members
        study = study._replace(members=[reference], is_done=lambda *_: False)
        folder = Folder(workdir, study).open()
        with target.compiled_for(jax.devices()[:devices]):
            runner._compute(folder, Shard(), runner._begin(folder, Shard(), 0), None)
        return store.read_npz(workdir / "units" / f"{reference.name}.npz")

    def check():
        if len(saved) == saves:
            raise interruption.Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(interruption, "check", check)
        with pytest.raises(interruption.Interrupted):
            compute(tmp_path / "run", before)
    anew = Path(shutil.copytree(tmp_path / "run", tmp_path / "anew"))
    resumed = compute(tmp_path / "run", after)
    looks = time_to_accuracy._plan_looks(64, 8)
    assert resumed["networks"].tolist() == looks
    for snapshot in (anew / "snapshots").iterdir():  # those that lack a network are not taken up
        kept = store.read_npz(snapshot)
        store.write_npz(snapshot, {**kept, "state_networks": kept["state_networks"] - 1})
    straight = compute(anew, after)
    assert straight["networks"].tolist() == looks
    np.testing.assert_allclose(
        resumed["split_half_overlap"][-1], straight["split_half_overlap"][-1], rtol=1e-4
    )


def test_a_unit_that_ends_before_its_networks_and_its_time_is_damaged(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    folder = Folder(workdir, time_to_accuracy.make_study(_config()), repair=False)
    for name in ("reference,seed=1000", "sampled,seed=0"):
        path = workdir / "units" / f"input_gradient,{name}.npz"
        arrays = store.read_npz(path)
        short = {key: array if key == "config" else array[:-1] for key, array in arrays.items()}
        store.write_npz(path, short)
        ((missing,),) = (unit.members for unit in folder.missing())
        assert missing.name == path.stem
        store.write_npz(path, {**short, "networks": arrays["networks"][1:]})
        assert not folder.missing()
        first, second, *others = arrays["networks"]
        store.write_npz(path, {**arrays, "networks": np.array([second, first, *others])})
        assert folder.missing()
        store.write_npz(
            path, {**short, "seconds": short["seconds"] + 999}
        )  # its time was over, a reference has none
        assert bool(folder.missing()) == name.startswith("reference")
        store.write_npz(path, arrays)


@pytest.fixture(scope="module")
def hurried(tmp_path_factory):
    """Two shards, two derivatives, no time."""
    workdir = tmp_path_factory.mktemp("run")
    assert not run(time_to_accuracy, _config(**HURRIED), workdir, Shard(0, 2))
    assert run(time_to_accuracy, _config(**HURRIED), workdir, Shard(1, 2))
    return workdir


def test_time_ends_an_ensemble_but_not_the_reference(hurried):
    for derivative in HURRIED["derivatives"]:
        for variant in VARIANTS:
            assert _curve(hurried, variant, "networks", derivative).tolist() == [16]
        assert _curve(hurried, "reference", "networks", derivative).tolist() == [16, 32, 48]
    with pytest.raises(InputError, match=r"max_seconds: folder 1e-06, command 5\.0"):
        run(time_to_accuracy, _config(**{**HURRIED, "max_seconds": 5.0}), hurried)


def test_what_is_there_is_collected_once_there_is_a_reference(hurried, tmp_path, capsys):
    workdir, config = _copy(hurried, tmp_path), _config(**HURRIED, target_overlap=1.0)
    for name in ("central_difference,reference,seed=1000", "input_gradient,sampled,seed=0"):
        (workdir / "units" / f"{name}.npz").unlink()
    assert not runner.collect(time_to_accuracy.make_study(config), workdir)
    printed = capsys.readouterr()
    assert "the best: not reached" in printed.out and "central_difference" not in printed.out
    assert "missing: lenet input_gradient sampled: 96 networks in 1 unit" in printed.err
    assert not len(_curve(workdir, "sampled", "networks"))
    assert time_to_accuracy.draw(config, workdir)
    (workdir / "units" / "input_gradient,reference,seed=1000.npz").unlink()
    with pytest.raises(runner.RunAgain, match="no reference is stored yet"):
        runner.collect(time_to_accuracy.make_study(config), workdir)


def test_the_table_says_the_first_look_at_or_above_the_target_and_the_figure_is_drawn(
    finished, tmp_path, capsys
):
    workdir = _copy(finished, tmp_path)
    overlaps = _curve(workdir, "marginalized", "overlap_32")
    config = _config(target_overlap=float(overlaps[2]) - 1e-6)
    assert runner.collect(time_to_accuracy.make_study(config), workdir)
    block = capsys.readouterr().out.split("input_gradient, size 32")[1]
    line = next(line for line in block.splitlines() if line.split()[0] == "marginalized")
    assert "48 networks" in line and "not reached" not in line
    (figure,) = time_to_accuracy.draw(config, workdir)
    assert figure.name == "time_to_accuracy.png" and figure.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match=r"seeds: folder \[0\], command \[0, 1\]"):
        time_to_accuracy.draw(_config(seeds=(0, 1)), workdir)


def test_a_model_without_symmetries_has_no_symmetrized_variant(tmp_path):
    members = time_to_accuracy.make_study(_config(image_shape=(16, 18, 1), seeds=(0, 1))).members
    assert {variant for member in members for variant in member.what.variants} == {
        *VARIANTS[:3],
        "reference",
    }
    assert len({member.name for member in members}) == len(members) == 1 + 3 * 2


def test_all_bad_values_are_reported_at_once(tmp_path):
    def lines(**changes):
        with pytest.raises(InputError) as caught:
            run(time_to_accuracy, _config(**changes), tmp_path / "run")
        return str(caught.value).splitlines()

    assert lines(sizes=(), derivatives=("input_gradient",) * 2) == [
        "derivatives: must be a non-empty tuple of different values, got ('input_gradient', "
        "'input_gradient')",
        "sizes: must be a non-empty tuple of different values, got ()",
    ]
    assert lines(
        sizes=(256,), derivatives=("gradient",), num_readouts=1, max_seconds=0.0, reference_seed=0
    ) == [
        "sizes: must be an integer in 1 … 255, got 256",
        "derivatives: unknown value 'gradient' (did you mean 'input_gradient'?); "
        "allowed: 'central_difference', 'input_gradient'",
        "num_readouts: must be an integer of at least 2, got 1",
        "max_seconds: must be a finite number greater than 0.0, got 0.0",
        "reference_seed: must not be among the seeds, got 0",
    ]
    names = (
        "step",
        "mapping",
        "architecture",
        "seeds",
        "first_networks",
        "max_networks",
        "reference_networks",
    )
    wrong = dict(zip(names, (-1.0, "looped", "lent", (-1,), 1, 0, 1), strict=True))
    assert [line.split(":")[0] for line in lines(**wrong, target_overlap=1.5)] == [
        *names,
        "target_overlap",
    ]
    assert not (tmp_path / "run").exists()
