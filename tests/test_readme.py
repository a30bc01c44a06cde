"""What README.md and the pages of docs/ say can be done, can be done.

Every ```bash block is executed by bash, with stand-ins for `python`, `make` and what belongs to a
cluster: they write down what they are called with. Each command of an experiment is then read as
the command line reads it, and validated at full size; those of `SMOKE` are carried out too, small.
A block with any other command says what it needs, `<!-- needs: more than a minute -->`.
Every ```python block is executed, small as well, or says what it needs; the blocks of a page are
one notebook, in whose folder are what the commands of the page leave.
"""

import contextlib
import copy
import json
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from matplotlib.figure import Figure
from ml_collections import config_flags

import experiments.main
from experiments.benchmark.benchmark import format_table
from experiments.launch.__main__ import TEMPLATES, render
from nad_jax import basis_random
from tests.test_configs import CONFIGS, ROOT, load_config

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
WHOLE = "\n".join(TEXTS.values())

# What stands before a block that is not carried out.
NEEDS = ("a GPU", "a cluster", "more than a minute")
BLOCK = re.compile(r"(?ms)^(?:<!-- needs: ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$")

# Stand-ins on the path of the blocks of a page; nothing else is there but bash.
PROGRAMS = ("python", "nad_jax", "pip", "make", "sbatch", "kubectl")
STAND_IN = """#!{bash}
fields=$(printf '%s\\x1f' "${{0##*/}}" "$@")
printf '%s\\x1e' "$fields" >> "$RECORD"
"""

# What is carried out, by the beginning of the value of --config: the fields that make it small. Of
# commands that these make the same, the first one is.
TASK = {"architectures": "logreg", "image_shape": "6,6,1", "num_train": 16, "num_test": 16}
TASK |= {"optimizers": "sgd", "num_epochs": 2, "batch_size": 8, "loss_window": 2}
TASK |= {"sigmas": 3.0, "seeds": 0, "frequency_range": "-3,3", "frequency_step": 3}
ENSEMBLE = {"architecture": "logreg", "image_shape": "6,6,1", "num_networks": 8, "unit_size": 4}
ENSEMBLE |= {"figure_directions": 2}
# Kinds of estimates have a test of their own, in `test_experiments`.
KIND = {"derivative": "central_difference", "readout": "marginalized", "centred": False}
KIND |= {"symmetrized": True, "point_scale": 1.0, "pooling": "default", "seed": 0}
SMOKE = {
    "compute_nads.py": {**ENSEMBLE, **KIND, "sweep.seed": 0, "sweep.width": 0},
    "leading_nads.py": {**ENSEMBLE, "num_directions": 2, "num_extra": 2, "num_passes": 2},
    "directional_bias.py:accuracy_map": TASK,
    "directional_bias.py:nad_accuracy": {**TASK, "indices": "0,10"},
}
# Python blocks are made small in the same way.
SMALL = (
    (r'"lenet", image_shape', '"logreg", image_shape'),
    (r"num_networks=\d+", "num_networks=40"),
    (r"10_000", "60"),
    (r"num_train=\d+, num_test=\d+, num_epochs=\d+", "num_train=256, num_test=64, num_epochs=1"),
    (r"cifar_recipe\(num_epochs=\d+\)", "cifar_recipe(num_epochs=1)"),
    (r"random\(\(500, ", "random((200, "),
    (r"np.arange\(500\)", "np.arange(200)"),
    (r"x\[:100\]", "x[:10]"),
    (r"shape = \(16, 16, 1\)", "shape = (8, 8, 1)"),
    (r"for widths in \(\(20, 20\), .*\):", "for widths in ((20, 20),):"),
    (r"for width in \(20, 200\):", "for width in (20,):"),
    (r"for sigma_w in \(1.0, .*\):", "for sigma_w in (1.0,):"),
)
PRINTED = {
    "README.md": ["preferred frequency: [", "λ = "],
    "docs/start.md": ["NADs of logreg, 40 networks: "],
    "docs/faq.md": ["error: pooling: unknown value 'maximum'"],
    "docs/gallery.md": ["Figure("],
    "docs/tutorials/lenet.md": ["preferred frequencies: [[", "accuracy by NAD index: {0: "],
    "docs/tutorials/own_cnn.md": ["NADs of Net, ", "Comparison(Isotropy(", "cannot learn: ["],
    "docs/tutorials/theory.md": ["width 20, σ_w² = 1: λ = ", "width 20, σ_w = 1.0: along "],
    "docs/tutorials/trained.md": ["eigenvalue 0: ", "epoch 1: accuracy ", "along the wave: "],
    "docs/tutorials/sweep.md": ["sigma frequency", "frequency_column "],
    "docs/closed_forms.md": ["eigenvalue: 0.00625", "networks for 1 %: ", "CriticalPoint("],
    "docs/nads.md": ["preferred frequencies: [[", "bounds of the "],
    "docs/training.md": ["accuracies: ["],
    "docs/linearization.md": ["TrainMetrics(2 networks"],
    "docs/initial_functions.md": [
        "InitialBias(40 networks, 2 classes: ",
        "wide: WideBias(correlation=0.49",
        "FunctionSpectrum(40 networks, ",
    ],
    "docs/robust_training.md": ["TrainMetrics(2 networks", "robust: [", "by the angle: ["],
    "docs/guidance.md": ["CKA in the end: ["],
    "docs/geometric_invariance.md": [
        "z: ",
        "Geometry of 8 networks over 5 epochs",
        "FitMetrics(2 networks",
        "medians: 0.0 1.8",
        "variance kept: ",
    ],
    "docs/sample_complexity.md": ["cnn: ", "lcn: "],
    "docs/score_directions.md": [
        "SADs of cnn, 200 networks",
        "SlicedDistance(",
        "share of the variance: 0.",
    ],
    "docs/two_features.md": ["shortcut bias: ["],
    "docs/cifar.md": ["accuracy on poisoned and on clean images: ["],
    "docs/models.md": ["largest over smallest eigenvalue: 1."],
    "docs/extending.md": ["known: logreg, ", "stated symmetries: ('flip', 'transpose')"],
    "docs/changelog.md": ["version: "],
}


def _blocks(language):
    """What all blocks of a language need (nothing: ""), and their texts, by page; pages without any
    are left out.
    """
    found = {
        page: [(needs, block) for needs, name, block in BLOCK.findall(text) if name == language]
        for page, text in TEXTS.items()
    }
    return {page: blocks for page, blocks in found.items() if blocks}


@pytest.mark.parametrize("page", TEXTS)
def test_blocks_are_run_or_say_what_they_need(page):
    blocks = BLOCK.findall(TEXTS[page])
    assert 2 * len(blocks) == len(re.findall(r"^```", TEXTS[page], re.MULTILINE))  # none is hidden
    assert {needs for needs, _, _ in blocks} <= {"", *NEEDS}
    assert {language for _, language, _ in blocks} <= {"bash", "python", ""}
    marked = sum(needs != "" for needs, language, _ in blocks if language)
    assert marked == TEXTS[page].count("<!-- needs:")  # none marks anything else


@pytest.mark.parametrize("page", _blocks("python"))
def test_the_snippets_of_a_page_run(page, called, places, capsys, monkeypatch):
    snippets = [text for needs, text in _blocks("python")[page] if not needs]
    if any("import pandas" in text for text in snippets):
        pytest.importorskip("pandas")  # an extra of the tests
    monkeypatch.chdir(places["folder"])
    if any('"runs/' in text for text in snippets):
        for arguments in _experiments([one for one in called if one[0] == page]):
            small = _reduce(arguments, shared=False)
            assert small is None or _carry_out(_place(small, places)) == 0, arguments
    names = {"__name__": "page"}
    for snippet in snippets:  # one notebook: later ones use earlier names
        for pattern, small in SMALL:
            snippet = re.sub(pattern, small, snippet)
        exec(compile(snippet, page, "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    for start in PRINTED[page]:
        assert any(line.startswith(start) for line in lines), (start, lines)


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    """Every command that the blocks of a page call, in their order: (page, what its block needs,
    arguments).
    """
    bash = shutil.which("bash")
    folder = tmp_path_factory.mktemp("blocks")
    (folder / "bin").mkdir()
    (folder / "bin" / "bash").symlink_to(bash)
    for program in PROGRAMS:
        path = folder / "bin" / program
        path.write_text(STAND_IN.format(bash=bash))
        path.chmod(0o755)
    calls = []
    for page, blocks in _blocks("bash").items():
        record = folder / "record"
        record.write_text("")
        script = "set -euo pipefail\n"
        for needs, block in blocks:
            script += f"printf '%s\\x1f\\x1e' 'needs {needs}' >> \"$RECORD\"\n{block}\n"
        environment = {"PATH": str(folder / "bin"), "RECORD": str(record)}
        done = subprocess.run(
            [bash, "-c", script],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (page, done.stderr)
        for line in record.read_text().split("\x1e")[:-1]:
            first, *others = line.split("\x1f")[:-1]
            if first.startswith("needs "):
                needs = first.removeprefix("needs ")
            else:
                calls.append((page, needs, (first, *others)))
    return calls


def _experiments(called):
    """The arguments of all commands of experiments, each once; those that make targets call, too."""
    found = []
    for _, _, (program, *arguments) in called:
        if program == "nad_jax":
            found.append(arguments)
        elif program == "make":
            dry = subprocess.run(
                ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
            )
            lines = dry.stdout.replace("\\\n", " ").splitlines()
            found += [line.split()[3:] for line in lines if "-m experiments.main" in line]
        elif program == "python" and arguments[1] == "experiments.main":
            found.append(arguments[2:])
        elif program == "python":
            found.append([*arguments[arguments.index("--") + 1 :], "--shard=auto"])
    return list(dict.fromkeys(map(tuple, found)))


def _parse(arguments):
    """The config of a command, and its other flags, read as the command line reads them."""
    values, argv = flags.FlagValues(), ["experiments.main", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    for flag in flags.FLAGS.flags_by_module_dict()["experiments.main"]:
        if flag.name != "config":
            values[flag.name] = copy.deepcopy(flag)
    with contextlib.chdir(ROOT), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # how ml_collections loads a file
        assert len(values(argv)) == 1, arguments
        return values.config, values


def _asks_a_folder(arguments):
    """Whether a command names no recipe: it goes on with what its folder holds."""
    return not any(text.startswith("--config=") for text in arguments)


def test_every_command_of_an_experiment_is_read_and_valid(called):
    commands = _experiments(called)
    for arguments in commands:
        if _asks_a_folder(arguments):
            named = {text.removeprefix("--").partition("=")[0] for text in arguments}
            assert "workdir" in named and named <= {*flags.FLAGS}, arguments
            continue
        config, others = _parse(arguments)
        assert others.workdir, arguments
        # The others are validated when they are carried out; recipes as they are, which takes
        # tracing large networks, by `test_configs`.
        changed = any(text.startswith("--config.") for text in arguments)
        if _reduce(arguments) is None and (changed or "gpu" in arguments[0]):
            experiments.main.EXPERIMENTS[config.experiment].validate(config)
    assert len(commands) > 30


def test_commands_that_are_not_carried_out_say_what_they_need(called):
    for page, needs, call in called:
        commands = [one for one in _experiments([(page, needs, call)]) if not _asks_a_folder(one)]
        whole = all(_reduce(arguments) is not None for arguments in commands)
        if not needs:
            assert whole and call[0] not in ("sbatch", "kubectl"), (page, call)


def test_other_commands_have_what_they_name(called):
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    templates = set()
    for program, *arguments in dict.fromkeys(call for _, _, call in called):
        if program == "pip":
            *install, package = arguments
            assert install == ["install", "-e"]
            extra = re.fullmatch(r"\.(?:\[(\w+)\])?", package)[1]
            assert extra is None or f'"{extra}": [' in setup
        elif program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, re.MULTILINE)
        elif program == "python" and arguments[1] == "experiments.launch":
            place = arguments.index("--")
            options = dict(option[2:].split("=") for option in arguments[2:place])
            values = {"shards": 8, "image": "me/nad:1", "claim": "runs"}
            assert set(options) <= {*values, "template"}
            options["shards"] = int(options.get("shards", 8))
            options = {**options, **({"claim": "volume"} if "claim" in options else {})}
            values |= options
            assert render(
                values.pop("template"), arguments[place + 1 :], gpus=1, cpus=8, python="", **values
            )
            templates.add(options["template"])
        elif program == "python":
            assert arguments[1] == "experiments.main"
    assert templates == set(TEMPLATES)


def _reduce(arguments, shared=True):
    """A command with the fields that make it small, or None where it is not carried out.

    shared: whether commands of one recipe go on in one folder.
    """
    value = next((text for text in arguments if text.startswith("--config=")), "")
    names = [name for name in SMOKE if value.removeprefix("--config=configs/").startswith(name)]
    if not names or "--shard=auto" in arguments:
        return None
    given = {text.partition("=")[0] for text in arguments}
    small = {f"--config.{field}": value for field, value in SMOKE[names[0]].items()}
    axes = {name for name in small if name.startswith("--config.sweep.")}
    small = {name: value for name, value in small.items() if name not in axes - given}
    kept = [text for text in arguments if text.partition("=")[0] not in {"--config", *small}]
    if (
        shared and "directional_bias" in names[0]
    ):  # one folder, so that what is the same is trained once
        folder = names[0].partition(":")[2]
        kept = [re.sub(r"^--workdir=.*", f"--workdir=runs/{folder}", text) for text in kept]
    return [f"--config=configs/{names[0]}", *kept, *(f"{k}={v}" for k, v in small.items())]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What stands in commands for a file or folder, and one that fits the small ones."""
    folder = tmp_path_factory.mktemp("places")
    np.save(folder / "LeNet_NADs.npy", np.asarray(basis_random(0, 36)))
    np.save(folder / "LeNet_eigenvals.npy", np.linspace(2.0, 1.0, 36))
    (folder / "map.csv").write_text("x,y,acc_lr\n0,0,100\n8,8,100\n")
    (folder / "dft_accuracies_lenet.csv").write_text("x,y,accuracy_logreg\n0,0,100\n8,8,100\n")
    (folder / "nad_accuracies_lenet.csv").write_text("index,acc_lr\n0,100\n10,100\n")
    return {
        "folder": folder,
        r"\bDIR\b": str(folder),
        r"\bNADS\b": "runs/demo/nads.npz",
        r"\bTABLE\.csv\b": str(folder / "map.csv"),
        r"=runs/": f"={folder}/runs/",
    }


def _place(arguments, places):
    """A command with the files and folders that stand for those it names."""
    for name, path in places.items():
        if name != "folder":
            arguments = [re.sub(name, path, text) for text in arguments]
    return arguments


def _carry_out(arguments):
    """What the command line does with a command, in this process; the exit code."""
    config, given = _parse(arguments)
    chosen = {name: given[name].value for name in ("figures_only", "collect", "dry_run")}
    with flagsaver.flagsaver(**chosen), contextlib.ExitStack() as stack:
        flags.FLAGS.mark_as_parsed()
        stack.callback(flags.FLAGS.unparse_flags)
        shard = experiments.main.find_shard(given.shard, {})
        experiment = experiments.main.EXPERIMENTS[config.experiment]
        return experiments.main._carry_out(experiment, config, Path(given.workdir), shard)


def test_commands_run_at_their_smallest(called, places, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda *_, **options: None)  # most of the time
    first, folders, done = {}, {}, set()
    for arguments in filter(None, map(_reduce, _experiments(called))):
        (workdir,) = (text for text in arguments if text.startswith("--workdir="))
        others = frozenset(arguments) - {workdir}
        # A command on the folder of one that was left out goes on in the folder of its double.
        workdir = folders.setdefault(workdir, first.setdefault(others, workdir))
        if first[others] == workdir and (workdir, others) not in done:
            done.add((workdir, others))
            command = [*(text for text in arguments if text in others), workdir]
            assert _carry_out(_place(command, places)) == 0, command
    assert len(done) > 10


def test_named_files_and_recipes_exist():
    for name, argument in set(re.findall(r"\b(\w+)\.py(?::([\w,]+))?", WHOLE)):
        if name in CONFIGS and argument not in ("NAME", "ARGUMENT"):
            load_config(name).get_config(*([argument] if argument else []))
    for path in set(re.findall(r"configs/\w+\.py", WHOLE)):
        assert (ROOT / path).exists(), path
    known = {field for name in CONFIGS for field in load_config(name).get_config()}
    named = set(re.findall(r"--config\.(\w+)", WHOLE)) - {"FIELD"}
    assert named <= known, named - known


def test_the_table_of_durations_is_that_of_the_stored_benchmark():
    table = format_table(json.loads((ROOT / "docs" / "benchmark.json").read_text(encoding="utf-8")))
    assert f"<!-- benchmark.md -->\n{table}<!-- -->\n" in TEXTS["docs/benchmark.md"]


def _anchors(text):
    """The anchors of a page, of its headings as GitHub makes them and of its own."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings]
    assert len(set(slugs)) == len(slugs)
    return {*slugs, *re.findall(r'<a id="([^"]+)">', text)}


def _links(page):
    """The targets of the links and images of a page that lead into the repository, as (path, anchor)."""
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            yield ((ROOT / page).parent / path).resolve() if path else ROOT / page, anchor


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for path, anchor in _links(page):
        assert path.is_file() and path.is_relative_to(ROOT), (page, path)
        if anchor:
            assert anchor in _anchors(path.read_text(encoding="utf-8")), (page, path, anchor)


def test_every_page_is_reached_from_the_readme_which_is_short():
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        pages = [path.relative_to(ROOT).as_posix() for path in new]
        linked = {path for page in pages for path, _ in _links(page) if path.suffix == ".md"}
        new = linked - reached
    assert reached == set(PAGES)
    assert len(TEXTS["README.md"].encode()) <= 9_000
    for page, text in TEXTS.items():  # what it is for and an example stand first
        assert "```" in text[:2000], page


@pytest.mark.parametrize(
    "place",
    [
        "closed_forms.md",
        "models.md#random-masks",
        "nads.md#a-grid-of-architectures",
        "nads.md#the-most-isotropic-network",
        "directional_bias.md#does-geometry-predict-accuracy",
    ],
)
def test_what_the_package_can_do_is_in_the_table_of_the_readme(place):
    rows = re.findall(r"^\| .* \|$", TEXTS["README.md"], re.MULTILINE)
    assert sum(f"(docs/{place})" in row for row in rows) == 1


def test_every_figure_of_the_docs_is_in_the_gallery():
    shown = {path for path, _ in _links("docs/gallery.md")}
    assert {*(ROOT / "docs").glob("*.png")} == {path for path in shown if path.suffix == ".png"}
