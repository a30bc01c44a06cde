"""What a command says it will take: at once what there is, then what is measured or estimated."""

from types import SimpleNamespace

import jax
import pytest

from experiments import directional_bias
from experiments.run import costs, dry_run
from experiments.run.plan import Cost, Member, Unit, Weight
from experiments.run.shards import Shard
from experiments.run.targets import Estimate, Target, estimate_training
from nad_jax import Execution, from_functions, target
from nad_jax.errors import InputError
from tests.commands import Command
from tests.test_configs import load_config

OPERATIONS = {"mlp": 10.0, "logreg": 1.0, "lenet": 300.0}


@pytest.fixture
def study():
    """Three architectures of 64 directions each; what is measured of them is in `asked`."""
    config = load_config("directional_bias").get_config("accuracy_map")
    config.update(architectures=tuple(OPERATIONS), image_shape=(16, 16, 1))
    config.update(source="random", num_directions=64, frequency_range=(-8, 8), unit_size=16)
    asked = []

    def measure_cost(member):
        asked.append(member.program[0])
        return Cost(1.0, 0.36 * OPERATIONS[asked[-1]], 2**20, "", 0.36 * OPERATIONS[asked[-1]])

    found = directional_bias.make_study(config)._replace(
        measure_cost=measure_cost,
        weigh=lambda member: Weight(OPERATIONS[member.program[0]], 2),
    )
    return SimpleNamespace(study=found, asked=asked)


def _describe(study, tmp_path, capsys, *how, **choices):
    dry_run.describe(study, tmp_path / "run", *how, **choices)
    assert not (tmp_path / "run").exists()
    return capsys.readouterr().out.splitlines()


def test_the_plan_comes_first_and_the_cheapest_program_is_measured_first(
    study, tmp_path, capsys, monkeypatch
):
    seen = []
    plain = study.study.measure_cost

    def measure_cost(member):
        seen.append(capsys.readouterr().out)
        return plain(member)

    monkeypatch.setattr(dry_run, "MEASURE_SECONDS", 200.0)
    lines = _describe(study.study._replace(measure_cost=measure_cost), tmp_path, capsys)
    assert study.asked == ["logreg", "mlp", "lenet"]
    plan = seen[0].splitlines()
    assert plan[0].startswith("plan: 192 networks in 12 units; stored 0 networks, missing 192")
    assert [line.split()[0] for line in plan[2:5]] == ["mlp", "logreg", "lenet"]
    assert lines[-1] == (  # 64 networks of .36 · 311 s and three compilations
        "estimate on this machine: 1:59:28 for shard 0-of-1; 1.99 device-hours in all"
    )


def test_what_takes_too_long_is_told_by_its_operations(study, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dry_run, "MEASURE_SECONDS", 162.0)  # 1 s and 1.5 · 300 · .36 s
    lines = _describe(study.study, tmp_path, capsys, Shard(1, 2))
    assert study.asked == ["logreg", "mlp"]
    assert lines[-2] == (
        "lenet default sgd 10000: 64 networks in 4 units; not measured, by its operations about 108 "
        "s a network"
    )
    assert lines[-1].startswith("estimate on this machine: 0:59:46 for shard 1-of-2; 1.99 device")


def test_nothing_is_measured_where_that_is_not_asked_for(study, tmp_path, capsys):
    lines = _describe(study.study, tmp_path, capsys, measure=False)
    assert not study.asked and len(lines) == 5
    assert lines[4] == "  lenet default sgd 10000: 64 networks in 4 units"


def test_devices_that_are_not_there_are_estimated(study, tmp_path, capsys, monkeypatch):
    numbers = {"num_networks": 8, "num_steps": 1000, "per": "a step", "compile_seconds": 3.0}
    numbers |= {"flops": 0.0, "bytes_moved": 0.0, "bytes": 2**21, "temporary_bytes": 0}
    numbers |= {"kernels": 7, "collectives": [], "text": ""}
    given = Target("v5e:2x2", [None] * 4, 2**30)

    def described(**changes):
        found = Estimate(**{**numbers, **changes})
        asked = study.study._replace(estimate=lambda member, given: found)
        return _describe(asked, tmp_path, capsys, given=given)

    lines = described(step_seconds=0.018)
    assert lines[-4].startswith("mlp default sgd 10000: 64 networks in 4 units; compilation 3 s, ")
    assert lines[-4].endswith("8 networks a device at once, 2 MiB on each, 18 ms a step")
    # 16 networks of each of four units, at most 32 at once, of three programs; 1000 steps each.
    assert lines[-1] == "estimate on v5e:2x2: 0:03:36 for shard 0-of-1; 0.24 device-hours in all"
    lines = described(step_seconds=0.0, collectives=["all-reduce"])
    assert lines[-2].endswith("7 kernels a step, devices exchange all-reduce")
    assert lines[-1] == "how long it takes, XLA does not say for these devices"
    assert not study.asked
    with pytest.raises(InputError, match="target: what this experiment takes elsewhere"):
        _describe(study.study._replace(estimate=None), tmp_path, capsys, given=given)
    monkeypatch.setattr(dry_run, "list_missing", lambda *_: [])
    assert len(_describe(study.study, tmp_path, capsys, given=given)) == 2


@pytest.mark.parametrize(
    ("sizes", "groups", "at_once", "calls"),
    [([16, 16], [0], 32, 2), ([40], [0], 32, 2), ([40], [0, 1], 32, 2), ([80], [0, 1], 32, 4)],
)
def test_calls_are_counted_unit_by_unit_and_seed_by_seed(sizes, groups, at_once, calls):
    def member(number):
        return Member(str(number), "program", None, group=groups[number % len(groups)])

    units = [Unit("unit", [member(number) for number in range(size)]) for size in sizes]
    assert dry_run._count_calls(units, at_once) == calls
    config = load_config("directional_bias").get_config("accuracy_map")
    config.seeds = (0, 1)
    assert {one.group for one in directional_bias.make_networks(config)} == {0, 1}


def test_a_network_without_operations_is_weighed():
    model = from_functions(
        lambda key: jax.random.normal(key, (1,)),
        lambda weights, x: x[:, 0, 0],
        (4, 4, 1),
        check=False,
    )
    assert costs.weigh(model).operations == 1.0


def test_a_step_is_estimated_of_the_networks_that_fit():
    """On a CPU, which says how much memory it needs, but not how long it takes."""
    config = load_config("directional_bias").get_config("accuracy_map")
    config.update(architectures=("mlp",), image_shape=(8, 8, 1), frequency_range=(-4, 4))
    config.update(mapping="vectorized")
    member = directional_bias.make_networks(config)[0]
    setup, arrays = directional_bias.make_setup(config, member), member.what.arrays
    given = Target("cpu", jax.devices()[:2], 2**40)
    with target.compiled_for(*given[1:]):
        found = estimate_training(setup, arrays, given, Execution("vectorized"))
    assert (found.num_networks, found.num_steps, found.step_seconds) == (32, 1580, 0.0)
    assert found.bytes > 32 * 4 * 64 and not found.collectives


@pytest.mark.parametrize("option", ["--no_measure", "--target=v5e:4x4"])
def test_options_of_a_dry_run_go_with_it(option, tmp_path):
    command = Command(
        "--config=configs/compute_nads.py:logreg", f"--workdir={tmp_path}/run", option
    )
    assert command.wait() == 2
    name = option.partition("=")[0]
    assert command.errors == f"error: {name}: goes with --dry_run\n"
