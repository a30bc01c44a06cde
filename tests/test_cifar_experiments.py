"""The experiments `poison_cifar` and `flip_cifar` on tiny CIFAR-10 files: tables, resuming,
figures, bad input.
"""

import csv
import io
import shutil

import numpy as np
import pytest

from experiments import flip_cifar, image_networks, poison_cifar, trained
from experiments.main import EXPERIMENTS
from nad_jax import (
    ImageData,
    basis_random,
    flip,
    make_key,
    poison,
    published_carriers,
    read_cifar10,
    train_many_images,
)
from nad_jax.architectures import create_model
from nad_jax.errors import InputError
from nad_jax.recipe import Recipe
from tests.cifar_files import BINARY, PICKLED, make_batches, write_folder
from tests.commands import read_numbers
from tests.test_configs import load_config, run

NAMES = ("poison_cifar", "flip_cifar")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with tiny CIFAR-10 files and NADs: rows of an orthogonal matrix but the last, as
    published.
    """
    folder = tmp_path_factory.mktemp("files")
    write_folder(folder / "data", BINARY, make_batches(20))
    np.save(folder / "nads_logreg.npy", np.asarray(basis_random(make_key(0), 1024))[:-1])
    return folder


def _config(name, files, **changes):
    config = load_config(name).get_config("logreg")
    config.update(
        data_dir=str(files / "data"),
        nads=str(files / "nads_{architecture}.npy"),
        num_epochs=2,
        batch_size=32,
        loss_window=3,
        seeds=(0, 1),
    )
    if name == "poison_cifar":
        config.update(nad_indices=(0, 1000), epsilons=(0.5,))
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """Run folders of both experiments."""
    folder = tmp_path_factory.mktemp("runs")
    for name in NAMES:
        run(EXPERIMENTS[name], _config(name, files), folder / name)
    return folder


def _rows(workdir):
    return list(csv.DictReader(io.StringIO((workdir / "results.csv").read_text())))


def _copy(finished, name, tmp_path):
    return shutil.copytree(finished / name, tmp_path / "run")


def test_poisoned_and_clean_networks_have_a_row_each(finished):
    rows = _rows(finished / "poison_cifar")
    assert list(rows[0]) == list(poison_cifar.COLUMNS)
    place = [(row["nad_index"], row["epsilon"], row["seed"]) for row in rows]
    assert place == [(i, e, s) for s in "01" for i, e in (("", ""), ("0", "0.5"), ("1000", "0.5"))]
    assert len({row["train_loss"] for row in rows}) == 6


def test_flipped_and_original_networks_have_a_row_each(finished):
    rows = _rows(finished / "flip_cifar")
    assert list(rows[0]) == list(flip_cifar.COLUMNS)
    assert [(row["basis"], row["seed"]) for row in rows] == [
        (b, s) for b in ("original", "flipped") for s in "01"
    ]
    clean = {row["seed"]: row for row in _rows(finished / "poison_cifar") if row["nad_index"] == ""}
    for row in rows[:2]:  # the same networks as the clean ones of the other experiment
        assert float(row["train_loss"]) == pytest.approx(
            float(clean[row["seed"]]["train_loss"]), rel=1e-5
        )


def test_a_row_is_the_network_that_the_api_trains(finished, files):
    data, nads = (
        read_cifar10(files / "data"),
        np.load(files / "nads_logreg.npy", allow_pickle=False),
    )
    model = create_model("logreg", (32, 32, 3), 10)
    recipe = Recipe(
        "sgd", {"momentum": 0.9}, weight_decay=5e-4, batch_size=32, num_epochs=2, loss_window=3
    )
    config = _config("poison_cifar", files)
    carriers, signs = published_carriers(nads, 1000, (32, 32, 3))
    poisoned = poison(
        data.train_images / np.float32(255), data.train_labels, carriers, np.float32(0.5) * signs
    )
    flipped = (
        np.asarray(flip(images / np.float32(255), nads))
        for images in (data.train_images, data.test_images)
    )
    flipped_train, flipped_test = flipped
    for name, row, task in [
        (
            "poison_cifar",
            5,
            ImageData(np.asarray(poisoned), data.train_labels, data.test_images, data.test_labels),
        ),
        (
            "flip_cifar",
            3,
            ImageData(flipped_train, data.train_labels, flipped_test, data.test_labels),
        ),
    ]:
        metrics = train_many_images(
            model, task, seed=1, recipe=recipe, mean=config.mean, std=config.std
        )
        found = _rows(finished / name)[row]
        for metric in image_networks.METRICS:
            assert float(found[metric]) == pytest.approx(
                float(getattr(metrics, metric)[0]), rel=1e-4
            ), (name, metric)


@pytest.mark.parametrize("name", NAMES)
def test_a_rerun_trains_what_is_missing_and_the_table_is_the_same(
    name, finished, files, tmp_path, monkeypatch
):
    workdir, experiment = _copy(finished, name, tmp_path), EXPERIMENTS[name]
    first, second, *_ = sorted((workdir / "units").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    (workdir / "results.csv").unlink()
    run(experiment, _config(name, files, unit_size=2), workdir)
    assert read_numbers(workdir / "results.csv") == read_numbers(finished / name / "results.csv")
    assert list(workdir.glob("units/*.corrupt"))
    monkeypatch.setattr(trained, "make_run", lambda *args, **how: pytest.fail("trained again"))
    run(experiment, _config(name, files), workdir)


def test_the_layout_of_the_images_does_not_matter_but_the_images_do(
    finished, files, tmp_path, monkeypatch
):
    workdir = _copy(finished, "flip_cifar", tmp_path)
    monkeypatch.setattr(trained, "make_run", lambda *args, **how: pytest.fail("trained again"))
    write_folder(tmp_path / "pickled", PICKLED, make_batches(20))
    run(flip_cifar, _config("flip_cifar", files, data_dir=str(tmp_path / "pickled")), workdir)
    write_folder(tmp_path / "others", BINARY, make_batches(20, seed=1))
    with pytest.raises(InputError, match=r"another configuration\n  images: folder"):
        run(flip_cifar, _config("flip_cifar", files, data_dir=str(tmp_path / "others")), workdir)
    with pytest.raises(InputError, match=r"weight_decay: folder 0\.0005, command 0\.1"):
        run(flip_cifar, _config("flip_cifar", files, weight_decay=0.1), workdir)


def test_other_nads_extend_a_folder(finished, files, tmp_path, monkeypatch):
    dtypes = []
    make = trained.make_run

    def make_and_note(model, task, recipe, *args, **how):
        dtypes.append(task.data(model, recipe, 0).train_images.dtype)
        return make(model, task, recipe, *args, **how)

    workdir = _copy(finished, "flip_cifar", tmp_path)
    monkeypatch.setattr(trained, "make_run", make_and_note)
    np.save(tmp_path / "other.npy", np.asarray(basis_random(make_key(5), 1024)))
    run(flip_cifar, _config("flip_cifar", files, nads=str(tmp_path / "other.npy")), workdir)
    assert dtypes == [np.float32]  # the flipped images alone
    before, after = _rows(finished / "flip_cifar"), _rows(workdir)
    assert before[:2] == after[:2] and before[2:] != after[2:]


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_drawn_from_the_folder_alone(name, finished, files, tmp_path):
    workdir = _copy(finished, name, tmp_path)
    for path in workdir.glob("units/*"):
        path.unlink()
    figures = EXPERIMENTS[name].draw(_config(name, files, data_dir=""), workdir)
    first = {"poison_cifar": "poison_curve.png", "flip_cifar": "flip_bars.png"}[name]
    assert [path.name for path in figures] == [first, "examples.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in figures)
    with pytest.raises(
        InputError, match=r"made by another command\n  seeds: folder \[0, 1\], command \[0\]"
    ):
        EXPERIMENTS[name].draw(_config(name, files, seeds=(0,)), workdir)
    with pytest.raises(InputError, match="made by another command\n  nads: folder"):
        EXPERIMENTS[name].draw(_config(name, files, nads="other.npy"), workdir)
    (workdir / "command.json").write_text("{")
    with pytest.raises(InputError, match=r"command\.json: damaged, not JSON"):
        EXPERIMENTS[name].draw(_config(name, files), workdir)


def test_several_amplitudes_share_their_clean_networks(files, tmp_path, capsys):
    config = _config(
        "poison_cifar", files, epsilons=(0.1, 1.0), seeds=(0,), nad_indices=(3,), num_epochs=1
    )
    config.num_train = 64
    run(poison_cifar, config, tmp_path)
    assert [(row["nad_index"], row["epsilon"]) for row in _rows(tmp_path)] == [
        ("", ""),
        ("3", "0.1"),
        ("3", "1"),
    ]
    printed = capsys.readouterr().out
    assert (
        "logreg, ε = 0.1: test accuracy by NAD index" in printed
        and "logreg, ε = 1: test" in printed
    )
    assert (
        f"logreg, clean: test accuracy {100 * float(_rows(tmp_path)[0]['test_accuracy']):.1f}%"
        in printed
    )
    assert len(poison_cifar.draw(config, tmp_path)) == 2


def test_the_published_architecture_of_a_cpu_runs(files, tmp_path):
    for name in ("lenet", "logreg"):
        shutil.copy(files / "nads_logreg.npy", tmp_path / f"nads_{name}.npy")
    nads = str(tmp_path / "nads_{architecture}.npy")
    config = _config(
        "poison_cifar",
        files,
        architectures=("lenet", "logreg"),
        nads=nads,
        seeds=(0,),
        nad_indices=(5,),
    )
    run(poison_cifar, config, tmp_path / "run")
    assert [row["architecture"] for row in _rows(tmp_path / "run")] == ["lenet"] * 2 + [
        "logreg"
    ] * 2
    assert len(poison_cifar.draw(config, tmp_path / "run")) == 2


def test_bad_input_is_reported_at_once(files, tmp_path):
    changes = {
        "nads": "", "data_dir": "", "seeds": (-1,), "nad_indices": (1.5,), "epsilons": (0.0,), "optimizer": "sdg",
        "std": (1.0, 0.0, 1.0), "num_train": -1, "clean": "yes",
    }  # fmt: skip
    with pytest.raises(InputError) as caught:
        run(poison_cifar, _raw(files, changes), tmp_path / "run")
    names = {line.split(":")[0] for line in str(caught.value).splitlines()}
    assert names == set(changes)
    for name, change, message in [
        (
            "poison_cifar",
            {"nad_indices": (1022,)},
            r"nad_indices: must be an integer in 0 … 1021, got 1022",
        ),
        ("poison_cifar", {"nads": "missing.npy"}, r"missing\.npy: No such file"),
        ("poison_cifar", {"num_train": 101}, "num_train: must be an integer in 0 … 100, got 101"),
        (
            "flip_cifar",
            {"architectures": ("logreg", "mlp"), "nads": "nads.npy"},
            r"nads: needs \{architecture\} in the",
        ),
        ("poison_cifar", {"mean": (0.5, 0.5)}, "mean: must be 3 numbers"),
        (
            "poison_cifar",
            {"num_epochs": 1, "num_train": 20},
            "schedule: the only step of a 'linear' schedule",
        ),
        (
            "flip_cifar",
            {"bases": ("flipt",)},
            "bases: unknown value 'flipt'.*did you mean 'flipped'",
        ),
        ("flip_cifar", {"data_dir": str(tmp_path)}, "data_dir: no CIFAR-10 in"),
    ]:
        with pytest.raises(InputError, match=message):
            run(EXPERIMENTS[name], _config(name, files, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _raw(files, changes):
    """A config whose fields have changed their type, which `update` would refuse."""
    config = _config("poison_cifar", files)
    with config.ignore_type():
        config.update(changes)
    return config
