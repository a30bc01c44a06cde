"""The search of the most isotropic network: rungs, their ranks, what goes on, who computes what."""

import csv
import itertools
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import isotropy_search, search_space
from experiments.isotropy_search import Found, Search
from experiments.run import runner
from experiments.run.shards import Shard
from nad_jax import (
    create_model,
    estimate_nads,
    from_functions,
    masked,
    spectrum_metrics,
    store,
)
from nad_jax.errors import InputError
from tests.commands import read_numbers
from tests.test_configs import load_config, run

SMALL = {"num_epochs": 1, "num_train": (64,), "num_test": 32, "loss_window": 2, "batch_size": 32}
SIZES = {"num_rungs": 2, "num_networks": 8, "unit_size": 4, "confirm_networks": 12}


def _config(**changes):
    config = load_config("isotropy_search").get_config("lenet")
    config.update(architecture="mlp", image_shape=(4, 4, 1), chunk_size=2, num_frequencies=10)
    config.sweep.update(pooling=(), normalization=(), activation=())
    config.sweep.update(initialization=("reference", "he"), width=(4, 8))
    config.accuracy.update(frequency_range=(-2, 2), **SMALL)
    config.update({**SIZES, **changes})
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert run(isotropy_search, _config(), workdir)
    return workdir


def _read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def _rungs(workdir):
    rows = _read(workdir / "results.csv")
    return [[row for row in rows if row["rung"] == str(number)] for number in range(3)]


def _place(row):
    return row["initialization"], row["width"]


def test_the_best_half_of_each_rung_goes_on_and_so_does_the_start(finished):
    rungs = _rungs(finished)
    assert [len(rung) for rung in rungs] == [5, 3, 2]
    assert [{row["num_networks"] for row in rung} for rung in rungs] == [{"8"}, {"16"}, {"12"}]
    assert [{row["seed"] for row in rung} for rung in rungs] == [{"0"}, {"0"}, {"1"}]
    for rung, after in itertools.pairwise(rungs):
        start, *others = rung
        assert start["is_start"] == start["kept"] == "1" and _place(start) == _place(after[0])
        assert {row["is_start"] for row in others} == {"0"}
        divergences = sorted(float(row["kl_uniform"]) for row in others)
        kept = [row for row in others if row["kept"] == "1"]
        assert sorted(map(_place, kept)) == sorted(map(_place, after[1:]))
        assert max(float(row["kl_uniform"]) for row in kept) == divergences[len(kept) - 1]


def test_metrics_and_parameters_are_those_of_the_network(finished):
    row = next(row for row in _rungs(finished)[0] if _place(row) == ("he", "8"))
    model = create_model("mlp", (4, 4, 1), width=8, initialization="he")
    how = {"derivative": "central_difference", "step": 100.0, "point": "fresh"}
    nads = estimate_nads(model, 8, seed=0, symmetrized=True, **how)
    expected = spectrum_metrics(nads).kl_uniform  # of the same networks, by other batches
    assert abs(float(row["kl_uniform"]) - expected.value) < 0.5 * expected.sem
    leaves = jax.tree.leaves(model.init(jax.random.key(0)))
    assert int(row["num_parameters"]) == sum(leaf.size for leaf in leaves)


def test_both_are_trained_along_the_same_frequencies(finished):
    rows = _read(finished / "accuracy.csv")
    networks = {
        name: [row for row in rows if row["network"] == name] for name in ("start", "found")
    }
    places = [
        [(row["frequency_row"], row["frequency_column"]) for row in group]
        for group in networks.values()
    ]
    assert places[0] == places[1] and len({*places[0]}) == 10
    found = _rungs(finished)[-1][1]
    assert {_place(row) for row in networks["found"]} == {_place(found)}


def test_what_is_lost_is_computed_again_to_the_bit(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    lost = [workdir / "rungs" / "units" / f"rung_{number}.npz" for number in (1, 2)]
    lost += sorted(workdir.glob("confirmation,*/units/*"))[:2]
    lost += sorted(workdir.glob("units/networks_*"))[:3]
    for path in lost:
        path.unlink()
    assert run(isotropy_search, _config(), workdir)
    for path in (*lost, workdir / "results.csv", workdir / "accuracy.csv"):
        there = finished / path.relative_to(workdir)
        if path.suffix == ".npz":
            old, new = store.read_npz(there), store.read_npz(path)
            assert all(np.array_equal(old[name], new[name]) for name in old if name != "config")
        else:
            assert read_numbers(path) == read_numbers(there)


def test_shards_wait_for_each_other_and_find_the_same(finished, tmp_path):
    config = _config(num_rungs=1)
    config.sweep.initialization = ("he",)
    halves = [Shard(number, 2) for number in (0, 1)]
    with pytest.raises(runner.RunAgain, match="rung 1 of 2"):
        run(isotropy_search, config, tmp_path, halves[0])
    for number in range(6):
        try:
            if run(isotropy_search, config, tmp_path, halves[(number + 1) % 2]):
                break
        except runner.RunAgain:
            continue
    ours = {_place(row): row["kl_uniform"] for row in _rungs(tmp_path)[0]}
    theirs = {_place(row): row["kl_uniform"] for row in _rungs(finished)[0]}
    # The start is named by the axes there are.
    assert len(ours) == 3 and ours.items() <= theirs.items()
    assert len(_read(tmp_path / "accuracy.csv")) == 20


@pytest.mark.parametrize(
    ("objective", "seek", "order"),
    [
        ("kl_uniform", "most", [2, 1, 3, 4]),
        ("kl_uniform", "least", [3, 1, 2, 4]),
        ("effective_rank", "most", [3, 1, 2, 4]),
        ("participation_ratio", "least", [2, 1, 3, 4]),
    ],
)
def test_ranks_follow_the_objective_and_what_has_no_geometry_is_last(objective, seek, order):
    search = Search(_config(objective=objective, seek=seek))
    values = np.array([0.0, 2.0, 1.0, 3.0, np.nan])
    found = Found(search.first(0), {objective: values, f"{objective}_sem": np.ones(5)})
    assert search.rank(found) == order
    confirmed = Found(found.rung, {objective: values, f"{objective}_sem": np.full(5, 0.5)})
    difference, errors = isotropy_search.compare(search, confirmed)
    better = (objective == "kl_uniform") != (seek == "most")
    assert difference == (2.0 if better else -2.0)
    assert errors == pytest.approx(difference / 0.5**0.5)


def test_a_network_that_is_not_far_enough_is_not_said_to_be_found(capsys):
    search = Search(_config())
    accuracies = {"a": (0.5, 0.5), "b": (0.7, 0.8)}  # of two seeds, along two directions
    rows = [
        {"network": network, "direction": direction, "test_accuracy": accuracy + gain * (seed + 1)}
        for network, gain in (("start", 0.0), ("found", 0.05))
        for direction, seeds in accuracies.items()
        for seed, accuracy in enumerate(seeds)
    ]
    for sem, said in ((0.05, "most isotropic of 5"), (0.5, "none found: no network of 5")):
        arrays = {"kl_uniform": np.array([1.0, 0.5]), "kl_uniform_sem": np.full(2, sem)}
        confirmed = Found(search.first(2), arrays)
        isotropy_search._report(search, [confirmed], rows)
        printed = capsys.readouterr().out
        assert printed.startswith(said)
        # Seeds are no directions: both gain the same, on average over them.
        assert "2 random frequencies: 70.0%, start 62.5%; difference 7.5 " in printed
    rounding = {"kl_uniform": np.array([1.0, 1.0 - 1e-12]), "kl_uniform_sem": np.zeros(2)}
    isotropy_search._report(search, [Found(search.first(2), rounding)], rows)
    assert capsys.readouterr().out.startswith("none found")


def test_what_cannot_be_read_ends_a_rung_and_what_has_no_geometry_does_not(monkeypatch):
    search = Search(_config())

    def fail(error):
        def find_nads(*args, **kwargs):
            raise error("units: are not there")

        monkeypatch.setattr(isotropy_search.compute_nads, "find_nads", find_nads)
        return isotropy_search._measure(None, search.first(0))

    assert np.isnan(fail(InputError).arrays["kl_uniform"]).all()
    with pytest.raises(store.StorageError):
        fail(store.StorageError)


def test_the_budget_of_parameters_leaves_out_what_is_larger():
    search = Search(_config(max_parameters=200))
    widths = {point.config.width for point in search.space[1:]}
    assert widths == {4} and search.space[0].config.width == 0  # the start may be larger
    with pytest.raises(InputError, match="sweep: holds no network of at most 10 parameters besid"):
        isotropy_search.validate(_config(max_parameters=10))


@pytest.mark.parametrize(
    ("count", "factor", "sizes"),
    [
        (1, 2, [1]),
        (4, 2, [4, 2, 1]),
        (71, 2, [71, 35, 17, 8, 4, 2, 1]),
        (71, 5, [71, 14, 2, 1]),
        (9, 3, [9, 3, 1]),
    ],
)
def test_the_last_rung_is_the_first_with_a_single_network_besides_the_start(count, factor, sizes):
    config = _config(factor=factor, num_rungs=len(sizes))
    search = Search(config)
    search.space = (search.space[0],) * (1 + count)
    assert [search.sizes(number)[0] for number in range(len(sizes))] == sizes
    search_space.check_rungs(config, count)
    config.num_rungs += 1
    said = f"num_rungs: must be at most {len(sizes)}, got {len(sizes) + 1}: of {count} networks "
    with pytest.raises(InputError, match=said):
        search_space.check_rungs(config, count)


def test_too_many_rungs_are_refused_before_a_network_is_traced(monkeypatch):
    monkeypatch.setattr(isotropy_search.geometry, "validate", None)
    with pytest.raises(InputError, match=r"num_rungs: must be at most 3, got 30: of 4 networks"):
        isotropy_search.validate(_config(num_rungs=30))


def test_networks_beyond_the_budget_make_no_rungs():
    with pytest.raises(InputError, match=r"num_rungs: must be at most 2, got 3: of 2 networks"):
        isotropy_search.validate(_config(num_rungs=3, max_parameters=200))


def test_weights_that_a_mask_removes_are_no_parameters():
    config = _config(max_parameters=60)
    config.sweep.update(initialization=(), density=(1.0, 0.2))
    kept = {(point.config.width, point.config.density) for point in Search(config).space[1:]}
    assert kept == {(4, 0.2), (8, 0.2)}  # of 93 and 217 parameters, 84 and 200 of them weights
    dense = create_model("mlp", (4, 4, 1), width=8)
    functions = from_functions(
        lambda key: [dense.init(key)],
        lambda variables, x, key=None, train=False: dense.apply(variables[0], x),
        (4, 4, 1),
        check=False,
    )
    for model in (dense, functions):
        pruned = masked(model, 0.2)
        point = SimpleNamespace(ensemble=SimpleNamespace(model=pruned))
        found = jax.jit(jax.vmap(pruned.init))(jax.random.split(jax.random.key(0), 400))
        weights = [one for one in jax.tree.leaves(found) if one.dtype != bool]
        counted = sum(map(np.count_nonzero, weights)) / 400
        assert search_space.count_parameters(point) == 57 == pytest.approx(counted, abs=1)
    point = SimpleNamespace(ensemble=SimpleNamespace(model=dense))
    assert search_space.count_parameters(point) == 217


def test_bad_fields_are_named():
    wrong = {
        "objective": ("entropy", "objective: unknown value 'entropy'"),
        "seek": ("more", "seek: unknown value 'more'"),
        "factor": (1, "factor: must be an integer of at least 2, got 1"),
        "confirm_seed": (0, "confirm_seed: must differ from seed, got 0 for both"),
        # Of the 16 frequencies of 4×4 pixels six are the negative of another one.
        "num_frequencies": (11, "num_frequencies: must be at most 10, got 11"),
        "confirm_networks": (1, "confirm_networks: must be an integer of at least 4, got 1"),
    }
    for field, (value, said) in wrong.items():
        with pytest.raises(InputError, match=said):
            isotropy_search.validate(_config(**{field: value}))
    config = _config()
    config.sweep.seed = (0, 1)
    with pytest.raises(InputError, match=r"sweep.seed: must be \(\)"):
        isotropy_search.validate(config)
    config = _config()
    config.accuracy.sigmas = (-1.0,)
    with pytest.raises(InputError, match="sigmas"):
        isotropy_search.validate(config)
