"""Experiments at smoke size, in process; and the command line, as a user meets it."""

import json
import os
import shutil
import subprocess
import sys
from functools import reduce
from operator import getitem

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import compute_nads, geometry, results, trained
from experiments.main import EXPERIMENTS, _read_json
from experiments.run import progress, runner
from experiments.run.folder import Stored
from nad_jax import load_nads, plotting, store
from nad_jax.errors import InputError
from tests.commands import Command
from tests.test_configs import ROOT, load_config, run


def _config(**changes):
    config = load_config("compute_nads").get_config("lenet")
    config.update(
        image_shape=(16, 16, 1), num_networks=10, unit_size=4, chunk_size=2, figure_directions=5
    )
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    run(compute_nads, _config(), workdir)
    return workdir


def _units(workdir):
    return {path.name: path.read_bytes() for path in (workdir / "units").iterdir()}


def _copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_a_run_stores_the_record_and_draws_it(finished):
    arrays = store.read_npz(finished / "nads.npz")
    assert arrays["directions"].shape == (256, 256) and arrays["eigenvalues"].shape == (256,)
    assert arrays["overlap_sizes"].shape == arrays["split_half_overlap"].shape == (4,)
    assert int(arrays["num_networks"]) == 10
    record = load_nads(finished / "nads.npz")
    assert record.config["architecture"] == "lenet" and record.config["seed"] == 0
    assert [path.name for path in sorted((finished / "units").iterdir())] == [
        "networks_0000000_0000004.npz",
        "networks_0000004_0000008.npz",
        "networks_0000008_0000010.npz",
    ]
    figures = compute_nads.draw(_config(), finished)
    assert [path.name for path in figures] == ["nads.png", "spectrum.png", "overlap.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in figures)


def test_stored_results_are_drawn_in_the_formats_that_are_asked_for(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    for path in workdir.glob("*.png"):
        path.unlink()
    how = "--figures_only", "--figure_formats=SVG,svg", "--config.figure_directions=1"
    command = Command(RECIPE, f"--workdir={workdir}", *how)
    assert command.wait() == 0, command.errors
    names = [f"{name}.svg" for name in ("nads", "spectrum", "overlap")]
    assert command.output.split() == [str(workdir / name) for name in names]
    assert all(b"<svg" in (workdir / name).read_bytes() for name in names)
    assert not list(workdir.glob("*.png"))


def test_a_rerun_computes_nothing_and_an_interrupted_run_ends_the_same(
    finished, tmp_path, monkeypatch
):
    workdir = _copy(finished, tmp_path)
    (workdir / "nads.npz").unlink()
    (workdir / "units" / "networks_0000004_0000008.npz").unlink()
    run(compute_nads, _config(), workdir)
    assert _units(workdir) == _units(finished)
    assert (workdir / "nads.npz").read_bytes() == (finished / "nads.npz").read_bytes()

    monkeypatch.setattr(
        geometry, "make_program", lambda *args: pytest.fail("a unit was computed again")
    )
    run(compute_nads, _config(), workdir)


def test_more_networks_extend_a_folder(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    run(compute_nads, _config(num_networks=14), workdir)
    assert load_nads(workdir / "nads.npz").num_networks == 14
    kept = {name: content for name, content in _units(finished).items() if "0010" not in name}
    assert kept.items() <= _units(workdir).items()
    straight = tmp_path / "straight"
    run(compute_nads, _config(num_networks=14), straight)
    assert _units(workdir) == _units(straight)
    with pytest.raises(
        InputError, match=r"num_networks: can be raised, not lowered.*holds 14, got 10"
    ):
        run(compute_nads, _config(), workdir)
    with pytest.raises(InputError, match=r"num_networks: can be raised, not lowered"):
        runner.collect(compute_nads.make_study(_config()), workdir)
    assert _units(workdir) == _units(straight)


def test_another_configuration_is_refused_and_nothing_is_lost(finished):
    before = _units(finished)
    with pytest.raises(InputError, match=r"step: folder 100\.0, command 10\.0"):
        run(compute_nads, _config(step=10.0), finished)
    assert _units(finished) == before


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_unit_is_kept_aside_and_computed_again(finished, tmp_path, damage):
    workdir = _copy(finished, tmp_path)
    path = workdir / "units" / "networks_0000004_0000008.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(
        {"flip": bytes(content), "truncate": bytes(content[:1000]), "empty": b""}[damage]
    )
    run(compute_nads, _config(), workdir)
    assert path.read_bytes() == _units(finished)[path.name]
    assert path.with_name(path.name + ".corrupt").exists()
    assert (workdir / "nads.npz").read_bytes() == (finished / "nads.npz").read_bytes()


def test_foreign_files_among_the_units_are_left_alone(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    (workdir / "units" / "networks_mine.npz").write_text("notes")
    run(compute_nads, _config(), workdir)
    assert (workdir / "units" / "networks_mine.npz").read_text() == "notes"


def test_comparison_with_itself_is_perfect(finished, tmp_path, capsys):
    workdir = _copy(finished, tmp_path)
    record = load_nads(workdir / "nads.npz")
    values = np.sqrt(9 * record.eigenvalues.astype(np.float64))
    np.save(tmp_path / "s.npy", values)
    changes = {
        "compare": str(finished / "nads.npz"),
        "compare_singular_values": str(tmp_path / "s.npy"),
        "compare_num_networks": 10,
    }
    run(compute_nads, _config(**changes), workdir)
    comparison = store.read_npz(workdir / "comparison.npz")
    np.testing.assert_allclose(comparison["overlap"], 1, atol=1e-5)
    np.testing.assert_allclose(comparison["singular_values"], values, rtol=1e-6)
    printed = capsys.readouterr().out
    assert "1.000" in printed and "split half" in printed
    assert compute_nads.draw(_config(), workdir)


def test_what_is_compared_with_must_be_a_basis(finished, tmp_path):
    record = load_nads(finished / "nads.npz")
    np.save(tmp_path / "copies.npy", np.repeat(record.directions[:1], 64, axis=0))
    with pytest.raises(
        InputError, match=r"copies\.npy: directions: rows are not orthonormal \(largest error 1"
    ):
        run(compute_nads, _config(compare=str(tmp_path / "copies.npy")), finished)


def test_every_direction_has_its_row_and_its_representation(finished):
    record = load_nads(finished / "nads.npz")
    assert set(record.symmetry) == {"A1", "A2", "B1", "B2", "E"}
    header, *rows = (finished / "nads.csv").read_text().splitlines()
    assert header == "index,eigenvalue,eigenvalue_sem,symmetry" and len(rows) == 256
    assert [row.split(",")[3] for row in rows] == record.symmetry.tolist()
    np.testing.assert_allclose(
        [float(row.split(",")[1]) for row in rows], record.eigenvalues, rtol=1e-5
    )


def test_a_record_from_before_symmetries_is_drawn(finished, tmp_path, monkeypatch):
    workdir = _copy(finished, tmp_path)
    arrays = store.read_npz(workdir / "nads.npz")
    config = json.loads(str(arrays["config"]))
    del config["symmetrized"]
    arrays = {name: array for name, array in arrays.items() if name != "symmetry"}
    store.write_npz(workdir / "nads.npz", {**arrays, "config": np.asarray(json.dumps(config))})
    assert set(load_nads(workdir / "nads.npz").symmetry) == {""}
    comparison = {
        "num_networks": np.asarray(10),
        "overlap_sizes": np.array([1]),
        "overlap": np.ones(1),
    }
    store.write_npz(workdir / "comparison.npz", comparison)
    drawn = []
    plot_overlap = plotting.plot_overlap
    monkeypatch.setattr(
        plotting,
        "plot_overlap",
        lambda curves, *rest: drawn.append(curves) or plot_overlap(curves, *rest),
    )
    assert len(compute_nads.draw(_config(), workdir)) == 3
    assert "against the compared directions" in drawn[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"readout": "sampled", "centred": True},
        {"readout": "sampled", "num_readouts": 3, "derivative": "input_gradient"},
        {"derivative": "input_gradient", "point": "fresh", "pooling": "avg"},
        {
            "num_logits": 3,
            "logit": 1,
            "image_shape": (16, 17, 2),
            "initialization": "flax",
            "symmetrized": False,
        },
    ],
)
def test_every_kind_of_estimate_runs_and_draws(changes, tmp_path):
    config = _config(num_networks=4)
    with config.unlocked():
        config.update(changes)
    run(compute_nads, config, tmp_path)
    compute_nads.draw(config, tmp_path)
    assert (load_nads(tmp_path / "nads.npz").eigenvalues >= 0).all()


def test_all_bad_values_are_reported_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        run(
            compute_nads,
            _config(step=-1.0, num_networks=0, unit_size=3, readout="averaged"),
            tmp_path / "run",
        )
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "step",
        "readout",
        "num_networks",
        "unit_size",
    ]
    with pytest.raises(InputError) as caught:
        run(
            compute_nads,
            _config(architecture="lent", seed=2**32, figure_directions=0, step=-1.0),
            tmp_path / "run",
        )
    names = [line.split(":")[0] for line in str(caught.value).splitlines()]
    assert names == ["step", "architecture", "seed", "figure_directions"]
    incomplete = _config()
    with incomplete.unlocked():
        del incomplete.step
    with pytest.raises(InputError, match="logit: the model has 3 logits; choose one in 0 … 2"):
        run(compute_nads, _config(num_logits=3), tmp_path / "run")
    with pytest.raises(InputError, match="step: field is missing"):
        run(compute_nads, incomplete, tmp_path / "run")
    assert not (tmp_path / "run").exists()


RECIPE = "--config=configs/compute_nads.py:lenet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config=configs/compute_nads.py:lent", "--workdir=W"],
            "config argument: unknown value 'lent'",
        ),
        (
            ["--config=configs/missing.py", "--workdir=W"],
            "there is no file 'configs/missing.py' here; those of ",
        ),
        (
            [RECIPE, "--workdir=W", "--config.num_network=3"],
            "'num_network' (did you mean 'num_networks'?)",
        ),
        ([RECIPE, "--workdir=W", "--config.num_networks=many"], "--config.num_networks=many"),
        ([RECIPE, "--workdir=W", "--config.logit="], "--config.logit=: must be an integer"),
        ([RECIPE, "--workdir=W", "--config.step=ten"], "--config.step=ten: must be a number"),
        (
            [RECIPE, "--workdir=W", "--config.num_networks=None"],
            "num_networks: must have a value, got None",
        ),
        ([RECIPE, "--workdir=W", "--config.pooling=None"], "pooling: must have a value, got None"),
        (
            [RECIPE, "--workdir=W", "--config.image_shape=None"],
            "image_shape: must have a value, got None",
        ),
        (
            [RECIPE, "--workdir=W", "--config.architecture=lent"],
            "architecture: unknown value 'lent'",
        ),
        ([RECIPE, "--workdir=W", "--config.compare=D"], "have D = 16, expected D = 1024"),
        ([RECIPE], "--workdir is required"),
        ([RECIPE, "--workdir="], "--workdir is required"),
        (["--config=tests/conftest.py", "--workdir=W"], "defines no function get_config"),
        ([RECIPE, "--workdir=/proc/none"], "/proc/none: "),
        ([RECIPE, "--workdir=W", "--figures_only"], "nads.npz: No such file"),
        (
            [RECIPE, "--workdir=W", "--figure_formats=png,jpg"],
            "figure_formats: must be some of png, pdf, svg, got 'png,jpg'",
        ),
        ([RECIPE, "--workdir=W", "--figure_formats="], "figure_formats: must be some of png, pdf"),
    ],
)
def test_the_command_line_answers_bad_input_in_one_line(arguments, message, tmp_path):
    np.save(tmp_path / "d.npy", np.eye(16))
    places = {
        "--workdir=W": f"--workdir={tmp_path / 'run'}",
        "--config.compare=D": f"--config.compare={tmp_path / 'd.npy'}",
    }
    command = Command(*(places.get(argument, argument) for argument in arguments))
    assert command.wait() == 2
    assert message in command.errors
    assert "Traceback" not in command.errors and len(command.errors.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_what_a_recipe_leaves_empty_can_be_given_as_none(tmp_path):
    (tmp_path / "fields.json").write_text(
        '\ufeff{"compare": null, "sweep": {"seed": null, "step": [10, 20]}}'
    )
    fields = [
        "logit=2",
        "logit=None",
        "compare_singular_values=None",
        "sweep.seed=0,1",
        "sweep.point=None",
    ]
    command = Command(
        "--config=configs/compute_nads.py:logreg",
        f"--workdir={tmp_path / 'run'}",
        "--config.image_shape=4,4,1",
        *(f"--config.{field}" for field in fields),
        "--config.compare=None",
        f"--config_json={tmp_path / 'fields.json'}",
    )
    assert command.wait() == 0, command.errors
    points = sorted((tmp_path / "run").glob("step=*"))
    assert [path.name for path in points] == [
        "step=10.0",
        "step=20.0",
    ]  # as without the fields that are None
    assert [load_nads(path / "nads.npz").config["logit"] for path in points] == [None, None]


def _fields(config, prefix=()):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, (*prefix, name))
        else:
            yield (*prefix, name), value


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_null_in_json_is_what_the_recipe_leaves_empty_or_one_line(name, tmp_path):
    path = tmp_path / "fields.json"
    for place, value in _fields(load_config(name).get_config()):
        config = load_config(name).get_config()
        path.write_text(
            json.dumps(reduce(lambda inner, part: {part: inner}, reversed(place), None))
        )
        if value in (None, "", ()):
            _read_json(config, str(path))
            assert reduce(getitem, place, config) == value
        else:
            with pytest.raises(InputError) as caught:
                _read_json(config, str(path))
            assert str(caught.value).startswith(
                f"{path}: {'.'.join(place)}: must have a value, got None"
            )
            assert len(str(caught.value).splitlines()) == 1


def test_the_command_line_runs_a_recipe(tmp_path):
    command = [sys.executable, "-m", "experiments.main", "--config=configs/compute_nads.py:logreg"]
    command += [f"--workdir={tmp_path / 'run'}", "--config.image_shape=8,8,1"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "10/10 networks" in result.stderr and "0 diverged" in result.stderr
    assert "NADs of logreg, 10 networks: central difference of step 100 at one" in result.stdout
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.json",
        "nads.csv",
        "nads.npz",
        "nads.png",
        "overlap.png",
        "progress",
        "run.json",
        "spectrum.png",
        "units",
    }


@pytest.mark.parametrize(
    "said",
    [{"versions": []}, {"device": None}, {"versions": {"nad_jax": 3}}, {"device": ["a", 1]}, {}],
)
def test_what_computed_a_row_is_text_or_unknown(said):
    assert results.provenance(said, "earlier") == {
        "device": "",
        "version": "",
        "command": "earlier",
    }
    known = {"device": ["a", "b"], "versions": {"nad_jax": "1"}}
    assert results.provenance(known, "this") == {
        "device": "a; b",
        "version": "1",
        "command": "this",
    }


def test_an_altered_record_of_another_command_is_left_out_of_the_table(tmp_path, caplog):
    point = tmp_path / "seed=0"
    point.mkdir()
    (point / "nads.npz").write_bytes(b"")
    for content in ("{}", "[" * 100_000, '{"seed": 0}'):
        (point / "config.json").write_text(content)
        assert list(compute_nads._earlier_rows(tmp_path, ["seed"], set(), {})) == []
    assert caplog.text.count("seed=0: has no row in results.csv") == 3


def test_brackets_without_end_are_damage_wherever_they_stand(tmp_path):
    deep, log = "[" * 100_000, tmp_path / "progress" / "0-of-1.jsonl"
    log.parent.mkdir()
    good = {"event": "unit", "unit": "a", "time": 1.0, "seconds": 2.0, "networks": 4}
    huge = {**good, "unit": "b", "seconds": 10**400}
    log.write_text("\n".join([deep, json.dumps(huge), json.dumps(good)]))
    assert progress.read_seconds(tmp_path) == {"a": 0.5}
    stored = Stored('{"seed": 3}', {"coordinates": deep}, "unit", {})
    assert trained._read_coordinates(stored, ("seed",)) == {"seed": 3}
    (tmp_path / "command.json").write_text(deep)
    with pytest.raises(InputError, match=r"command\.json: damaged, not JSON"):
        results.read_table(tmp_path, (), {})
