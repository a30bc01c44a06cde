"""The experiment `score_directions` at smoke size: its table, how it grows, what it refuses."""

import csv
import io

import jax
import numpy as np
import pytest

from experiments import results, score_data, score_directions
from nad_jax import Schedule, ScoreNetwork, gaussian_network
from nad_jax.errors import InputError
from nad_jax.sads import estimate_sads
from nad_jax.score_networks import as_model
from nad_jax.score_table import create_score_network
from tests.test_configs import load_config, run

SIZE = 16


def _config(**changes):
    config = load_config("score_directions").get_config("smoke")
    config.update(seeds=(0, 1))
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert run(score_directions, _config(), workdir)
    return workdir


def _read(workdir, **chosen):
    rows = csv.DictReader(io.StringIO((workdir / "results.csv").read_text()))
    return [row for row in rows if all(row[n] == value for n, value in chosen.items())]


def _units(workdir):
    found = []
    for path in sorted(workdir.glob("units/*.npz")):
        with np.load(path) as arrays:
            found.append({name: arrays[name] for name in arrays})
    return found


def test_there_is_a_unit_and_a_row_for_every_network_and_a_figure(finished):
    rows = _read(finished)
    assert {(row["index"], row["seed"]) for row in rows} == {
        (index, seed) for index in ("0", "15") for seed in ("0", "1")
    }
    assert len(rows) == 4 == len(_units(finished))
    (figure,) = score_directions.draw(_config(), finished)
    assert figure.name == "distances.png" and figure.exists()
    for row in rows:
        numbers = {name: float(row[name]) for name in score_directions.FOUND}
        assert 0 < numbers["floor"] < numbers["sliced"] < numbers["max_sliced"]
        assert numbers["along"] > 0 and numbers["across"] > 0


def test_directions_are_the_sads_of_the_network_in_ascending_order(finished):
    network = create_score_network("cnn", (4, 4, 1), width=8)
    sads = estimate_sads(network, 64, 0)
    assert (np.diff(sads.eigenvalues) >= 0).all()
    for unit in _units(finished):
        index = 0 if '"index": 0' in str(unit["names"][0]) else 15
        np.testing.assert_allclose(unit["direction"][0], sads.directions[index], atol=1e-5)


def _lab_of(network, monkeypatch, **changes):
    """The lab of a config whose network is another one, or its own."""
    if network is not None:
        monkeypatch.setattr(score_directions, "read_network", lambda config: network)
    monkeypatch.setattr(score_directions, "find_directions", lambda config: np.eye(SIZE))
    config = _config(num_samples=1_000, num_steps=0, num_projections=64, **changes)
    return score_directions.open_lab(config), score_directions.make_networks(config)


def test_the_best_network_is_found_at_the_floor_and_one_that_predicts_nothing_is_not(monkeypatch):
    schedule = Schedule(100, 0.1, 20.0)
    monkeypatch.setattr(score_directions, "read_schedule", lambda config: schedule)
    best = gaussian_network(SIZE * np.diag(np.eye(SIZE)[15]), (4, 4, 1), schedule)
    lab, members = _lab_of(best, monkeypatch)
    (member,) = (m for m in members if m.what.coordinates == {
        "index": 15, "alignment": "", "seed": 1})  # fmt: skip
    found = score_directions.compare(lab, member, {})
    assert found["direction"].tolist() == np.eye(SIZE)[15].tolist()
    assert found["along"] == pytest.approx(0.97, abs=0.15) and found["across"] < 1e-6
    assert found["sliced"] < 3 * found["floor"] and found["max_sliced"] < 1.0
    nothing = ScoreNetwork(lambda key: {}, lambda variables, x, t: x * 0, (4, 4, 1))
    lab, _ = _lab_of(nothing, monkeypatch)
    worse = score_directions.compare(lab, member, {})
    # The noise that samples begin with stays, as much in every direction, grown by 1/√ᾱ.
    assert worse["across"] == pytest.approx(worse["along"], rel=0.2) and worse["across"] > 10
    assert worse["sliced"] > 20 * found["floor"]


def test_a_network_that_diverged_has_no_distance(monkeypatch):
    broken = ScoreNetwork(lambda key: {}, lambda variables, x, t: x * np.nan, (4, 4, 1))
    lab, members = _lab_of(broken, monkeypatch)
    found = score_directions.compare(lab, members[0], {})
    assert np.isnan(found["sliced"]) and found["floor"] > 0


def test_rotations_put_the_variance_where_they_say():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(5, 5)))[0].T
    eigenvalues = np.array([0.1, 0.5, 1.0, 2.0, 5.0])  # ascending, as SADs have them
    geometry = directions.T @ np.diag(eigenvalues) @ directions
    images = rng.normal(size=(200, 5)) * [3.0, 0.2, 1.0, 2.0, 0.5]
    moment = images.T @ images
    variances = np.linalg.eigvalsh(moment)

    def alignment(matrix):
        return np.trace(geometry @ matrix @ moment @ matrix.T)

    found = {n: score_data.make_rotation(directions, images, n) for n in ("min", "max")}
    assert alignment(found["min"]) == pytest.approx(eigenvalues @ variances[::-1])
    assert alignment(found["max"]) == pytest.approx(eigenvalues @ variances)
    others = [alignment(np.linalg.qr(rng.normal(size=(5, 5)))[0]) for _ in range(200)]
    assert alignment(found["min"]) < min(others) and alignment(found["max"]) > max(others)
    np.testing.assert_array_equal(score_data.make_rotation(None, images, "none"), np.eye(5))


def _write_images(path, count=96):
    rng = np.random.default_rng(1)
    np.save(path, rng.normal(size=(count, 4, 4, 1)) * np.linspace(0.1, 2, 4)[:, None])


def test_images_are_trained_on_as_they_are_and_rotated(tmp_path, capsys):
    _write_images(tmp_path / "images.npy")
    config = _config(images=str(tmp_path / "images.npy"), seeds=(0,))
    workdir = tmp_path / "run"
    assert run(score_directions, config, workdir)
    rows = _read(workdir)
    assert [row["alignment"] for row in rows] == ["none", "min", "max"]
    assert len({row["sliced"] for row in rows}) == 3 and {row["along"] for row in rows} == {"nan"}
    assert "sliced, alignment max less min: " in capsys.readouterr().out
    (figure,) = score_directions.draw(config, workdir)
    assert figure.exists()
    (tmp_path / "images.npy").rename(tmp_path / "moved.npy")
    np.save(tmp_path / "others.npy", np.ones((96, 4, 4, 1)))
    files = [str(tmp_path / name) for name in ("moved.npy", "others.npy")]
    assert score_directions.draw(_config(images=files[0], seeds=(0,)), workdir)
    with pytest.raises(InputError, match=r"holds results of another configuration\n  images: "):
        score_directions.draw(_config(images=files[1], seeds=(0,)), workdir)


def test_samples_of_rotated_images_are_rotated_back(tmp_path, monkeypatch):
    _write_images(tmp_path / "images.npy", 2_000)
    changes = {"images": str(tmp_path / "images.npy"), "num_train": 1_000, "num_test": 1_000}
    schedule = Schedule(100, 0.1, 20.0)
    monkeypatch.setattr(score_directions, "read_schedule", lambda config: schedule)
    lab, _ = _lab_of(None, monkeypatch, **changes)
    rotation, (images, _) = lab.rotation("max"), lab.images()
    rotated = images @ rotation.T
    best = gaussian_network(rotated.T @ rotated / len(rotated), (4, 4, 1), schedule)
    lab, members = _lab_of(best, monkeypatch, **changes)
    (member,) = (m for m in members if m.what.coordinates["alignment"] == "max" and m.group == 0)
    found = score_directions.compare(lab, member, {})
    assert found["sliced"] < 2 * found["floor"]


def test_a_folder_grows_by_seeds_and_indices(finished, capsys):
    stored = {path.name: path.read_bytes() for path in finished.glob("units/*.npz")}
    assert run(score_directions, _config(seeds=(0, 1, 2), indices=(0, 15, 7)), finished)
    printed = capsys.readouterr().out
    assert "9 networks" in printed and "sliced, index 15 less 0: " in printed
    for name, content in stored.items():
        assert (finished / "units" / name).read_bytes() == content
    with pytest.raises(InputError, match="num_steps"):
        run(score_directions, _config(num_steps=4), finished)


def test_directions_may_come_from_a_file(tmp_path, monkeypatch):
    np.save(tmp_path / "directions.npy", np.eye(SIZE)[:3])
    monkeypatch.setattr(score_directions, "estimate_sads", None)
    config = _config(directions=str(tmp_path / "directions.npy"), indices=(2,), seeds=(0,))
    assert run(score_directions, config, tmp_path / "run")
    (unit,) = _units(tmp_path / "run")
    assert unit["direction"][0].tolist() == np.eye(SIZE)[2].tolist()
    config.indices = (3,)
    with pytest.raises(InputError, match=r"^indices: must be below the 3 directions of"):
        run(score_directions, config, tmp_path / "other")


def test_a_file_whose_eigenvalues_descend_is_refused(tmp_path):
    path = tmp_path / "nads.npz"
    for values, fits in (([3.0, 2.0], False), ([2.0, 3.0], True), (None, True)):
        arrays = {} if values is None else {"eigenvalues": np.array(values)}
        np.savez(path, directions=np.eye(SIZE)[:2], **arrays)
        config = _config(directions=str(path), indices=(0,))
        if fits:
            assert len(score_directions.find_directions(config)) == 2
        else:
            with pytest.raises(InputError, match=r"^directions: .* of descending eigenvalues"):
                score_directions.find_directions(config)


def test_files_are_known_by_what_they_hold(tmp_path):
    identities = []
    for name, rows in (("a", [0, 1]), ("b", [0, 1]), ("a", [1, 0])):
        np.save(tmp_path / f"{name}.npy", np.eye(SIZE)[rows])
        np.save(tmp_path / f"images_{name}.npy", np.full((96, 4, 4, 1), rows[0], np.float32))
        for fields in ({"directions": f"{name}.npy"}, {"images": f"images_{name}.npy"}):
            files = {field: str(tmp_path / file) for field, file in fields.items()}
            identities.append(score_directions.identify(_config(**files)))
    for moved, replaced in ((2, 4), (3, 5)):
        assert identities[moved] == identities[moved - 2] != identities[replaced]


def test_the_difference_of_the_ends_is_paired_by_seed():
    values = {0: (1.0, 4.0), 1: (2.0, 4.0), 2: (5.0, 9.0)}  # by seed, of both ends
    rows = [
        {"index": index, "alignment": "", "seed": seed, "sliced": value}
        for seed, pair in values.items()
        for index, value in zip((0, 15), pair, strict=True)
    ]
    text = score_directions.describe_difference(rows, "index", "sliced")
    # 3 ± 4.303/√3
    assert text == "sliced, index 15 less 0: 3, 95% interval 0.516 … 5.48 (3 seeds, Student's t)"
    only = [row for row in rows if row["seed"] == 0]
    assert score_directions.describe_difference(only, "index", "sliced").endswith("3, 1 seed")
    assert score_directions.describe_difference(only[:1], "index", "sliced") == ""


def test_a_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(60):
        low, high = results.bootstrap_interval(rng.normal(3.0, 2.0, 40).tolist())
        assert high - low == pytest.approx(4 * 2.0 / np.sqrt(40), rel=0.5)
        covered += low < 3.0 < high
    assert covered >= 50  # of 57 expected
    assert np.isnan(results.bootstrap_interval([1.0])).all()


@pytest.mark.parametrize("recipe", load_config("score_directions").RECIPES)
def test_every_recipe_is_valid(recipe):
    config = load_config("score_directions").get_config(recipe)
    score_directions.validate(config)
    networks = score_directions.make_networks(config)
    assert len(networks) == len(config.indices) * len(config.seeds)
    assert config.num_train * config.num_epochs / config.batch_size == {
        "cpu": 500, "gpu": 2000, "smoke": 8}[recipe]  # fmt: skip


def test_costs_grow_with_steps_of_the_sampler():
    config = _config(sample_batch=32)
    lab = score_directions.open_lab(config)
    member = score_directions.make_networks(config)[0]
    few = score_directions.measure_seconds(lab, member)
    config.num_steps = 1_000
    many = score_directions.measure_seconds(lab, member)
    assert few > 0 and many > 3 * few


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": (0, 16)}, "^indices: must be an integer in 0 … 15, got 16"),
        ({"alignments": ("most",)}, "^alignments: unknown value 'most'"),
        ({"network": "vnet"}, "^name: unknown value 'vnet'|^network"),
        ({"network": "unet:depth=9"}, "depth"),
        ({"num_networks": 1}, "^num_networks: must be an integer of at least 2, got 1"),
        ({"eta": 2.0}, "^eta: must be a number in 0 … 1, got 2.0"),
        ({"num_steps": 1001}, "^num_steps: must be an integer in 0 … 1000, got 1001"),
        ({"num_levels": 10}, "^last: β must be below 1"),
        ({"num_projections": -1}, "^num_projections: must be an integer"),
        ({"num_samples": 1}, "^num_samples: must be an integer of at least 2, got 1"),
        ({"image_scale": 0.0}, "^image_scale: must be a finite number greater than 0"),
        ({"images": "x.npy", "num_samples": 33}, "^num_samples: must be at most 32"),
        ({"images": "none.npy"}, "none.npy"),
        ({"seeds": (0, 0)}, "^seeds: must be a non-empty tuple of different values"),
        ({"optimizer": "nonsense"}, "^optimizer: "),
    ],
)
def test_bad_fields_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        config = _config(**changes)
        score_directions.validate(config)
        score_directions.make_study(config).make_program(
            score_directions.make_networks(config)[0], 0
        )


def test_images_of_another_shape_are_refused(tmp_path):
    _write_images(tmp_path / "images.npy", 50)
    config = _config(images=str(tmp_path / "images.npy"))
    with pytest.raises(InputError, match=r"^images: .* must hold 96 images \(4, 4, 1\) or more"):
        score_data.read_images(config)


def test_networks_of_the_table_are_trained_as_models():
    model = as_model(score_directions.read_network(_config()))
    assert (model.image_shape, model.num_logits) == ((17,), 16)
    jax.eval_shape(model.init, jax.random.key(0))


@pytest.mark.parametrize("option", ["input_shape=(4,4,1)", "convolution='lax'", "name='unet'"])
def test_fields_are_no_options_of_the_network(option):
    with pytest.raises(InputError, match="is no option; it is the field"):
        score_directions.validate(_config(network=f"cnn:{option}"))
