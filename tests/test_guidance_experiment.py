"""The experiment `guidance` at smoke size: its tables, how they grow, what it refuses."""

import csv
import io
import json

import jax
import numpy as np
import pytest

from experiments import guidance, results
from experiments.own_direction import compare_geometry
from nad_jax import create_model, estimate_nads, sample_noise
from nad_jax.contract import shape_of_variables
from nad_jax.errors import InputError
from nad_jax.guidance import compare_features
from nad_jax.tasks.separable import noise_key, separate
from tests.test_configs import load_config, run

SIZE = 36


def _config(**changes):
    config = load_config("guidance").get_config("smoke")
    config.update(
        network="mlp(width=8)", guide="mlp(width=4)", image_shape=(6, 6, 1), indices=(0, 20),
        seeds=(0, 1), num_networks=60, num_points=8, num_train=64, num_test=32, batch_size=16,
        keep_weights=True,
    )  # fmt: skip
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert run(guidance, _config(), workdir)
    return workdir


def _read(workdir, name="results", **chosen):
    rows = csv.DictReader(io.StringIO((workdir / f"{name}.csv").read_text()))
    return [row for row in rows if all(row[n] == value for n, value in chosen.items())]


def _stored(workdir):
    """The arrays of each network by (role, guidance, index, seed)."""
    found = {}
    for path in workdir.glob("units/*.npz"):
        with np.load(path) as arrays:
            names = [tuple(json.loads(str(name)).values()) for name in arrays["names"]]
            axes = {n: arrays[n] for n in arrays.files if len(arrays[n].shape) > 0}
            for number, (guided, index, role, seed) in enumerate(names):
                key = role, guided, index, seed
                found[key] = {n: a[number] for n, a in axes.items() if len(a) == len(names)}
    return found


def test_there_is_a_row_for_every_network_and_geometry_and_a_figure(finished):
    rows = _read(finished)
    places = {tuple(row[n] for n in ("role", "guidance", "index", "seed")) for row in rows}
    assert len(rows) == len(places) == 3 * 2 * 2
    for row in rows:
        values = [float(row[name]) for name in guidance.CKA]
        assert np.isnan(values).all() if row["role"] == "guide" else 0 < min(values) <= 1
    assert len(_read(finished, "overlaps")) == 3 * 2 * 2 * 3  # of 1, 4 and 16 directions
    (figure,) = guidance.draw(_config(), finished)
    assert figure.name == "guidance.png" and figure.exists()


def test_networks_of_a_seed_start_alike_and_part_by_guidance(finished):
    stored = _stored(finished)
    assert len(stored) == 12
    for seed in (0, 1):
        plain, other = (stored["network", guided, 20, seed] for guided in (0.0, 1.0))
        assert plain["losses"][0] == pytest.approx(other["losses"][0], rel=1e-6)
        assert np.abs(plain["losses"] - other["losses"]).max() > 1e-4
    before = {row["cka_before"] for row in _read(finished, role="network", index="20")}
    assert len(before) == 2  # one for each seed, whatever the guidance


def test_gradients_are_those_of_the_stored_networks_along_the_nads_of_the_guide(finished):
    arrays = _stored(finished)["network", 1.0, 20, 1]
    nads = estimate_nads(
        create_model("mlp", (6, 6, 1), width=4), 60, 0, derivative="input_gradient", point="fresh"
    )
    noise = sample_noise(noise_key(1), 64, 32, SIZE).test[:8]
    direction = nads.directions[20].astype(np.float32)
    x = np.asarray(separate(noise, np.arange(8) % 2, direction, 1.0, 1.0), np.float64)

    def read(layer, kind):
        (found,) = (a for n, a in arrays.items() if n.endswith(f"Dense_{layer}/{kind}"))
        return found.astype(np.float64)

    first, second, last = (read(layer, "kernel") for layer in range(3))
    b, c = read(0, "bias"), read(1, "bias")
    hidden = x @ first + b
    deeper = np.maximum(hidden, 0) @ second + c
    back = ((deeper > 0) * (last[:, 0] - last[:, 1])[None]) @ second.T
    rows = ((hidden > 0) * back) @ first.T @ nads.directions.T
    np.testing.assert_allclose(arrays["gradients"], rows, atol=1e-5 * np.abs(rows).max())


def test_the_table_has_the_overlaps_of_what_is_stored(finished):
    stored = _stored(finished)
    gradients = [stored["network", 1.0, index, 1]["gradients"] for index in (0, 20)]
    expected = compare_geometry(gradients, (0, 20))
    said = {"role": "network", "guidance": "1", "seed": "1", "own": "left out"}
    rows = _read(finished, "overlaps", **said)
    for name in ("overlap", "energy", "chance", "energy_chance"):
        np.testing.assert_allclose([float(row[name]) for row in rows], expected[name], rtol=1e-5)
    # Without numbers of `compare_geometry`; the NAD 0 is the own direction of the first network.
    left = [rows.astype(np.float64) * (np.arange(SIZE) != own)[None]
            for rows, own in zip(gradients, (0, 20), strict=True)]  # fmt: skip
    total = sum(np.sum(rows[:, :16] ** 2) for rows in left) / sum(np.sum(one**2) for one in left)
    assert float(rows[2]["energy"]) == pytest.approx(total, rel=1e-5)
    kept = _read(finished, "overlaps", **{**said, "own": "kept"})
    assert [float(row["chance"]) for row in kept] == pytest.approx([1 / 36, 4 / 36, 16 / 36])


def test_the_table_says_how_well_halves_of_the_guides_agree(finished):
    model = create_model("mlp", (6, 6, 1), width=4)
    nads = estimate_nads(model, 60, 0, derivative="input_gradient", point="fresh")
    known = dict(zip(map(float, nads.overlap_sizes), nads.split_half_overlap, strict=True))
    rows = _read(finished, "overlaps")
    assert {float(row["size"]) for row in rows} == {*known}
    for row in rows:
        expected = pytest.approx(known[float(row["size"])], rel=1e-3, nan_ok=True)
        assert float(row["split_half"]) == expected


def test_a_table_of_overlaps_of_another_version_is_refused(tmp_path):
    (tmp_path / "overlaps.csv").write_text("role,guidance,seed,own,size\nguide,0,0,kept,1\n")
    with pytest.raises(InputError, match=r"overlaps\.csv: not an overlaps\.csv of this version"):
        guidance.read_overlaps(tmp_path)


def test_a_folder_grows_by_guidances_seeds_and_indices(finished, capsys):
    stored = {path.name: path.read_bytes() for path in finished.glob("units/*.npz")}
    grown = _config(guidances=(0.0, 1.0, 3.0), indices=(0, 20, 5))
    assert run(guidance, grown, finished)
    assert "mlp(width=8), α = 3: 6 networks" in capsys.readouterr().out
    for name, content in stored.items():
        assert (finished / "units" / name).read_bytes() == content
    with pytest.raises(InputError, match="layers"):
        run(guidance, _config(layers="all"), finished)


@pytest.mark.parametrize(("layers", "count"), [("last", 1), ("all", 4)])
def test_each_layer_of_the_guide_is_compared_where_all_are_asked_for(layers, count):
    lab = guidance.open_lab(_config(layers=layers, guide="lenet(width=3, padding='same')"))
    models = [lab.models[role] for role in guidance.ROLES]
    compare = compare_features(*models, **guidance.choose_layers(lab.config, lab.models))
    x = jax.ShapeDtypeStruct((4, 6, 6, 1), np.float32)
    assert jax.eval_shape(compare, *map(shape_of_variables, models), x).shape == (count,)


def test_the_correlation_with_the_index_is_of_each_seed():
    rows = [
        {"index": index, "seed": seed, "test_accuracy": accuracy}
        for seed, accuracies in enumerate([(0.9, 0.8, 0.7), (0.7, 0.8, 0.9), (0.5, 0.5, 0.5)])
        for index, accuracy in zip((0, 10, 20), accuracies, strict=True)
    ]
    assert results.correlate(rows) == pytest.approx([-1, 1])


def test_an_index_beyond_the_rank_of_the_directions_is_refused():
    """Two networks of four features have eight rows at most."""
    config = _config(num_networks=2, indices=(0, 8))
    with pytest.raises(InputError, match=r"^indices: must be below [1-8], .*num_networks=2, got"):
        guidance.find_nads(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": (0, 36)}, r"^indices: must be an integer in 0 … 35, got 36"),
        ({"guidances": (-1.0,)}, r"^guidances: must be a finite number at least 0"),
        ({"guidances": (1.0, 1)}, r"^guidances: must be a non-empty tuple of different values"),
        ({"layers": "first"}, r"^layers: unknown value 'first'"),
        ({"num_points": 33}, r"^num_points: must be at most the 32 test samples, got 33"),
        ({"num_networks": 1}, r"^num_networks: must be an integer of at least 2"),
        ({"num_train": 9}, r"^num_train: must be even"),
        ({"guide": "lent"}, r"^architecture: unknown value 'lent'"),
        ({"optimizer": "nonsense"}, r"^optimizer: "),
        (
            {"layers": "all", "guide": "logreg"},
            r"^guide: logreg has no layers .* take layers='last'",
        ),
        ({"layers": "all", "network": "logreg"}, r"^network: logreg has no layers"),
    ],
)
def test_bad_fields_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        guidance.validate(_config(**changes))


def test_a_guide_whose_features_are_not_known_is_refused(monkeypatch):
    def read_model(config, role, *num_logits):
        return original(config, role, *num_logits)._replace(features=None)

    original = guidance.read_model
    monkeypatch.setattr(guidance, "read_model", read_model)
    with pytest.raises(InputError, match=r"^network: of mlp\(width=8\) the input of a last linear"):
        guidance.validate(_config())
    guidance.validate(_config(layers="all"))
