import functools
import json
import operator
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.benchmark import benchmark, jax_programs
from experiments.benchmark.stopwatch import FailedError, Stopwatch
from experiments.run import origin, runner
from experiments.run.folder import Folder
from experiments.run.shards import Shard
from nad_jax import architectures
from nad_jax.closed_form import relu_eigenvalue
from nad_jax.errors import InputError
from nad_jax.moments import second_moment
from tests.test_configs import ROOT, load_config, run


def _watch(specifications, processes=1):
    return Stopwatch("tests.timed_programs", specifications, sys.executable, processes)


def test_a_stopwatch_gives_seconds_per_unit_of_work_of_each_program_and_of_processes_together():
    programs = [
        {"sleep": 0.05, "work": 2, "seconds": 0.1},
        {"sleep": 0.02, "work": 1, "seconds": 0, "bytes": 10**8},
    ]
    one, two = _watch(programs), _watch(programs[:1], processes=2)
    try:
        assert [facts["kept"] for facts in one.facts] == [0, 10**8]
        for _ in range(2):
            assert 0.025 <= one.run(0) < 0.05 and 0.02 <= one.run(1) < 0.05
            assert 0.0125 <= two.run() < 0.025
        assert one.peak_bytes > 10**8 > two.peak_bytes / 2
    finally:
        one.close()
        two.close()


def test_a_program_that_fails_says_why_and_a_killed_one_that_it_ended():
    with pytest.raises(FailedError, match="exit code 1, RuntimeError: no such thing"):
        _watch([{"fail": "no such thing", "seconds": 0}])
    watch = _watch([{"sleep": 0, "work": 1, "seconds": 0}], processes=2)
    watch._processes[1].kill()
    with pytest.raises(FailedError, match=r"exit code -9"):
        watch.run()
    watch.close()


def test_timed_processes_end_with_the_one_that_started_them():
    program = (
        "import sys, time; from experiments.benchmark.stopwatch import Stopwatch; "
        "watch = Stopwatch('tests.timed_programs', [{'sleep': 0, 'work': 1, 'seconds': 0}], "
        "sys.executable); "
        "print(watch._processes[0].pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    timed = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for _ in range(100):
        try:
            os.kill(timed, 0)
            if "State:\tZ" in Path(f"/proc/{timed}/status").read_text():
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    pytest.fail("the timed process is still there")


def _operations(architecture, shape=(32, 32, 1)):
    spec = {"architecture": architecture, "task": "gradient", "image_shape": shape, "batch_size": 1}
    return jax_programs._floor(spec)[0] // 2  # forward and backward


def test_operations_of_the_floor_are_those_of_the_layers(monkeypatch):
    lenet = 28**2 * 25 * 6 + 10**2 * 25 * 6 * 16 + 400 * 120 + 120 * 84 + 84
    assert _operations("lenet") == 2 * lenet
    widths = [
        (1, 64, 32),
        (64, 128, 16),
        (128, 256, 8),
        (256, 256, 8),
        (256, 512, 4),
        (512, 512, 4),
        (512, 512, 2),
    ]
    vgg11 = sum(9 * before * after * side**2 for before, after, side in [*widths, (512, 512, 2)])
    assert _operations("vgg11") == 2 * (vgg11 + 512 * 512 * 2 + 512)
    monkeypatch.setattr(jax_programs.densenet, "BLOCKS", (2, 1))
    monkeypatch.setattr(
        architectures, "_create_model", architectures._create_model.__wrapped__
    )  # not one made before
    first = 9 * 64 + 128 * (64 + 96) + 2 * 9 * 128 * 32 + 128 * 64  # stem, two layers, transition
    assert _operations("densenet121") == 2 * (
        32**2 * first + 16**2 * 128 * (64 + 9 * 32) + 4 * 4 * 96
    )


def test_the_floor_counts_what_a_unit_of_work_needs():
    spec = {"architecture": "lenet", "image_shape": (32, 32, 1), "batch_size": 128}
    needs = {task: jax_programs._floor({**spec, "task": task}) for task in benchmark.TASKS}
    forward, first = 831_528, 2 * 28**2 * 25 * 6
    assert needs == {
        "initialization": (0, 60_941),
        "gradient": (2 * forward, 60_941),
        "central_difference": (2048 * forward, 60_941),
        "step": (128 * (3 * forward - first), 0),
        "directions": (128 * (3 * forward - first), 0),
    }


@pytest.mark.parametrize("task", ["gradient", "central_difference"])
def test_derivatives_that_are_timed_are_those_that_the_task_names(task):
    """E[g gᵀ] of ReLU networks is in closed form; central differences have .34 of the exact one."""
    spec = {"architecture": "mlp(width=100)", "image_shape": (3, 3, 1), "convolution": "lax"}
    spec |= {"mapping": "vectorized", "chunk_size": 1000}
    halves = jax_programs.TASKS[task](spec).call()
    found = np.mean([np.trace(second_moment(half)) for half in halves[:2]]) / 9
    how = {"initialization": "reference"}
    if task == "central_difference":
        how["derivative"] = task
    assert found == pytest.approx(relu_eigenvalue(9, (100, 100), **how), rel=0.1)


def _config(backend="cpu", **changes):
    config = load_config("benchmark").get_config(backend)
    config.update(architectures=("lenet",), image_shape=(16, 16, 1), batch_size=8, seconds=0.0)
    for field in benchmark.PER_ARCHITECTURE:
        config[field].lenet = 2
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "_has_torch", lambda python: False)
        run(benchmark, _config(tasks=("central_difference",)), workdir)
    return workdir


def test_without_a_baseline_ours_and_the_floor_are_timed(finished, monkeypatch):
    report = json.loads((finished / "benchmark.json").read_text())
    assert [unit["variant"]["task"] for unit in report["units"]] == ["central_difference"]
    for unit in report["units"]:
        assert unit["baseline"] is None and set(unit["seconds"]) == {"ours", "floor"}
        assert all(len(times) == 2 and min(times) > 0 for times in unit["seconds"].values())
        assert unit["facts"]["compile_seconds"] > 0 and unit["peak_bytes"]["ours"] > 10**8
    monkeypatch.setattr(benchmark, "measure", lambda *args: pytest.fail("a unit was timed again"))
    monkeypatch.setattr(benchmark, "_has_torch", lambda python: False)
    config = _config(tasks=("central_difference",))
    assert run(benchmark, config, finished)
    assert [path.name for path in benchmark.draw(config, finished)] == ["benchmark.png"]
    monkeypatch.setattr(benchmark, "_has_torch", lambda python: True)
    assert (
        len(Folder(finished, benchmark.make_study(config), False).missing()) == 1
    )  # there is a baseline now


def test_the_gpu_recipe_runs_at_smoke_size(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "_has_torch", lambda python: False)
    config = _config("gpu", tasks=("directions",), convolutions=("lax",), precisions=("bfloat16",))
    config.update(chunk_sizes=(2,), mappings=("sequential",))
    config.num_directions.lenet = 3
    run(benchmark, config, tmp_path)
    (unit,) = json.loads((tmp_path / "benchmark.json").read_text())["units"]
    assert unit["variant"] == {
        "architecture": "lenet", "task": "directions", "convolution": "lax", "precision": "bfloat16",
        "mapping": "sequential", "chunk_size": 2,
    }  # fmt: skip
    assert unit["facts"]["chunk_size"] == 2 and len(unit["seconds"]["ours"]) == 2


def test_what_does_not_fit_the_device_says_so_and_does_not_end_the_rest(tmp_path, monkeypatch):
    said = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes."
    facts = {"device": "chip", "library": "JAX 1", "compile_seconds": 1.0}
    facts |= {"operations": 1, "numbers": 1}

    def start(specifications):
        program = {"sleep": 0, "work": 1, "seconds": 0, "facts": facts}
        if specifications[0].get("chunk_size") == 8 and len(specifications) == 1:
            program["fail"] = f"{said}\nmore lines"
        return _watch([program] * len(specifications))

    monkeypatch.setattr(benchmark, "_start_ours", start)
    monkeypatch.setattr(benchmark, "_has_torch", lambda python: False)
    config = _config(tasks=("gradient",), chunk_sizes=(8, 2))
    assert run(benchmark, config, tmp_path)
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert [unit["facts"].get("failed") for unit in report["units"]] == ["out of memory", None]
    rows = benchmark.format_table(report).splitlines()[-2:]
    assert rows[0].startswith("| lenet | exact gradient (auto, highest, 2 at once) | ")
    assert (
        rows[1] == "| lenet | exact gradient (auto, highest, 8 at once) | out of memory | | | | | |"
    )
    monkeypatch.setattr(benchmark, "_start_ours", lambda *_: pytest.fail("a unit was timed again"))
    assert run(benchmark, config, tmp_path)
    assert [path.name for path in benchmark.draw(config, tmp_path)] == ["benchmark.png"]
    with monkeypatch.context() as patch:  # where there is a baseline, only the other one is timed
        patch.setattr(benchmark, "_has_torch", lambda python: True)
        (missing,) = Folder(tmp_path, benchmark.make_study(config), False).missing()
        assert missing.label.endswith("-2")
    monkeypatch.setattr(
        benchmark, "_start_ours", lambda _: _watch([{"fail": "no such thing", "seconds": 0}])
    )
    with pytest.raises(InputError, match="could not be timed: exit code 1"):
        run(benchmark, _config(tasks=("step",)), tmp_path)


def test_variants_of_a_task_are_told_apart():
    config = _config("gpu", chunk_sizes=(0, 8, 32))
    config.num_directions.lenet = 16
    variants = benchmark.list_variants(config)
    # Precisions belong to training, chunks to tasks of many networks; no more at once than there
    # are.
    assert len(variants) == 2 * (1 + 2 * 3 + 3 + 3 * 3) == len({v.name for v in variants})
    chunks = {task: {v.chunk_size for v in variants if v.task == task} for task in benchmark.TASKS}
    assert chunks["step"] == {0} and chunks["directions"] == {0, 8, 16}
    assert chunks["gradient"] == {0, 8, 32}
    # As folders of earlier versions name them.
    variant = benchmark.Variant("lenet", "step", "auto", "default")
    assert variant.name == "lenet-step-auto-default"
    assert variant._replace(chunk_size=8).name == "lenet-step-auto-default-8"
    variant = variant._replace(mapping="sequential", chunk_size=8)
    assert variant.name == "lenet-step-auto-default-sequential-8"
    units = [_unit("lenet", "step", ours=[1.0], floor=[1.0]) for _ in range(2)]
    units[1]["variant"]["precision"] = "bfloat16"
    rows = benchmark.make_rows({"config": {"num_directions": {"lenet": 64}}, "units": units})
    assert [row.label for row in rows] == [
        "training step (auto, default)",
        "training step (auto, bfloat16)",
    ]


def test_the_baseline_has_the_same_networks():
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[benchmark]'")
    from experiments.benchmark import torch_programs

    for architecture, parameters in {
        "lenet": 60_941,
        "vgg11": 9_750_657,
        "resnet18": 11_168_193,
        "vit": 5_354_881,
        "mixer": 17_089_025,
        "convnext": 27_816_673,
    }.items():
        network = torch_programs.ARCHITECTURES[architecture]((32, 32, 1), 1)
        assert sum(leaf.numel() for leaf in network.parameters()) == parameters
        assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 1)
    spec = {
        "architecture": "lenet",
        "image_shape": [32, 32, 1],
        "precision": "highest",
        "threads": 1,
    }
    for task in benchmark.TASKS:
        program = torch_programs.make(
            {**spec, "task": task, "accelerator": False, "num_steps": 2, "batch_size": 4}
        )
        program.call()
        assert program.peak_bytes() > 0


def _counterparts(network, params):
    """The parameters of the baseline's ViT, Mixer or ConvNeXt, and the same ones of ours."""
    layers = ["patches", "patches_norm"]
    for stage, blocks in enumerate((3, 3, 9, 3)):
        layers += [f"halve{stage}_norm", f"halve{stage}"] * (stage > 0)
        layers += [f"block{stage + 1}_{number}" for number in range(1, blocks + 1)]
    for name, parameter in network.named_parameters():
        path = re.sub(r"layers\.(\d+)", lambda found: layers[int(found[1])], name)
        path = re.sub(r"blocks\.(\d+)", lambda found: f"block{int(found[1]) + 1}", path)
        path = re.sub(r"(tokens|channels)\.([02])", r"\1_mlp.\2", path).replace("_mlp.0", "_expand")
        path = path.replace("_mlp.2", "_contract").replace("mlp.0", "expand")
        *modules, kind = path.replace("mlp.2", "contract").split(".")
        parts = ("query", "key", "value") if modules[-1:] == ["inputs"] else modules[-1:]
        owner = functools.reduce(operator.getitem, modules[:-1], params)
        values = []
        for part in parts or (None,):
            own = params if part is None else owner[part]
            if kind in ("token", "position") or (kind == "scale" and "value" in own[kind]):
                own, kind = own[kind], "value"
            name = kind if kind != "weight" else "kernel" if "kernel" in own else "scale"
            values.append(np.asarray(own[name]))
        value = np.concatenate(values, -1)
        if parameter.ndim == 4:
            (after, before, *sides), order = parameter.shape, (3, 2, 0, 1)
            value = value.reshape(*sides, before, after).transpose(order)
        yield parameter, (value.T if parameter.ndim == 2 else value).reshape(parameter.shape)


@pytest.mark.parametrize("architecture", ["vit", "mixer", "convnext"])
def test_the_baseline_draws_by_the_same_laws_and_computes_the_same_logits(architecture):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[benchmark]'")
    from experiments.benchmark import torch_programs

    model = architectures.create_model(architecture, num_logits=2)
    params = jax.jit(model.init)(jax.random.key(0))["params"]
    torch.manual_seed(0)
    network = torch_programs.ARCHITECTURES[architecture]((32, 32, 1), 2)
    for parameter, value in _counterparts(network, params):
        drawn = parameter.detach().numpy()
        if value.size >= 500:  # below, both scatter
            np.testing.assert_allclose(drawn.std(), value.std(), rtol=0.2, atol=1e-12)
            np.testing.assert_allclose(drawn.mean(), value.mean(), atol=0.2 * value.std() + 1e-12)
        if value.size >= 4000:  # uniform, cut and uncut normal laws end elsewhere
            np.testing.assert_allclose(abs(drawn).max(), abs(value).max(), rtol=0.25)
    random = np.random.default_rng(0)  # biases and embeddings that start at zero, too
    params = jax.tree.map(
        lambda x: (x + 0.02 * random.standard_normal(x.shape)).astype(np.float32), params
    )
    images = random.standard_normal((3, 32, 32, 1)).astype(np.float32)
    with torch.no_grad():
        for parameter, value in _counterparts(network, params):
            parameter.copy_(torch.tensor(value))
        logits = network(torch.tensor(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(logits, jax.jit(model.apply)({"params": params}, images), atol=1e-4)


def test_architectures_of_today_are_timed_where_they_are_asked_for():
    config = load_config("benchmark").get_config()
    assert {variant.architecture for variant in benchmark.list_variants(config)} == {
        "lenet", "vgg11", "resnet18", "densenet121"
    }  # fmt: skip
    for backend in ("cpu", "gpu"):
        config = load_config("benchmark").get_config(backend)
        config.architectures = benchmark.ARCHITECTURES
        benchmark.validate(config)


def _unit(architecture, task, **seconds):
    return {
        "variant": {
            "architecture": architecture,
            "task": task,
            "convolution": "auto",
            "precision": "default",
        },
        "seconds": seconds,
        "peak_bytes": {"ours": 10**9, "all threads": 2 * 10**9, "2 processes": 4 * 10**9},
        "facts": {"device": "cpu", "library": "JAX 1", "compile_seconds": 2.5},
        "baseline": {"library": "PyTorch 2"},
        "cores": 2,
    }


def test_the_table_compares_rounds_with_the_better_baseline():
    times = {"ours": [1e-3, 2e-3, 4e-3], "floor": [1e-3] * 3}
    unit = _unit(
        "lenet",
        "directions",
        **times,
        **{"all threads": [8e-3] * 3, "2 processes": [4e-3, 4e-3, 4e-3]},
    )
    report = {"config": {"num_directions": {"lenet": 64}}, "units": [unit]}
    (row,) = benchmark.make_rows(report)
    assert (row.seconds, row.spread, row.baseline, row.baseline_bytes) == (
        2e-3,
        (1e-3, 4e-3),
        4e-3,
        4 * 10**9,
    )
    np.testing.assert_allclose((*row.ratio, row.above_floor), (0.5, 0.25, 1.0, 2.0))
    assert benchmark.format_table(report).splitlines()[-1] == (
        "| lenet | 64 directions, step of one | 2.0 ms (1.0 ms–4.0 ms) | 4.0 ms | 0.50 (0.25–1.00) "
        "| 2.00 | 2.5 s "
        "| 1 GB, 4 GB |"
    )


def test_bad_values_are_reported_at_once_and_shards_refused(tmp_path):
    config = _config(
        architectures=("lenet", "logreg"), tasks=("sleep",), precisions=("half",), batch_size=1
    )
    config.update(chunk_sizes=(3, -2), mappings=("parallel",))
    config.num_rounds.lenet = 0
    with pytest.raises(InputError) as caught:
        run(benchmark, config, tmp_path)
    names = [line.split(":")[0] for line in str(caught.value).splitlines()]
    assert names == [
        "architectures", "tasks", "precisions", "mappings", "chunk_sizes", "chunk_sizes", "num_rounds.lenet",
        "batch_size",
    ]  # fmt: skip
    with pytest.raises(InputError, match="shard: a benchmark is one process"):
        runner.run(benchmark.make_study(_config()), tmp_path, Shard(0, 2))
    with pytest.raises(InputError, match=r"python: '/no/python' cannot be run"):
        run(benchmark, _config(python="/no/python"), tmp_path)


def test_units_of_different_machines_make_no_table(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "_has_torch", lambda python: False)
    (path,) = (finished / "units").iterdir()
    (tmp_path / "units").mkdir()
    for task, cores in (("central_difference", 2), ("gradient", 64)):
        name = path.name.replace("central_difference", task)
        said = {"unit": Path(name).stem, "cores": cores}
        (tmp_path / "units" / name).write_text(json.dumps({**json.loads(path.read_text()), **said}))
    config = _config(tasks=("central_difference", "gradient"))
    (tmp_path / "config.json").write_bytes((finished / "config.json").read_bytes())
    with pytest.raises(InputError, match="was measured on different machines"):
        run(benchmark, config, tmp_path)


def test_timings_of_other_versions_are_not_added_to(finished, tmp_path, monkeypatch):
    workdir = Path(shutil.copytree(finished, tmp_path / "run"))
    here = origin.versions()
    monkeypatch.setattr(origin, "versions", lambda: {**here, "jaxlib": "99"})
    with pytest.raises(
        InputError,
        match=rf"--allow_other_versions .*\n  jaxlib: folder '{here['jaxlib']}', command '99'",
    ):
        run(benchmark, _config(tasks=("central_difference", "gradient")), workdir)


def test_pytorch_must_see_the_device(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("class cuda:\n    is_available = lambda: False\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seen = {}
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(benchmark.jax, "default_backend", lambda backend=backend: backend)
        benchmark._has_torch.cache_clear()
        seen[backend] = benchmark._has_torch(sys.executable)
    benchmark._has_torch.cache_clear()
    assert seen == {"cpu": True, "gpu": False}
