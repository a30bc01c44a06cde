"""A folder knows its command: `--workdir` alone goes on, collects, draws and describes."""

import json
import shutil
import subprocess
import sys

import pytest

from experiments.main import EXPERIMENTS
from experiments.run import command
from nad_jax import load_nads, store
from nad_jax.errors import InputError
from tests.commands import ROOT, Command, read_numbers
from tests.test_configs import load_config

TYPED = [
    "--config=configs/compute_nads.py:logreg",
    "--config.image_shape=4,4,1",
    "--config.num_networks=10",
    "--config.unit_size=2",
]
BIAS = [
    "--config=configs/directional_bias.py:accuracy_map,logreg",
    "--config.image_shape=4,4,1",
    "--config.frequency_range=0,2",
    "--config.frequency_step=1",
    "--config.num_train=40,",
    "--config.num_test=20",
    "--config.num_epochs=1",
    "--config.batch_size=10",
]


def _end(*arguments, code=0, **how):
    """What a command that ends with this code has written to both outputs."""
    process = Command(*arguments, **how)
    assert process.wait() == code, process.errors
    return process.output, process.errors


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    _end(*TYPED, f"--workdir={folder / 'nads'}")
    _end(*BIAS, f"--workdir={folder / 'bias'}")
    return folder


def test_a_folder_that_was_killed_goes_on_without_its_command(finished, tmp_path):
    alone = f"--workdir={tmp_path / 'run'}"
    _end(*TYPED, alone, place="after the rename:4", code=-9)
    assert not (tmp_path / "run" / "nads.npz").exists()
    kept = (tmp_path / "run" / "run.json").read_bytes()
    assert json.loads(kept)["typed"] == TYPED
    _end(alone)
    straight, resumed = (folder / "nads.npz" for folder in (finished / "nads", tmp_path / "run"))
    assert resumed.read_bytes() == straight.read_bytes()
    (tmp_path / "run" / "nads.png").unlink()
    for option, says in (
        ("--dry_run", "stored 10 networks, missing 0"),
        ("--collect", "NADs of logreg, 10 networks"),
        ("--figures_only", "nads.png"),
        ("--status", "10 of 10 networks stored, 0 missing"),
    ):
        assert says in _end(alone, option)[0]
    assert (tmp_path / "run" / "nads.png").exists()
    assert (tmp_path / "run" / "run.json").read_bytes() == kept


def test_shards_keep_the_same_command_once(tmp_path):
    path = tmp_path / "run" / "run.json"
    _end(*BIAS, f"--workdir={tmp_path / 'run'}", "--shard=0/2")
    content, at = path.read_bytes(), path.stat().st_mtime_ns
    _end(*BIAS, f"--workdir={tmp_path / 'run'}", "--shard=1/2")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, at)


def test_overrides_alone_extend_a_folder_or_are_refused_with_what_differs(finished, tmp_path):
    workdir = shutil.copytree(finished / "nads", tmp_path / "run")
    alone = f"--workdir={workdir}"
    _end(alone, "--config.num_networks=14")
    assert load_nads(workdir / "nads.npz").num_networks == 14
    said = json.loads((workdir / "run.json").read_text())
    assert said["typed"] == ["--config.num_networks=14"]
    assert said["fields"]["num_networks"] == 14
    _, errors = _end(alone, "--config.step=10", code=2)
    assert "step: folder 100.0, command 10.0" in errors
    assert json.loads((workdir / "run.json").read_text()) == said
    _, errors = _end(*TYPED, alone, "--config.seed=1", code=2)  # a config that is given is taken
    assert "seed: folder 0, command 1" in errors
    for field, message in (
        ("num_network=3", "did you mean 'num_networks'"),
        ("step=x", "a number"),
    ):
        _, errors = _end(alone, f"--config.{field}", code=2)
        assert message in errors and len(errors.splitlines()) == 1


def test_a_narrower_command_keeps_the_rows_of_a_wider_one(finished, tmp_path):
    workdir = shutil.copytree(finished / "bias", tmp_path / "run")
    alone, table = f"--workdir={workdir}", workdir / "results.csv"
    _end(alone, "--config.sigmas=3,1", "--config.seeds=0,1")
    wide = read_numbers(table)
    assert len(wide) == 4 * 4 // 4 * len(read_numbers(finished / "bias" / "results.csv"))
    _end(alone, "--config.sigmas=0.5", "--config.seeds=1,")
    narrow = read_numbers(table)
    one = len(wide) // 4
    assert [row["command"] for row in narrow] == one * ["this"] + len(wide) * ["earlier"]
    assert {(row["sigma"], row["seed"]) for row in narrow[:one]} == {("0.5", "1")}
    earlier = [{**row, "command": "earlier"} for row in wide]
    assert sorted(map(str, narrow[one:])) == sorted(map(str, earlier))
    _end(alone, "--figures_only")
    maps = (workdir / "map.csv").read_text().splitlines()
    assert len(maps) == 1 + 2 * 2  # the map is that of the command


def test_what_computed_a_network_stands_in_its_row(finished):
    for row in (finished / "bias" / "results.csv").read_text().splitlines()[1:]:
        seconds, device, version, asked = row.split(",")[-4:]
        assert 0 < float(seconds) < 60 and asked == "this"
        unit = next((finished / "bias" / "units").iterdir())
        said = json.loads(str(store.read_npz(unit, ("config",))["config"]))
        assert (device, version) == (said["device"], said["versions"]["nad_jax"])


def test_seconds_that_are_not_known_are_left_empty(finished, tmp_path):
    workdir = shutil.copytree(finished / "bias", tmp_path / "run")
    (log,) = (workdir / "progress").glob("*.jsonl")
    lines = log.read_text().splitlines()
    units = [line for line in lines if '"unit"' in line]
    log.write_text("\n".join(["[]", "{", *(line for line in lines if line != units[0])]) + "\n")
    before = read_numbers(workdir / "results.csv")
    _end(f"--workdir={workdir}", "--collect")
    assert read_numbers(workdir / "results.csv") == before
    seconds = [line.split(",")[-4] for line in (workdir / "results.csv").read_text().splitlines()]
    assert seconds.count("") == json.loads(units[0])["networks"]


@pytest.mark.parametrize(
    ("name", "argument"),
    [*((name, "") for name in EXPERIMENTS), ("benchmark", "gpu"), ("time_to_accuracy", "vgg11")],
)
def test_every_field_is_the_same_after_it_was_kept(name, argument, tmp_path, monkeypatch):
    arguments = (argument,) if argument else ()
    config = load_config(name).get_config(*arguments)
    if "seeds" in config:
        config.seeds = (3, 4)
    (tmp_path / "run.json").write_text(command.describe(config, ["main"]))
    (tmp_path / "config.json").write_text("{}")
    fields, fresh = command.read(tmp_path, EXPERIMENTS), load_config(name).get_config()
    monkeypatch.setattr(command.config_flags, "get_override_values", lambda flag: {})
    command.take_up(fresh, fields, tmp_path)
    assert fresh.to_dict() == config.to_dict()
    assert repr(fresh.to_dict()) == repr(config.to_dict())  # tuples are tuples


def _changed(**changes):
    def change(said):
        return json.dumps({**said, "fields": {**said["fields"], **changes}})

    return change


MODEL = "architecture: 'nets.py:Net' is a program, which is not run on the word of a folder; give "
BAD = [
    (lambda said: "", "run.json: must be a JSON object, is not JSON"),
    (lambda said: json.dumps(said)[:-9], "run.json: must be a JSON object, is not JSON"),
    (lambda said: "[1]", "run.json: must be a JSON object, got list"),
    (lambda said: "{}", "run.json: does not say the fields of a command"),
    (
        lambda said: json.dumps({**said, "experiment": "../../x"}),
        "run.json: experiment: unknown value '../../x'",
    ),
    (
        lambda said: json.dumps({**said, "experiment": ["x"]}),
        "run.json: experiment: unknown value ['x']",
    ),
    (_changed(num_networks="many"), "run.json: num_networks: "),
    (_changed(num_network=3), "run.json: config field: unknown value 'num_network'"),
    (_changed(num_networks=None), "run.json: num_networks: must have a value, got None"),
    (_changed(num_networks=-1), "num_networks: must be an integer of at least"),
    (_changed(architecture="nets.py:Net"), f"run.json: {MODEL}--config.architecture=\"nets.py:Net\""),
    (_changed(sweep={"step": [1.0], "colour": []}), "unknown value 'colour'"),
    (_changed(sweep=3), "run.json: sweep: "),
    (_changed(step={"a": 1}), "run.json: step: "),
    (_changed(sweep={"architecture": ["mlp", "a:b"]}), "run.json: sweep.architecture: 'a:b' is a pro"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_folder_that_says_something_else_is_refused_in_one_line(
    change, message, finished, tmp_path
):
    workdir = shutil.copytree(finished / "nads", tmp_path / "run")
    path = workdir / "run.json"
    path.write_text(change(json.loads(path.read_text())))
    for options in ((), ("--figures_only",)):
        _, errors = _end(f"--workdir={workdir}", *options, code=2)
        assert message in errors and len(errors.splitlines()) == 1


def test_a_command_that_is_no_text_is_refused_with_what_to_give(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "run.json").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"not a text file .*; give --config=FILE and what"):
        command.read(tmp_path, EXPERIMENTS)


@pytest.mark.parametrize(
    ("arguments", "on"),
    [
        ("", False),
        ("--status", True),
        ("--status=false", False),
        ("--status --nostatus", False),
        ("--status=0 -status=1", True),
        ("--status_of", False),
    ],
)
def test_a_flag_is_on_as_it_was_typed_last(arguments, on):
    assert command.is_on("status", ["main", *arguments.split()]) == on
    typed = ["main", "--workdir=a", "--workdir", "b", *arguments.split()]
    assert command.value_of("workdir", typed) == "b"


@pytest.mark.parametrize("before", ["compute_nads.py:", "directional_bias.py:accuracy_map,"])
def test_a_model_of_ones_own_behind_the_colon_is_answered_with_its_field(before):
    own = "/nets/own.py:Mine"
    _, errors = _end(f"--config=configs/{before}{own}", "--workdir=none", code=2)
    assert f"a model of your own is a field: --config.architecture={own}" in errors
    assert len(errors.splitlines()) == 1


RECIPE = "--config=configs/directional_bias.py"
FILES = ["benchmark", "circles", "compute_nads", "directional_bias", "flip_cifar",
         "geometry_evolution", "guidance", "initial_functions", "isotropy_search", "leading_nads",
         "linearization", "poison_cifar", "predictors", "robust_training", "sample_complexity",
         "score_directions", "time_to_accuracy", "two_features"]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([RECIPE, "--sigmas=1"], "unknown flag --sigmas: a field of the config is given as "
         "--config.sigmas=VALUE"),
        (["--sigma=1", RECIPE], "unknown flag --sigma (did you mean --config.sigmas?)"),
        (["--config=configs/compute_nads.py", "--sweep.width=1"],
         "unknown flag --sweep.width: a field of the config is given as --config.sweep.width=VALUE"),
        ([RECIPE, "--shards=0/4"], "unknown flag --shards (did you mean --shard?)"),
        ([RECIPE, "--zzz"], "unknown flag --zzz; --help lists all"),
        (["--config=configs/compute_nad.py:lenet"], "config: there is no file "
         "'configs/compute_nad.py' here (did you mean configs/compute_nads.py?); those of "),
        (["--config", "lenet"], "config: there is no file 'lenet' here; those of "),
        (["--config=configs"], "config: there is no file 'configs' here"),
        (["--config="], "config: there is no file '' here"),
    ],
)  # fmt: skip
def test_what_is_meant_is_said_of_flags_and_files_that_there_are_not(arguments, message):
    _, errors = _end(*arguments, "--workdir=none", code=2)
    assert errors.startswith(f"error: {message}") and len(errors.splitlines()) == 1
    if message.startswith("config: "):
        assert errors.endswith(", ".join(f"configs/{name}.py" for name in FILES) + "\n")


def test_a_field_without_its_config_is_told_in_a_folder_that_knows_its_command(finished):
    _, errors = _end(f"--workdir={finished / 'bias'}", "--seeds=0,1", code=2)
    assert errors.endswith("a field of the config is given as --config.seeds=VALUE\n")


def test_a_file_of_flags_that_is_not_there_is_one_line():
    command = [sys.executable, "-m", "experiments.main", "--flagfile=/none/such"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: flagfile: Unable to open flagfile: ")
    assert "/none/such" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_folder_of_another_experiment_is_refused_in_one_line(finished):
    workdir = finished / "bias"
    other = ["--config=configs/time_to_accuracy.py:mlp", "--config.sizes=4,"]
    for arguments in ([*TYPED], [*TYPED, "--collect"], [*other, "--figures_only"]):
        _, errors = _end(*arguments, f"--workdir={workdir}", code=2)
        (line,) = errors.splitlines()
        assert line.startswith(f"error: {workdir}: "), arguments
        assert ": experiment: folder 'directional_bias', command '" in line


def test_options_may_stand_in_a_file(finished, tmp_path):
    (tmp_path / "options").write_text("\n".join([*TYPED, "--dry_run"]))
    alone = f"--workdir={finished / 'nads'}"
    output, _ = _end(f"--flagfile={tmp_path / 'options'}", f"--workdir={tmp_path / 'new'}")
    assert "stored 0 networks" in output
    (tmp_path / "options").write_text(f"{alone}\n--dry_run\n--status=false")
    assert "stored 10 networks" in _end(f"--flagfile={tmp_path / 'options'}")[0]
    for option in ("--help", "--helpfull", "--helpshort"):
        assert "--config_json" in _end(alone, option)[0]  # which is no error
    assert "--config_json" in _end(alone, "--config=none.py", "--help")[0]


def test_a_command_that_is_given_is_kept_in_place_of_a_damaged_one(finished, tmp_path):
    workdir = shutil.copytree(finished / "nads", tmp_path / "run")
    content = (workdir / "run.json").read_bytes()
    (workdir / "run.json").write_bytes(content[:40])
    _end(*TYPED, f"--workdir={workdir}", "--collect")
    assert (workdir / "run.json").read_bytes() == content


def test_collecting_ends_with_the_files_it_wrote(finished, tmp_path):
    workdir = shutil.copytree(finished / "bias", tmp_path / "run")
    (workdir / "notes.csv").write_text("of the user")
    _, damaged, *_ = sorted(workdir.glob("units/*.npz"))
    names = ["map.csv", "results.csv", "accuracy_map.png"]
    printed, errors = _end(f"--workdir={workdir}", "--collect")
    assert printed.splitlines()[-3:] == [str(workdir / name) for name in names] and errors == ""
    damaged.write_bytes(damaged.read_bytes()[:100])
    printed, errors = _end(f"--workdir={workdir}", "--collect", code=75)
    assert printed.splitlines()[-3:] == [str(workdir / name) for name in names]
    first, second, last = errors.splitlines()
    assert first == (
        f"damaged: units/{damaged.name}: moved aside as *.corrupt; the command without --collect "
        "computes it again"
    )
    assert second.startswith("missing: logreg ") and last.endswith("--collect computes them")
    assert damaged.with_name(f"{damaged.name}.corrupt").exists()
    nads = shutil.copytree(finished / "nads", tmp_path / "nads")
    printed, _ = _end(f"--workdir={nads}", "--collect")
    assert str(nads / "nads.npz") in printed.splitlines()
    for path in nads.glob("units/*.npz"):
        path.write_bytes(b"PK")
    _, errors = _end(f"--workdir={nads}", "--collect", code=75)
    first, second = errors.splitlines()
    assert first.startswith("damaged: units/networks_0000000_0000002.npz, units/networks_0000002")
    assert second.endswith("nothing of this command is stored yet")


def test_a_model_of_ones_own_is_given_once_more(tmp_path):
    (tmp_path / "nets.py").write_text(
        "import flax.linen as nn\n"
        "class Net(nn.Module):\n"
        "    @nn.compact\n"
        "    def __call__(self, x):\n"
        "        return nn.Dense(1)(nn.relu(nn.Dense(4)(x.reshape(len(x), -1))))\n"
    )
    own = f"--config.architecture={tmp_path / 'nets.py'}:Net"
    fields = [*TYPED[1:], own, "--config.symmetrized=False", "--config.num_networks=4"]
    alone = f"--workdir={tmp_path / 'run'}"
    _end("--config=configs/compute_nads.py", *fields, alone)
    (tmp_path / "nets.py").write_text("raise SystemExit(9)")
    _, errors = _end(alone, code=2)
    assert "is a program" in errors
    _, errors = _end(alone, own, code=9)
    assert "4 of 4 networks stored" in _end(alone, "--status")[0]


def test_a_folder_without_a_command_says_what_to_give(finished, tmp_path):
    workdir = shutil.copytree(finished / "nads", tmp_path / "run")
    (workdir / "run.json").unlink()
    shutil.rmtree(workdir / "progress")
    _, errors = _end(f"--workdir={workdir}", code=2)
    assert "run: does not say its command (an earlier version made it, or it was killed" in errors
    assert "give --config=configs/compute_nads.py:ARGUMENT" in errors
    assert len(errors.splitlines()) == 1
    _, errors = _end(f"--workdir={workdir}", "--status", code=2)
    assert "no command of this version has begun here" in errors
    assert "10 of 10 networks stored" in _end(*TYPED, f"--workdir={workdir}", "--status")[0]
    for option in ((), ("--status",)):
        _, errors = _end(f"--workdir={tmp_path / 'none'}", *option, code=2)
        assert "none: there is no run here" in errors and len(errors.splitlines()) == 1
    _, errors = _end("--dry_run", code=2)
    assert "--config is required" in errors


def test_a_program_named_by_a_folder_is_refused_in_every_field_that_names_one(tmp_path):
    for field, value in (("python", "/bin/sh"), ("architectures", ["mlp", "x.py:Net"])):
        with pytest.raises(InputError, match=rf"^run.json: {field}: .* is a program"):
            command._check_no_program("run.json", field, value)
    command._check_no_program("run.json", "python", "")
    command._check_no_program("run.json", "architectures", ["mlp"])
    command._check_no_program("run.json", "optimizers", ["sgd:momentum=0.9"])


@pytest.mark.parametrize(
    ("typed", "left"),
    [
        (["--config.a=1,3", "--x", "--config.a=2"], ["--x", "--config.a=2"]),
        (
            ["--config.a", "1", "--config.b=1", "--config.a", "2"],
            ["--config.b=1", "--config.a", "2"],
        ),
        (["--config.a=1", "--noconfig.a"], ["--noconfig.a"]),
        (["--config=c.py", "--config.a=1"], ["--config=c.py", "--config.a=1"]),
    ],
)
def test_of_a_field_that_is_typed_twice_the_last_one_holds(typed, left):
    assert command.last_of_each(typed) == left


def test_collecting_something_else_leaves_the_command_of_a_folder(finished, tmp_path):
    workdir = tmp_path / "bias"
    shutil.copytree(finished / "bias", workdir)
    before = (workdir / "run.json").read_bytes()
    _end(f"--workdir={workdir}", "--config.indices=0,1", "--collect")
    assert (workdir / "run.json").read_bytes() == before
