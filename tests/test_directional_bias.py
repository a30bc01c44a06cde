"""The experiment `directional_bias`: every recipe at smoke size, resuming, extending, comparing."""

import csv
import io
import itertools
import json
import shutil

import numpy as np
import pytest

from experiments import directional_bias, published, results, trained
from nad_jax import (
    Recipe,
    accuracy_plots,
    basis_dft,
    basis_random,
    dft_direction,
    estimate_nads,
    make_key,
    save_nads,
    store,
    train_many,
)
from nad_jax.architectures import create_model
from nad_jax.errors import InputError
from nad_jax.tables import format_table
from tests.commands import read_numbers
from tests.test_configs import load_config, run

RECIPES = load_config("directional_bias").RECIPES


def _config(recipe="accuracy_map", **changes):
    config = load_config("directional_bias").get_config(recipe)
    config.update(
        architectures=("logreg",),
        poolings=("default",),
        image_shape=(8, 8, 1),
        num_train=(100,),
        num_test=50,
        num_epochs=2,
        batch_size=32,
        loss_window=3,
        loss_threshold=0.7,
        frequency_range=(-4, 4),
        unit_size=3,
    )
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    run(directional_bias, _config(), workdir)
    return workdir


def _rows(workdir):
    return list(csv.DictReader(io.StringIO((workdir / "results.csv").read_text())))


def _copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_a_run_writes_one_row_per_network_with_its_coordinates(finished):
    rows = _rows(finished)
    assert (
        len(rows) == 10
    )  # 4×4 frequencies: four that equal their own negative, and (16 − 4)/2 pairs
    assert list(rows[0]) == list(directional_bias.COLUMNS)
    assert [(row["frequency_row"], row["frequency_column"]) for row in rows[:3]] == [
        ("0", "0"),
        ("2", "0"),
        ("0", "2"),
    ]
    for row in rows:
        assert (
            row["architecture"] == "logreg"
            and row["phase"] == "cosine"
            and len(row["direction"]) == 16
        )
        assert 0 <= float(row["test_accuracy"]) <= 1 and row["diverged_at"] == "-1"
    assert len(list((finished / "units").iterdir())) == 4


def test_a_row_is_the_network_that_the_api_trains(finished):
    row = _rows(finished)[4]
    direction = dft_direction((8, 8, 1), (int(row["frequency_row"]), int(row["frequency_column"])))
    recipe = Recipe(
        num_train=100, num_test=50, num_epochs=2, batch_size=32, loss_window=3, loss_threshold=0.7
    )
    model = create_model("logreg", (8, 8, 1), num_logits=2)
    metrics = train_many(model, direction[None], sigma=3.0, recipe=recipe)
    for name in directional_bias.METRICS:
        assert float(row[name]) == pytest.approx(float(getattr(metrics, name)[0]), rel=1e-6), name


def _row(**values):
    row = {
        "architecture": "lenet",
        "pooling": "default",
        "width": 0,
        "optimizer": "sgd",
        "num_train": 8,
        "sigma": 1.0,
        "seed": 0,
    }
    row |= {
        "epsilon": 1.0,
        "index": "",
        "frequency_row": "",
        "frequency_column": "",
        "phase": "",
    } | values
    return {"direction": str([row["index"], row["frequency_row"], row["frequency_column"]]), **row}


def test_maps_show_every_frequency_at_its_place():
    rows = [
        _row(
            frequency_row=r,
            frequency_column=c,
            phase="cosine",
            seed=seed,
            test_accuracy=r + c / 10 + seed,
        )
        for r, c in [(0, 0), (1, 2), (1, -2)]
        for seed in (0, 1)
    ]
    axis, groups = np.arange(-2, 3), results.group_rows(rows)
    (panel,) = results.map_panels(groups, "test_accuracy", (axis, axis), (16, 16)).values()
    expected = np.full((5, 5), np.nan)  # rows and columns are the frequencies −2 … 2
    expected[2, 2] = 0.5
    expected[3, 4] = expected[1, 0] = 1.7  # (1, 2) and (−1, −2)
    expected[3, 0] = expected[1, 4] = 1.3
    np.testing.assert_allclose(panel, expected)
    # Of two rows −1 and 1 are one frequency, which is its own negative.
    axes = np.array([-1, 0, 1]), np.array([-2, 0, 2])
    (panel,) = results.map_panels(groups, "test_accuracy", axes, (2, 16)).values()
    nan = np.nan
    np.testing.assert_allclose(panel, [[1.5, nan, 1.5], [nan, 0.5, nan], [1.5, nan, 1.5]])


def test_the_map_is_a_table_of_the_whole_plane(finished):
    rows = list(csv.DictReader(io.StringIO((finished / "map.csv").read_text())))
    assert tuple(rows[0]) == results.MAP_COLUMNS
    axis = ("-4", "-2", "0", "2")
    places = [(row["frequency_row"], row["frequency_column"]) for row in rows]
    assert places == list(itertools.product(axis, axis))  # each cell once, none left out
    trained_at = {}
    for row in _rows(finished):
        r, c = int(row["frequency_row"]), int(row["frequency_column"])
        for place in {(r % 8, c % 8), (-r % 8, -c % 8)}:
            trained_at[place] = row["test_accuracy"]
    assert len(_rows(finished)) == 10 and len(trained_at) == 16
    for row in rows:
        place = int(row["frequency_row"]) % 8, int(row["frequency_column"]) % 8
        assert row["test_accuracy"] == trained_at[place]
        assert (row["architecture"], row["sigma"], row["phase"]) == ("logreg", "3", "cosine")
        assert (row["num_seeds"], row["test_accuracy_sem"]) == ("1", "nan")


def test_cells_of_the_map_have_errors_over_seeds_and_one_row_for_each_point_of_a_sweep():
    rows = [
        _row(
            frequency_row=r,
            frequency_column=0,
            phase=phase,
            sigma=sigma,
            seed=seed,
            test_accuracy=sigma + r + seed / 10,
        )
        for sigma in (1.0, 3.0)
        for r, phase in [(0, "cosine"), (1, "cosine"), (1, "sine")]
        for seed in (0, 1)
    ]
    axes = np.array([-1, 0, 1]), np.array([0])
    cells = results.map_rows(rows, axes, (8, 8))
    assert len(cells) == 2 * 2 * 3  # σ, phase, frequency
    found = {(c["sigma"], c["phase"], c["frequency_row"]): c for c in cells}
    for sign in (1, -1):
        cell = found[3.0, "sine", sign]
        assert cell["test_accuracy"] == pytest.approx(4.05)
        # √(2 · .05²) / √2; −1 is the same two networks, which are not counted twice
        assert cell["test_accuracy_sem"] == pytest.approx(0.05) and cell["num_seeds"] == 2
    zero = found[1.0, "cosine", 0]  # its own negative
    assert (zero["num_seeds"], zero["test_accuracy_sem"]) == (2, pytest.approx(0.05))
    none = found[1.0, "sine", 0]
    assert none["num_seeds"] == 0 and np.isnan(none["test_accuracy"])


def _frequencies(shape, frequency_range, step=1, phases="cosine"):
    changes = {"frequency_range": frequency_range, "frequency_step": step, "phases": phases}
    found = directional_bias.make_directions(_config(image_shape=(*shape, 1), **changes))
    return found, {
        (c["frequency_row"], c["frequency_column"], c["phase"]) for c in found.coordinates
    }


@pytest.mark.parametrize(
    "shape", [(1, 64), (64, 1), (16, 64), (5, 12), (1, 7), (2, 3), (1, 1), (32, 32)]
)
def test_the_widest_range_gives_every_fourier_vector_of_an_image_of_any_shape_once(shape):
    half = max(shape) // 2
    found, _ = _frequencies(shape, (-half, half + 1), phases="both" if max(shape) > 2 else "cosine")
    assert len(found.rows) == shape[0] * shape[1]
    np.testing.assert_allclose(found.rows @ found.rows.T, np.eye(len(found.rows)), atol=1e-5)


def test_a_range_is_that_of_each_axis_as_far_as_it_has_it():
    assert _frequencies((1, 64), (0, 33), 8)[1] == {(0, c, "cosine") for c in (0, 8, 16, 24, 32)}
    assert _frequencies((64, 1), (4, 8))[1] == {(r, 0, "cosine") for r in (4, 5, 6, 7)}
    assert _frequencies((16, 64), (6, 33), 2)[1] == {
        (r, c, "cosine") for r in (6, 8) for c in range(6, 33, 2)
    }
    # Of a self-conjugate frequency there is no sine.
    assert _frequencies((1, 64), (-32, 33), 16, "sine")[1] == {(0, 16, "sine")}
    assert _frequencies((4, 16), (-8, 9), 4, "sine")[1] == {(0, 4, "sine")}


@pytest.mark.parametrize(
    ("shape", "values", "step", "message"),
    [
        ((1, 64), (-33, 33), 1, r"in -32 … 33, the frequencies of 1×64 pixels, got \(-33, 33\)"),
        ((16, 64), (0, 34), 1, r"in -32 … 33, the frequencies of 16×64 pixels, got \(0, 34\)"),
        ((8, 8), (-16, 16), 2, r"^frequency_range: must be first, stop, two integers in -4 … 5, "),
        ((8, 8), (-2, 1.5), 2, r"two integers in -4 … 5, .* got \(-2, 1.5\)"),
        ((8, 8), (1,), 2, r"two integers in -4 … 5, .* got \(1,\)"),
        (
            (8, 8),
            (-4, 4),
            9,
            r"^frequency_step: must be at most 8 for frequency_range=\(-4, 4\), got "
            "9; frequency -4 alone is --config.frequency_range=-4,-3",
        ),
        (
            (16, 64),
            (9, 33),
            1,
            "frequency_range: an axis of 16 pixels has the frequencies -8 … 8, of which none is in",
        ),
        ((64, 16), (-32, 33), 64, r"none is in \(-32, 33\) in steps of 64"),
        ((1, 1), (0, 2), 1, r"in 0 … 1, the frequencies of 1×1 pixels, got \(0, 2\)"),
    ],
)
def test_a_range_without_a_frequency_of_an_axis_is_refused(shape, values, step, message):
    config = _config(image_shape=(*shape, 1), frequency_range=values, frequency_step=step)
    with pytest.raises(InputError, match=message):
        directional_bias.validate(config)


def test_frequencies_matter_to_the_source_that_has_them_alone():
    for values, step in (((-16, 16), 2), ((-4, 4), 100), ((30, 33), 1)):
        directional_bias.validate(
            _config(source="pixel", frequency_range=values, frequency_step=step)
        )
    directional_bias.validate(_config(frequency_range=(3, 4)))  # a range of one has any step


def test_a_row_names_its_direction_and_the_basis_has_it_up_to_its_sign():
    basis = basis_dft((8, 8, 1))
    found, _ = _frequencies((8, 8), (-4, 4), phases="both")
    for row, said in zip(found.rows, found.coordinates, strict=True):
        frequency, phase = (said["frequency_row"], said["frequency_column"]), said["phase"]
        np.testing.assert_array_equal(row, dft_direction((8, 8, 1), frequency, phase))
        same = (basis.frequencies - frequency) % 8 == 0  # of 8 pixels, −4 and 4 are one frequency
        same = same.all(1) | ((basis.frequencies + frequency) % 8 == 0).all(1)
        (place,) = np.flatnonzero(same & (basis.phases == (phase == "sine")))
        assert abs(basis.directions[place] @ row) == pytest.approx(1.0, abs=1e-5)
    assert {said["frequency_row"] for said in found.coordinates} - {*basis.frequencies[:, 0]} == {
        -4
    }


def test_titles_say_what_the_samples_are():
    rows = [_row(num_train=2000, sigma=sigma, epsilon=1.0, phase="cosine") for sigma in (1.0, 3.0)]
    for row in rows:
        row |= {"diverged_at": -1}
    assert results.describe(rows) == "lenet, 2000 training samples, 1 seed"
    rows[1]["num_train"] = 100
    assert [*results.group_rows(rows)] == [
        "2000 training samples, σ = 1.0",
        "100 training samples, σ = 3.0",
    ]


def test_maps_of_images_that_are_not_square_have_axes_of_their_own():
    axes = np.arange(-2, 3), np.arange(-8, 9, 4)
    figure = accuracy_plots.plot_accuracy_maps({"": np.full((5, 5), 0.7)}, axes, "title")
    panel = figure.axes[0]
    assert panel.get_images()[0].get_extent() == [-10, 10, 2.5, -2.5]
    assert panel.get_xticks().tolist() == [-8, -4, 0, 4, 8] and panel.get_yticks().tolist() == [
        -2,
        -1,
        0,
        1,
        2,
    ]
    flat = accuracy_plots.plot_steps_maps(
        {"": np.full((1, 65), 3.0)}, (np.zeros(1, int), np.arange(-32, 33)), "title"
    )
    assert flat.axes[0].get_images()[0].get_extent() == [-32.5, 32.5, 0.5, -0.5]
    assert flat.axes[0].get_box_aspect() == 0.25  # not a line


@pytest.mark.parametrize("shape", [(1, 16), (16, 1), (4, 16)])
def test_a_map_of_an_image_that_is_not_square_runs_and_draws(shape, tmp_path):
    config = _config(image_shape=(*shape, 1), frequency_range=(-8, 9), frequency_step=4)
    run(directional_bias, config, tmp_path)
    assert {int(row["frequency_row"]) for row in _rows(tmp_path)} <= set(
        range(-(shape[0] // 2), shape[0] // 2 + 1)
    )
    assert directional_bias.draw(config, tmp_path)[0].name == "accuracy_map.png"


def test_curves_average_seeds_and_groups_keep_the_rest_apart():
    rows = [
        _row(index=index, sigma=sigma, seed=seed, test_accuracy=index / 100 + seed / 10 + sigma)
        for sigma in (1.0, 3.0)
        for seed in (0, 1)
        for index in (20, 5)
    ]
    curves = results.curves(results.group_rows(rows))
    assert list(curves) == ["σ = 1.0", "σ = 3.0"]
    indices, means, sem = curves["σ = 3.0"]
    assert indices.tolist() == [5, 20]
    np.testing.assert_allclose(means, [3.1, 3.25])
    np.testing.assert_allclose(sem, 0.05)  # √(2 · .05²) / √2


def test_a_direction_that_no_seed_learns_is_drawn_as_such(tmp_path):
    config = _config(seeds=(0, 1), loss_threshold=0.0, frequency_step=4)
    run(directional_bias, config, tmp_path)
    assert [path.name for path in directional_bias.draw(config, tmp_path)] == ["accuracy_map.png"]


def test_figures_are_drawn_from_the_table_of_the_same_command(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    (workdir / "accuracy_by_index.png").write_text("of an earlier run")
    assert [
        path.name for path in directional_bias.draw(_config(nads=_nads(tmp_path)), workdir)
    ] == [
        "accuracy_map.png",
        "steps_map.png",
        "accuracy_by_energy.png",
    ]
    assert not (workdir / "accuracy_by_index.png").exists()
    with pytest.raises(
        InputError, match=r"made by another command\n  sigmas: folder \[3\.0\], command \[1\.0\]"
    ):
        directional_bias.draw(_config(sigmas=(1.0,)), workdir)
    with pytest.raises(InputError, match=r"command\.json: there is no finished run here"):
        directional_bias.draw(_config(), tmp_path)


def test_a_rerun_trains_nothing_and_what_is_missing_comes_out_the_same(
    finished, tmp_path, monkeypatch
):
    workdir = _copy(finished, tmp_path)
    first, second, *_ = sorted((workdir / "units").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    (workdir / "results.csv").unlink()
    run(directional_bias, _config(unit_size=4), workdir)
    assert read_numbers(workdir / "results.csv") == read_numbers(finished / "results.csv")
    assert list(workdir.glob("units/*.corrupt"))
    monkeypatch.setattr(
        trained, "make_run", lambda *args, **how: pytest.fail("a network was trained again")
    )
    run(directional_bias, _config(sigmas=(3,)), workdir)  # 3 is 3.0


def test_a_network_of_an_earlier_command_keeps_its_whole_row(finished, tmp_path):
    workdir, before = _copy(finished, tmp_path), _rows(finished)
    this, earlier = before[3:6:2], [*before[:3], before[4], *before[6:]]
    narrow = _config(indices=tuple(int(row["index"]) for row in this))
    run(directional_bias, narrow, workdir)
    expected = [*this, *({**row, "command": "earlier"} for row in earlier)]
    assert sorted(map(str, _rows(workdir))) == sorted(map(str, expected))
    assert _rows(workdir)[:2] == this
    read = results.read_results(workdir / "results.csv", directional_bias.COLUMNS)
    assert tuple(row["index"] for row in read) == narrow.indices  # which figures show
    # A unit of an earlier version says only what determines its networks.
    for path in workdir.glob("units/*.npz"):
        arrays = store.read_npz(path)
        store.write_npz(path, {n: array for n, array in arrays.items() if n != "coordinates"})
    run(directional_bias, narrow, workdir)
    short = {"source": "", "index": "", "frequency_row": "", "frequency_column": "", "phase": ""}
    expected = [*this, *({**row, **short, "command": "earlier"} for row in earlier)]
    assert sorted(map(str, _rows(workdir))) == sorted(map(str, expected))


def test_a_table_from_before_the_columns_of_its_origin_is_drawn(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    said = json.loads((workdir / "command.json").read_text())
    names = [name for name in directional_bias.COLUMNS if name not in results.PROVENANCE]
    rows = [{name: row[name] for name in names} for row in _rows(workdir)]
    (workdir / "results.csv").write_text(format_table(rows, tuple(names)))
    said["digest"] = results._digest(workdir, said["command"], said["missing"])
    (workdir / "command.json").write_text(json.dumps(said))
    read, _ = results.read_table(workdir, directional_bias.COLUMNS, said["command"])
    assert len(read) == 10 and {row["device"] for row in read} == {""}


def test_a_sweep_extends_a_folder_and_another_training_is_refused(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    run(directional_bias, _config(sigmas=(3.0, 1.0), seeds=(0, 1), frequency_step=4), workdir)
    table, before = _rows(workdir), _rows(finished)
    rows = [row for row in table if row["command"] == "this"]
    # The frequencies (0, 0), (0, −4), (−4, 0), (−4, −4) are their own negatives.
    assert rows == table[: 2 * 2 * 4]
    # The six other directions that were trained before keep their rows.
    kept = {row["direction"]: row for row in table[16:]}
    assert len(kept) == len(table) - 16 == 6
    earlier = {row["direction"]: {**row, "command": "earlier"} for row in before}
    assert kept.items() <= earlier.items()
    place = {
        (row["sigma"], row["seed"], row["frequency_row"], row["frequency_column"]): row
        for row in rows
    }
    assert place["3", "0", "0", "0"] == before[0]
    assert len({row["test_loss"] for row in rows}) == len(rows)
    with pytest.raises(InputError, match=r"learning_rate: folder 0\.5, command 0\.1"):
        run(directional_bias, _config(learning_rate=0.1), workdir)


def test_the_earlier_name_of_a_field_is_taken_with_one_warning(finished, tmp_path, caplog):
    workdir = _copy(finished, tmp_path)
    stored = sorted((workdir / "units").iterdir())
    config = _config(num_train=(10_000,), nums_train=(100,))
    run(directional_bias, config, workdir)
    directional_bias.draw(config, workdir)
    assert caplog.text.count("nums_train: is called num_train now") == 1
    assert (config.num_train, config.nums_train) == ((100,), ())
    assert sorted((workdir / "units").iterdir()) == stored
    assert read_numbers(workdir / "results.csv") == read_numbers(finished / "results.csv")
    with pytest.raises(InputError, match=r"^nums_train: is the earlier name of num_train; both"):
        directional_bias.validate(_config(nums_train=(50,)))
    own = _config(num_train=(10_000,), nums_train=(100,))
    with own.unlocked():
        del own.num_train  # a recipe file written for an earlier version
    directional_bias.validate(own)
    assert own.num_train == (100,)
    with own.unlocked():
        del own.nums_train
    directional_bias.validate(own)


def test_a_table_of_the_earlier_name_is_drawn(finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    said = json.loads((workdir / "command.json").read_text())
    assert "nums_train" not in said["command"]
    command = {("nums_train" if n == "num_train" else n): v for n, v in said["command"].items()}
    said |= {"command": command, "digest": results._digest(workdir, command, said["missing"])}
    (workdir / "command.json").write_text(json.dumps(said))
    directional_bias.draw(_config(), workdir)
    assert (workdir / "accuracy_map.png").exists()
    with pytest.raises(InputError, match=r"num_train: folder \[100\], command \[50\]"):
        directional_bias.draw(_config(num_train=(50,)), workdir)


def test_static_axes_are_swept(tmp_path):
    config = _config(
        optimizers=("sgd", "adam:learning_rate=0.01"),
        num_train=(50, 100),
        frequency_step=8,
    )
    run(directional_bias, config, tmp_path)
    rows = _rows(tmp_path)
    assert len(rows) == 4 and len({row["train_loss"] for row in rows}) == 4
    assert directional_bias.draw(config, tmp_path)[0].name == "accuracy_map.png"


def _nads(tmp_path):
    record = estimate_nads(
        create_model("logreg", (8, 8, 1)), 20, derivative="input_gradient", readout="sampled"
    )
    save_nads(tmp_path / "nads.npz", record)
    return str(tmp_path / "nads.npz")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_and_draws(recipe, tmp_path):
    changes = {
        "frequency_step": 4,
        "num_directions": 3,
        "seeds": (0, 1),
        "nads": _nads(tmp_path),
        "indices": (),
    }
    if RECIPES[recipe].get("source") == "nads":
        changes["indices"] = (0, 5, 63)
    config = _config(recipe, **changes)
    if recipe == "random_directions":
        config.architectures = ("logreg", "mlp")
    if recipe == "no_pooling":
        config.update(
            architectures=("lenet",), poolings=("none",), image_shape=(16, 16, 1), nads=""
        )
        config.update(frequency_step=8, seeds=(0,))
    run(directional_bias, config, tmp_path / "run")
    figures = {path.name: path for path in directional_bias.draw(config, tmp_path / "run")}
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in figures.values())
    expected = {
        "nads": "accuracy_by_index.png",
        "random": "accuracy_histogram.png",
        "dft": "accuracy_map.png",
    }
    assert expected[config.source] in figures
    assert ("accuracy_by_energy.png" in figures) == bool(config.nads)
    assert ("steps_map.png" in figures) == (config.source == "dft")


@pytest.mark.parametrize("source", ["dct", "pixel", "file"])
def test_other_sources_of_directions(source, tmp_path):
    directions = np.asarray(basis_random(make_key(5), 64, 4))
    np.save(tmp_path / "d.npy", np.concatenate([directions, -directions[:1]]))
    config = _config(
        source=source,
        indices=() if source == "file" else (0, 1, 9),
        directions=str(tmp_path / "d.npy"),
    )
    run(directional_bias, config, tmp_path / "run")
    indices = [row["index"] for row in _rows(tmp_path / "run")]
    assert indices == (["0", "1", "2", "3"] if source == "file" else ["0", "1", "9"])  # −v is v
    assert [path.name for path in directional_bias.draw(config, tmp_path / "run")] == [
        "accuracy_histogram.png"
    ]


def test_the_corner_is_where_both_frequencies_are_two_modulo_four():
    found = directional_bias.make_directions(
        load_config("directional_bias").get_config("resnet18_corner")
    )
    assert [(c["frequency_row"], c["frequency_column"]) for c in found.coordinates] == [
        (4, 4),
        (6, 6),
    ]


def test_the_published_grid_is_the_one_of_the_table():
    config = load_config("directional_bias").get_config("accuracy_map")
    assert len(directional_bias.make_directions(config).rows) == 130
    assert (
        len(
            directional_bias.make_directions(
                load_config("directional_bias").get_config("no_pooling")
            ).rows
        )
        == 34
    )


def test_comparison_with_a_published_map(tmp_path, capsys):
    table = ["x,y,accuracy_lenet"]
    table += [
        f"{x},{y},{50 + ((y - 8) % 16) + ((x - 8) % 16)}" for y in range(16) for x in range(16)
    ]
    path = tmp_path / "map.csv"
    path.write_text("\n".join(table))
    measured = published.read_table(str(path), "lenet")
    assert len(measured) == 144
    rows = [
        _row(
            frequency_row=2 * (r["y"] - 8),
            frequency_column=2 * (r["x"] - 8),
            phase="cosine",
            sigma=3,
            test_accuracy=r["accuracy"],
        )
        for r in measured
        if (r["y"], r["x"]) <= (8, 8)
    ]
    rows[0]["test_accuracy"] += 0.1
    lines = published.compare(measured, rows, (32, 32), "dft")
    assert "Pearson" in lines[0] and "Spearman" in lines[0] and "(-16, -16)" in "".join(lines)
    (line,) = published.compare(measured, rows, (32, 32), "nads")
    assert "not compared" in line
    for change, shape in [
        ({}, (28, 28)),
        ({"sigma": 1}, (32, 32)),
        ({"pooling": "none"}, (32, 32)),
    ]:
        (line,) = published.compare(measured, [{**row, **change} for row in rows], shape, "dft")
        assert "not compared" in line


def test_comparison_with_a_published_curve(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("index,accuracy_lenet\n" + "\n".join(f"{i},{100 - i / 2}" for i in range(101)))
    table = published.read_table(str(path), "lenet")
    assert [row["index"] for row in table][9:13] == [9, 10, 14, 18]
    rows = [
        _row(index=index, test_accuracy=accuracy)
        for index, accuracy in [(12, 0.9), (60, 0.6), (60, 0.7)]
    ]
    lines = published.compare(table, rows, (32, 32), "nads")
    assert lines[1].split() == ["12:", "90.0%,", "94.0%,", "-4.0"]
    assert lines[2].split() == ["60:", "65.0%,", "70.0%,", "-5.0"]  # 50, 54, …, 70


PUBLISHED_MAP = "x,y,acc_lr,acc_ln,acc_rn,acc_dn,acc_vgg\n" + "".join(
    f"{x},{y},100.0,{50 + x},{60 + x},{70 + x},{80 + y}.5\n" for y in range(16) for x in range(16)
)
PUBLISHED_CURVE = "index,acc_ln,eig_ln,acc_rn,eig_rn\n" + "".join(
    f"{i},{100 - i / 40},0.1,{99 - i / 40},0.2\n" for i in range(1024)
)
MAP, CURVE = "x,y,acc_ln\n8,8,70\n9,8,60.5\n10,8,50\n", "index,acc_ln\n0,99\n1,98.5\n2,97\n"


def _write_table(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_tables_are_read_as_they_stand_in_the_repository_of_the_paper(tmp_path):
    path = _write_table(tmp_path, PUBLISHED_MAP)
    expected = {"logreg": 1.0, "lenet": 0.58, "resnet18": 0.68, "densenet121": 0.78, "vgg11": 0.835}
    for architecture, accuracy in expected.items():
        table = published.read_table(path, architecture)
        assert len(table) == 144
        (row,) = [row for row in table if (row["x"], row["y"]) == (8, 3)]
        assert row["accuracy"] == pytest.approx(accuracy)
    curve = published.read_table(_write_table(tmp_path, PUBLISHED_CURVE), "resnet18")
    assert [row["index"] for row in curve][9:13] == [9, 10, 14, 18] and curve[11][
        "accuracy"
    ] == 0.9865


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (b"\xef\xbb\xbf" + MAP.encode(), MAP),
        (MAP.replace("\n", "\r\n"), MAP),
        (MAP.replace("\n", "\r"), MAP),
        ("\n" + MAP.replace("\n", "\n\n") + "  \n,,\n\n", MAP),
        (MAP.replace(",", " , "), MAP),
        (MAP.replace("acc_ln", "accuracy_lenet"), MAP),
        (MAP.replace("\n", ",note\n"), MAP),
        (
            ",index," + MAP.replace("\n", "\n0,0,").removesuffix("0,0,"),
            MAP,
        ),  # a table saved by pandas, reset
        (MAP.replace("8,8", "8.0,8.0"), MAP),
        (MAP + "11,8,\n12,8, \n", MAP),
        ('"x","y","acc_ln"\n8,8,"70"\n9,8,60.5\n10,8,50\n', MAP),
        (
            "index,acc_ln\n2,97\n0,99\n1,98.5\n",
            CURVE,
        ),  # NADs between others are interpolated in order
    ],
)
def test_a_table_that_went_through_other_programs_is_the_same(text, same, tmp_path):
    expected = published.read_table(_write_table(tmp_path, same), "lenet")
    assert (
        published.read_table(_write_table(tmp_path, text), "lenet") == expected
        and len(expected) == 3
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs columns x, y or index, has none"),
        ("a,b\n1,2\n", "needs columns x, y or index, has a, b"),
        (MAP.replace(",", ";"), "needs columns x, y or index, has x;y;acc_ln"),
        (MAP.replace("acc_ln", "acc_rn"), "has no accuracies of 'lenet', has those of resnet18"),
        (MAP.replace("acc_ln", "acc"), "has no accuracies of 'lenet', has those of none"),
        ("x,y,acc_ln,acc_ln\n8,8,70,70\n", "has several columns for 'acc_ln'"),
        ("x,y,acc_ln,accuracy_lenet\n8,8,70,70\n", "has several columns for 'acc_ln'"),
        ("x,x,y,acc_ln\n8,8,8,70\n", "has several columns for 'x'"),
        (MAP.replace("60.5", "many"), "line 3: acc_ln: must be a number in 0 … 100, got 'many'"),
        (
            "\n\n" + MAP.replace("60.5", "nan"),
            "line 5: acc_ln: must be a number in 0 … 100, got 'nan'",
        ),
        (MAP.replace("60.5", "inf"), "line 3: acc_ln: must be a number in 0 … 100, got 'inf'"),
        (MAP.replace("60.5", "100.5"), "line 3: acc_ln: must be a number in 0 … 100, got '100.5'"),
        (MAP.replace("60.5", "-1"), "line 3: acc_ln: must be a number in 0 … 100, got '-1'"),
        (MAP.replace("60.5", "60,5"), "line 3: has 4 cells for 3 columns"),
        (MAP.replace("9,8,60.5", "9,8"), "line 3: has 2 cells for 3 columns"),
        (MAP.replace("9,8", "16,8"), "line 3: x: must be a whole number in 0 … 15, got '16'"),
        (MAP.replace("9,8", "9,8.5"), "line 3: y: must be a whole number in 0 … 15, got '8.5'"),
        (MAP.replace("9,8", ",8"), "line 3: x: must be a whole number in 0 … 15, got ''"),
        (MAP.replace("9,8", "8,8"), "line 3: x, y = 8, 8 is there twice"),
        (
            CURVE.replace("\n2,", "\n-2,"),
            "line 4: index: must be a whole number in 0 … 1023, got '-2'",
        ),
        (
            CURVE.replace("\n2,", "\ninf,"),
            "line 4: index: must be a whole number in 0 … 1023, got 'inf'",
        ),
        ("x,y,acc_ln\n8,8,.7\n9,8,1\n", "acc_ln must be in percent, the largest is 1"),
        ("x,y,acc_ln\n8,8,\n", "holds no measured accuracies of 'lenet'"),
        ("x,y,acc_ln\n1,8,70\n", "holds no measured accuracies of 'lenet'"),
        ("x,y,acc_ln\n8,8," + 200_000 * "7" + "\n", "line 2: field larger than field limit"),
    ],
)
def test_a_table_that_says_something_else_is_refused_in_one_line(text, message, tmp_path):
    with pytest.raises(InputError) as caught:
        published.read_table(_write_table(tmp_path, text), "lenet")
    assert str(caught.value).startswith(f"{tmp_path / 't.csv'}: {message}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("architecture", ["mlp", "vgg11_plain", "resnet18_w16"])
def test_architectures_that_were_not_published_are_not_taken_for_others(architecture, tmp_path):
    config = _config(
        architectures=(architecture,),
        image_shape=(32, 32, 1),
        compare=_write_table(tmp_path, PUBLISHED_MAP),
    )
    with pytest.raises(
        InputError,
        match=f"no accuracies of '{architecture}', has those of logreg, lenet, resnet18, ",
    ):
        directional_bias.make_study(config)


def test_against_the_published_tables(published):
    from experiments.published import read_table

    assert len(read_table(str(published("dft_accuracies_lenet.csv")), "lenet")) == 144
    assert (
        min(
            row["accuracy"]
            for row in read_table(str(published("dft_accuracies_lenet.csv")), "logreg")
        )
        >= 0.99
    )
    assert read_table(str(published("nad_accuracies_lenet.csv")), "lenet")[-1]["index"] == 1022


def test_bad_input_is_reported_at_once(tmp_path):
    changes = {"seeds": (0, 0), "sigmas": ()}
    with pytest.raises(InputError) as caught:
        run(directional_bias, _config(**changes), tmp_path / "run")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["seeds", "sigmas"]
    config = _config(
        sigmas=(-1.0,),
        optimizers=("sdg",),
        num_train=(3,),
        frequency_step=0,
        phases="cos",
        source="nads",
        unit_size=-1,
    )
    with pytest.raises(InputError) as caught:
        run(directional_bias, config, tmp_path / "run")
    names = {line.split(":")[0] for line in str(caught.value).splitlines()}
    assert names == {
        "sigmas",
        "optimizers",
        "num_train",
        "phases",
        "frequency_step",
        "nads",
        "unit_size",
    }
    for changes, message in [
        ({"optimizers": ("sgd:momentum",)}, "optimizers: options are written"),
        ({"architectures": ("lent",)}, "did you mean 'lenet'"),
        ({"poolings": ("none",)}, "'none' makes no sense for 'logreg'"),
        ({"source": "dct", "indices": (64,)}, "indices: must be in 0 … 63, got 64"),
        ({"nads": str(tmp_path / "missing.npz")}, "missing.npz: No such file"),
        ({"compare": str(tmp_path / "missing.csv")}, "missing.csv: No such file"),
        ({"frequency_range": (4, -4)}, "frequency_range: must be first, stop"),
        (
            {"frequency_range": (-16, 16)},
            "frequency_range: must be first, stop, two integers in -4",
        ),
        ({"frequency_range": (1, "2"), "source": "pixel"}, "first, stop, two integers, got"),
        (
            {"architectures": ("logreg,mlp",)},
            r"""architectures="\('logreg', 'mlp'\)", got 'logreg,mlp'""",
        ),
        ({"phases": "sine", "frequency_step": 4}, "this grid of frequencies has no sine"),
    ]:
        with pytest.raises(InputError, match=message):
            run(directional_bias, _config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_steps_are_the_median_of_the_seeds_and_never_is_not_what_was_not_trained():
    steps = {(0, 0): [-1, 316, -1], (0, 1): [319, -1, 321], (1, 1): [5, 7, 6]}
    rows = [
        {"frequency_row": r, "frequency_column": c, "steps_to_loss": one}
        for (r, c), seeds in steps.items()
        for one in seeds
    ]
    axes = np.arange(2), np.arange(2)
    found = directional_bias.median_steps({"": rows}, axes, (8, 8))[""]
    np.testing.assert_array_equal(found, [[np.inf, 321], [np.nan, 6]])
    maps = {name: found for name in "abcd"}
    figure = accuracy_plots.plot_steps_maps(maps, axes, "title")
    drawn = next(panel.get_images()[0] for panel in figure.axes if panel.get_images())
    never, reached, untrained, _ = drawn.to_rgba(drawn.get_array()).reshape(4, 4)
    assert (
        never.tolist() == [1, 1, 1, 1] and untrained[3] == 0 and reached.tolist() != never.tolist()
    )
    places = {axes.get_subplotspec().colspan.start for axes in figure.axes if axes.get_images()}
    assert places == {0, 1}  # two rows of two
