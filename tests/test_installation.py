"""What an installation brings, how the command finds its recipes, and what the pages of the API hold."""

import importlib.util
import inspect
import json
import re
import runpy
import subprocess
import sys

import pytest
import setuptools

import nad_jax
from experiments.run.accelerator import EXTRAS
from nad_jax.__main__ import find_clone
from tests.test_configs import ROOT

ENTRY = "import sys; from nad_jax.__main__ import main; sys.argv[0] = 'nad_jax'; main()"


@pytest.fixture
def installation(monkeypatch):
    """The arguments of `setup`, as `pip` reads them."""
    kept = {}
    monkeypatch.setattr(setuptools, "setup", kept.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return kept


def test_an_installation_brings_the_package_alone(installation):
    assert {name.partition(".")[0] for name in installation["packages"]} == {"nad_jax"}
    assert {"nad_jax.architectures", "nad_jax.tasks"} <= {*installation["packages"]}
    assert not {"py_modules", "data_files", "scripts"} & {*installation}
    runtime = {re.match(r"[\w-]+", text)[0] for text in installation["install_requires"]}
    assert not {"sphinx", "myst-parser", "furo", "pandas", "setuptools"} & runtime


def test_each_accelerator_has_an_extra_that_brings_its_jax(installation):
    extras = installation["extras_require"]
    assert {name: extras[extra] for name, extra in EXTRAS.items()} == {
        "gpu": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
    }


def test_the_command_is_the_function_of_its_module(installation):
    (entry,) = installation["entry_points"]["console_scripts"]
    assert entry == "nad_jax = nad_jax.__main__:main"


def _make_clone(root):
    """A folder that looks like a clone, whose program writes down what it is called with."""
    for name in ("configs", "experiments", "notebooks/deep"):
        (root / name).mkdir(parents=True)
    (root / "configs" / "compute_nads.py").touch()
    (root / "experiments" / "__init__.py").touch()
    (root / "experiments" / "main.py").write_text(
        "import json, os, sys; print(json.dumps([__name__, sys.argv[1:], os.getcwd()]))"
    )


def test_the_command_runs_that_of_the_clone_from_anywhere_below(tmp_path):
    _make_clone(tmp_path)
    below = tmp_path / "notebooks" / "deep"
    recipe = "configs/compute_nads.py"
    arguments = [f"--config={recipe}:lenet", "--workdir=W", "--config.step=1", "configs/other.py"]
    for folder, found in ((tmp_path, recipe), (below, tmp_path / recipe)):
        done = subprocess.run(
            [sys.executable, "-c", ENTRY, *arguments],
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        )
        name, given, place = json.loads(done.stdout)
        assert name == "__main__" and place == str(folder)
        assert given == [f"--config={found}:lenet", *arguments[1:]]


def test_help_is_no_error_in_a_clone_or_outside_one(tmp_path):
    for folder, says in ((ROOT / "docs", "The command line of every experiment."),
                         (tmp_path, "run this inside a clone")):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", ENTRY, "--help"],
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "") and says in done.stdout


def test_a_clone_is_found_from_below_alone(tmp_path):
    _make_clone(tmp_path / "clone")
    assert find_clone(tmp_path) is None
    assert find_clone(tmp_path / "clone" / "notebooks") == tmp_path / "clone"
    assert find_clone(ROOT / "docs" / "tutorials") == ROOT


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r'^version: "(.+)"$', text, re.MULTILINE) == [nad_jax.__version__]
    assert re.findall(r"^cff-version: (.+)$", text, re.MULTILINE) == ["1.2.0"]
    title = re.search(r"title *= *\{(.+)\}", (ROOT / "README.md").read_text(encoding="utf-8"))[1]
    assert f'preferred-citation:\n  type: conference-paper\n  title: "{title}"' in text


@pytest.fixture(scope="module")
def site():
    """How the site is configured, without a page having been written."""
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_on_one_page_of_the_api(site, tmp_path):
    start = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    pages = site.write_api(tmp_path / "api", site.name_groups(start))
    text = "\n".join((tmp_path / f"{page}.rst").read_text(encoding="utf-8") for page in pages)
    found = re.findall(r"^\.\. (?:auto\w+|py:data):: nad_jax\.(\w+)$", text, re.MULTILINE)
    assert sorted(found) == sorted(nad_jax.__all__)


def test_a_name_in_no_group_is_refused(site, tmp_path):
    with pytest.raises(ValueError, match=r"names in no group: .*estimate_nads"):
        site.write_api(tmp_path / "api", [(["flip"], "images")])


def test_entries_of_docstrings_become_lists(site):
    lines = inspect.cleandoc("""
        Of [N, *space], |g|.

        key, value: of it,
          at length
        loss(x) -> [B]: of `*x`.
        Prose again: not one.
        """).splitlines()
    site._to_rst(None, "class", "name", None, None, lines)
    assert [line for line in lines if line] == [
        r"Of [N, \*space], \|g\|.",
        "- **key, value**: of it,",
        "  at length",
        "- **loss(x) -> [B]**: of `*x`.",
        "Prose again: not one.",
    ]
