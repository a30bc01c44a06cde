"""The experiment `predictors` at smoke size: what its tables say, how its folder resumes and grows,
what it refuses.
"""

import csv
import io
import shutil

import numpy as np
import pytest
import scipy.stats

from experiments import predictions, predictors
from experiments.cases import Geometry
from experiments.run import interruption, runner
from experiments.run.folder import Folder
from experiments.run.plan import Unit, Work
from experiments.run.shards import Shard
from nad_jax import (
    Recipe,
    create_model,
    dft_direction,
    directional_energy,
    estimate_nads,
    store,
    train_many,
)
from nad_jax.errors import InputError
from nad_jax.prediction import tie_levels
from nad_jax.snapshots import Snapshots
from tests.commands import read_numbers
from tests.test_configs import load_config, run

MLP = "mlp(width=8)"


def _config(**changes):
    config = load_config("predictors").get_config("cpu")
    config.update(
        architectures=(MLP, "logreg"), num_directions=(6, 4), num_epochs=(4, 2),
        num_networks=(8, 4), image_shape=(8, 8, 1), frequency_range=(-4, 4), num_train=200,
        num_test=400, sigma=1.0, batch_size=32, loss_window=3, derivatives=("central_difference",),
        points=("shared", "fresh"), unit_size=4, training_unit_size=4, num_bootstrap=50,
    )  # fmt: skip
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert run(predictors, _config(), workdir)
    return workdir


def _copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def _read(workdir, name="results.csv", **chosen):
    rows = csv.DictReader(io.StringIO((workdir / name).read_text()))
    return [row for row in rows if all(row[n] == value for n, value in chosen.items())]


def _units(workdir):
    return {str(path.relative_to(workdir)): path for path in workdir.glob("*/units/*.npz")}


def test_a_row_is_the_rank_correlation_of_the_raw_table(finished):
    rows = _read(finished)
    assert [(row["architecture"], row["point"]) for row in rows] == [
        (MLP, "shared"), (MLP, "fresh"), ("logreg", "shared"), ("logreg", "fresh"),
    ]  # fmt: skip
    assert [*rows[0]] == [*predictions.COLUMNS]
    raw = _read(finished, "directions.csv", architecture=MLP, point="shared")
    assert [*raw[0]] == [*predictions.DIRECTION_COLUMNS] and len(raw) == 6
    columns = ("energy", "energy_even", "energy_odd", "test_accuracy")
    energy, even, odd, accuracy = (np.array([float(row[n]) for row in raw]) for n in columns)
    np.testing.assert_allclose(energy, (even + odd) / 2, rtol=1e-5)
    said = {name: float(rows[0][name]) for name in ("rank_correlation", "split_half")}
    assert said == pytest.approx(
        {
            "rank_correlation": scipy.stats.spearmanr(energy, accuracy).statistic,
            "split_half": scipy.stats.spearmanr(even, odd).statistic,
        },
        abs=1e-6,
    )
    assert 0 < float(rows[0]["rank_correlation_sem"]) < 1 and rows[0]["best_share"] == "1"
    assert float(rows[0]["lowest_accuracy"]) == pytest.approx(accuracy.min())
    counted = int((accuracy > 0.5 + 3 * np.sqrt(0.25 / 400)).sum())
    assert (int(rows[0]["num_learned"]), rows[0]["num_directions"]) == (counted, "6")
    assert (rows[0]["num_networks"], rows[0]["num_epochs"], rows[0]["num_seeds"]) == ("8", "4", "1")


def test_where_all_energies_are_equal_there_is_no_number_but_a_reason(finished):
    for row in _read(finished)[1:]:
        assert row["note"].startswith("all vᵀGv are equal: ")
        names = ("rank_correlation", "rank_correlation_sem", "best_share", "split_half")
        assert {row[name] for name in names} == {"nan"}
    assert "do not tell them apart" in _read(finished)[1]["note"]
    raw = _read(finished, "directions.csv", architecture=MLP, point="fresh")
    assert {row["energy"] for row in raw} == {"nan"} and len(raw) == 6
    # What is known beforehand is not measured.
    assert not (finished / f"{MLP},central_difference,fresh").exists()


def test_directions_of_a_block_are_ties_whatever_was_sampled():
    config = _config(architectures=("mixer(patch=4,depth=1,width=8)",), num_directions=(4,),
                     num_epochs=(1,), num_networks=(4,), points=("origin",))  # fmt: skip
    (case,) = predictors.make_cases(config)
    ((geometry, reason),) = case.geometries
    assert not reason and geometry.blocks.count == 2
    accumulator = geometry.ensemble.accumulator
    rows = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    state = accumulator.update(accumulator.init(None), rows, np.ones(5, bool))
    # The mean over patches of the first is not zero, that of the others is.
    frequencies = [(2, 0), (1, 0), (3, 1), (1, 2)]
    chosen = np.stack([np.asarray(dft_direction((8, 8, 1), place)) for place in frequencies])
    energies = predictions.measure_energies(geometry, state, chosen)
    assert len({*tie_levels(energies)[1:].tolist()}) == 1 and len({*tie_levels(energies)}) == 2
    expected = np.einsum("kd,de,ke->k", chosen, rows.T @ rows / 5, chosen)
    assert len({*tie_levels(expected)}) == 4


def test_energies_and_accuracies_are_those_of_the_package(finished):
    raw = _read(finished, "directions.csv", architecture=MLP, point="shared")
    frequencies = [(int(row["frequency_row"]), int(row["frequency_column"])) for row in raw]
    rows = np.stack([np.asarray(dft_direction((8, 8, 1), place)) for place in frequencies])
    nads = estimate_nads(
        create_model("mlp", (8, 8, 1), width=8), 8, derivative="central_difference"
    )
    expected = directional_energy(nads, rows)
    found = [float(row["energy"]) for row in raw]
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    recipe = Recipe(num_train=200, num_test=400, num_epochs=4, batch_size=32, loss_window=3)
    model = create_model("mlp", (8, 8, 1), num_logits=2, width=8)
    trained = train_many(model, rows, sigma=1.0, recipe=recipe, learning_rate=0.5)
    found = [float(row["test_accuracy"]) for row in raw]
    np.testing.assert_allclose(found, trained.test_accuracy, atol=1e-6)


def test_directions_of_fewer_are_the_first_of_more(finished):
    few, many = (
        [row["direction"] for row in _read(finished, "directions.csv", architecture=name, point="shared")]
        for name in ("logreg", MLP)
    )  # fmt: skip
    assert few == many[:4] and len({*many}) == 6
    other = predictors.order_directions(_config(direction_seed=1)).coordinates
    assert [place["direction"] for place in other[:6]] != many
    assert {place["direction"] for place in other} >= {*many}


def test_an_interrupted_run_ends_with_the_same_bytes_and_a_rerun_computes_nothing(
    finished, tmp_path, monkeypatch
):
    workdir, calls = tmp_path / "run", iter(range(25))

    def check():
        if next(calls, None) is None:
            raise interruption.Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(interruption, "check", check)
        with pytest.raises(interruption.Interrupted):
            run(predictors, _config(), workdir)
    assert 0 < len(_units(workdir)) < len(_units(finished))
    damaged = next(iter(_units(workdir).values()))
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert run(predictors, _config(), workdir)
    was, now = _units(finished), _units(workdir)
    assert was.keys() == now.keys()
    assert all(path.read_bytes() == now[name].read_bytes() for name, path in was.items())
    assert read_numbers(workdir / "results.csv") == read_numbers(finished / "results.csv")
    assert (workdir / "directions.csv").read_bytes() == (finished / "directions.csv").read_bytes()
    monkeypatch.setattr(runner, "_compute_group", lambda *_: pytest.fail("computed again"))
    assert run(predictors, _config(), workdir)


def test_shards_share_the_work_and_more_directions_and_networks_extend_a_folder(finished, tmp_path):
    workdir, before = _copy(finished, tmp_path), _units(finished)
    kept = {name: path.stat().st_mtime_ns for name, path in _units(workdir).items()}
    more = _config(num_directions=(8, 4), num_networks=(12, 4))
    assert not run(predictors, more, workdir, Shard(0, 2))
    assert run(predictors, more, workdir, Shard(1, 2))
    found = _units(workdir)
    # Of the second file of four directions there were two: it is another one now.
    assert {*before} <= {*found} and len(found) == len(before) + 2
    assert {n: p.stat().st_mtime_ns for n, p in found.items() if n in kept} == kept
    row = _read(workdir)[0]
    assert (row["num_directions"], row["num_networks"]) == ("8", "12")


def test_what_is_stored_so_far_is_collected(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    shutil.rmtree(workdir / "logreg,training" / "units")
    shutil.rmtree(workdir / f"{MLP},central_difference,shared" / "units")
    study = predictors.make_study(_config())
    assert not runner.collect(study, workdir)
    assert [(row["architecture"], row["point"]) for row in _read(workdir)] == [(MLP, "fresh")]
    assert [path.name for path in predictors.draw(_config(), workdir)] == ["predictors.png"]
    trained, measured = f"{MLP},training", f"{MLP},central_difference,shared"
    shutil.copytree(finished / measured / "units", workdir / measured / "units", dirs_exist_ok=True)
    shutil.rmtree(workdir / trained / "units")
    with pytest.raises(runner.RunAgain, match="no architecture has an accuracy and a geometry"):
        runner.collect(predictors.make_study(_config()), workdir)


def test_a_file_of_other_networks_is_computed_again(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    path = next((workdir / f"{MLP},training" / "units").iterdir())
    arrays = store.read_npz(path)
    cut = {n: array[:-1] if array.ndim else array for n, array in arrays.items()}
    store.write_npz(path, cut)
    assert run(predictors, _config(), workdir)
    assert path.with_name(path.name + ".corrupt").exists()
    assert len(store.read_npz(path)["test_accuracy"]) == len(arrays["test_accuracy"])


def test_networks_that_cannot_be_measured_at_the_origin_say_so(tmp_path):
    names = ("mixer(patch=4,depth=1,width=8)", "vit(patch=4,depth=1,width=12)")
    config = _config(architectures=names, points=("origin",), derivatives=("input_gradient",))
    reasons = [case.geometries[0][1] for case in predictors.make_cases(config)]
    assert reasons[0].startswith("cannot be measured: point_scale: must not be 0")
    assert "is a normalization of zero there" in reasons[0] and reasons[1] == ""
    case = predictors.make_cases(config)[0]
    assert case.parts == [case.trained]
    found = predictions.read_energies(None, *case.geometries[0], np.eye(64)[:3])
    assert found.note == reasons[0] and np.isnan(found.energies).all()


@pytest.mark.parametrize(
    ("sigma", "derivative", "point", "note", "num_networks"),
    [
        (1.4, "input_gradient", "origin", "every derivative is exactly zero", 4),
        (
            1e12, "central_difference", "shared",
            "no derivative of a half of the ensemble is finite", 0,
        ),
    ],
)  # fmt: skip
def test_derivatives_that_say_nothing_are_named(
    sigma, derivative, point, note, num_networks, tmp_path
):
    config = _config(
        architectures=("lenet",), num_directions=(2,), num_epochs=(1,), num_networks=(4,),
        image_shape=(16, 16, 1), initialization=f"sigma:{sigma}:0",
        derivatives=(derivative,), points=(point,), gradient_factor=1,
    )  # fmt: skip
    study = predictors.make_study(config)
    (case,) = predictors.make_cases(config)
    ((geometry, reason),) = case.geometries
    folder = Folder(tmp_path, study).open()
    for member in geometry.list_members():
        work = Work([member], lambda done: None, Snapshots(tmp_path / "snapshots", {}, 60.0))
        done = geometry.make_program(0).compute(work)
        folder.write(Unit(member.name, [member]), done[0], {})
    found = predictions.read_energies(folder, geometry, reason, case.trained.directions.rows)
    assert (found.note, found.num_networks) == (note, num_networks)
    assert np.isnan(found.energies).all()


def _energies(values):
    config = _config()
    case = predictors.make_cases(config)[0]
    geometry, _ = case.geometries[0]
    return case.trained, predictions.Energies(geometry, 0, np.array([values] * 3), "")


@pytest.mark.parametrize(
    ("accuracies", "note", "is_number"),
    [
        ([0.5, 0.51, 0.49, 0.505], "no direction is learned", True),
        ([0.995, 1.0, 0.991, 0.999], "every direction is learned to 99%", True),
        ([1.0] * 4, "all accuracies are equal; every direction is learned to 99%", False),
        ([0.6, 0.9, 0.7, 0.55], "", True),
    ],
)
def test_accuracies_that_tell_little_are_said(accuracies, note, is_number, tmp_path, monkeypatch):
    part, energies = _energies([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(predictions, "_read_provenance", lambda *_: {})
    named = {str(k): [accuracy] for k, accuracy in enumerate(accuracies)}
    folder = type("Folder", (), {"workdir": tmp_path})
    (row,) = predictions.make_rows(folder, part, named, [energies])
    assert row["note"] == note and np.isfinite(row["rank_correlation"]) == is_number
    assert row["num_learned"] == sum(accuracy > 0.575 for accuracy in accuracies)


def test_every_geometry_is_what_the_recipe_says():
    config = load_config("predictors").get_config("cpu")
    config.update(architectures=("logreg",), num_directions=(2,), num_epochs=(1,))
    config.update(num_networks=(20,))
    predictors.validate(config)
    (case,) = predictors.make_cases(config)
    assert len(case.geometries) == 6
    for one, _ in case.geometries:
        estimator = one.ensemble.estimator
        assert (estimator.step, estimator.readout) == (100.0, "marginalized")
        assert not estimator.symmetrized and isinstance(one, Geometry)
        factor = 10 if one.config.derivative == "input_gradient" else 1
        assert (one.config.num_networks, one.config.unit_size) == (20 * factor, 20 * factor)
        expected = {"shared": ("shared", 1.0), "fresh": ("fresh", 1.0), "origin": ("shared", 0.0)}
        assert (estimator.point, estimator.point_scale) == expected[one.point]


@pytest.mark.parametrize("recipe", ["cpu", "gpu"])
def test_recipes_have_as_many_directions_as_promised(recipe):
    module = load_config("predictors")
    rows = module.RECIPES[recipe]
    if recipe == "gpu":
        assert {count for count, *_ in rows.values()} == {130}
        size = len(predictors.order_directions(module.get_config("gpu")).rows)
        assert size == 130
    else:
        fewest = {name: 34 for name in ("mlp", "lenet", "lenet(pooling='avg')")}
        fewest |= {"resnet18_w16": 8}
        assert all(count >= fewest.get(name, 16) for name, (count, *_) in rows.items())
    with pytest.raises(InputError, match="config argument: unknown value 'tpu'"):
        module.get_config("tpu")


def test_all_bad_values_are_reported_by_name(tmp_path):
    def lines(**changes):
        with pytest.raises(InputError) as caught:
            run(predictors, _config(**changes), tmp_path / "run")
        return str(caught.value).splitlines()

    assert lines(num_directions=(6,), points=("shared",) * 2) == [
        "points: must be a non-empty tuple of different values, got ('shared', 'shared')",
        "num_directions: must be a tuple of one value for each of the 2 architectures, got (6,)",
    ]
    assert lines(num_directions=(11, 1), num_networks=(6, 4), points=("data",)) == [
        "points: unknown value 'data'; allowed: 'shared', 'fresh', 'origin'",
        "num_directions: must be an integer in 2 … 10, got 11",
        "num_directions: must be an integer in 2 … 10, got 1",
        "num_networks: must be multiples of unit_size=4, got 6",
    ]
    assert lines(unit_size=3)[0] == (
        "unit_size: must be even (halves of even and odd members), got 3"
    )
    wrong = {
        "derivatives": ("gradient",), "architectures": (MLP, "lent"), "num_epochs": (0, 2),
        "seeds": (-1,), "geometry_seed": -1, "sigma": -1.0, "num_test": 3,
        "training_unit_size": 0, "gradient_factor": 0, "num_bootstrap": 1, "step": -1.0,
    }  # fmt: skip
    said = {line.split(":")[0] for line in lines(**wrong)}
    assert said == {*wrong, "architecture"} - {"architectures"}
    assert not (tmp_path / "run").exists()
