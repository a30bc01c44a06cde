"""What the whole source must not do, and what importing it may cost."""

import re
import subprocess
import sys

import nad_jax
from tests.test_configs import ROOT

SOURCE = sorted(
    path
    for folder in ("nad_jax", "experiments", "configs")
    for path in (ROOT / folder).rglob("*.py")
)
FORBIDDEN = (
    r"pickle\.load", r"\bimport pickle\b", r"allow_pickle\s*=\s*True", r"yaml\.load", r"extractall",
    r"(?<![.\w])eval\(", r"jax\._src", r"jax\.core", r"jax\.interpreters", r"jax\.experimental",
    r"\bpmap\b", r"with mesh",
)  # fmt: skip


def test_nothing_is_unpickled_extracted_or_private():
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in SOURCE
        for line in path.read_text(encoding="utf-8").splitlines()
        if any(re.search(pattern, line) for pattern in FORBIDDEN)
        # Compiling for devices that are not there is nowhere else.
        and line.strip() != "from jax.experimental import topologies"
    ]
    assert not found  # what is pickled is read as data
    assert len(SOURCE) > 40


def test_pages_are_in_american_english_and_name_no_machine():
    forbidden = r"colour|neighbour|behaviour|\bgrey\b|\bcentre\b|/home/|/tmp/|localhost"
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        assert not re.findall(forbidden, page.read_text(encoding="utf-8")), page


def test_the_version_is_said_in_one_place():
    files = (*SOURCE, ROOT / "setup.py", ROOT / "pyproject.toml")
    said = [
        path.name
        for path in files
        if f'"{nad_jax.__version__}"' in path.read_text(encoding="utf-8")
    ]
    assert said == ["versions.py"]


def test_importing_the_package_costs_less_than_importing_jax():
    # .35 s after .42 s of JAX on a 2-core CPU; as a ratio, since machines differ.
    program = (
        "import time; a = time.perf_counter(); import jax; b = time.perf_counter(); import "
        "nad_jax; "
        "print((time.perf_counter() - b) / (b - a))"
    )
    ratios = [
        float(
            subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(3)
    ]
    assert min(ratios) < 1.2


def test_the_tests_that_are_left_out_are_there():
    listed = (ROOT / "tests" / "thorough.txt").read_text(encoding="utf-8").splitlines()
    names = {line.partition("[")[0] for line in listed if not line.startswith("#")}
    assert len(names) > 100
    for name in names:
        file, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name
