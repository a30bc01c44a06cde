"""What the README says can be done, can be done."""

import json
import re
from pathlib import Path

from experiments.benchmark.benchmark import format_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_notebook_snippets_run(capsys):
    names = {"__name__": "readme"}
    for snippet in re.findall(
        r"```python\n(.*?)```", README, re.DOTALL
    ):  # one notebook: later ones use earlier names
        exec(compile(snippet, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    for start in (
        "preferred frequencies: [[",
        "accuracies: [",
        "accuracy on poisoned and on clean images: [",
    ):
        assert start in printed


def test_named_files_and_make_targets_exist():
    for path in re.findall(r"\]\((docs/[^)]+)\)", README) + re.findall(r"configs/\w+\.py", README):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_table_of_durations_is_that_of_the_stored_benchmark():
    table = format_table(json.loads((ROOT / "docs" / "benchmark.json").read_text(encoding="utf-8")))
    assert f"<!-- benchmark.md -->\n{table}<!-- -->\n" in README
