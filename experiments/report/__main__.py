"""The command line of the report on an accelerator.

    make accelerator-report PART=1 PUBLISHED=DIR

Its parts, of nine minutes at most each, go on where they were left. It ends with 0 when every item
has been tried to its end (what failed is tried again by the next call), 75 when the same command
goes on, 2 where it cannot begin.
"""

import argparse
import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
NEEDED = ("jax", "flax", "optax", "numpy", "matplotlib", "ml_collections", "absl")
PARTS = (1, 2, 3, 4)
# Prints what JAX has, in a process that then lets go of it.
DEVICE = (
    "import jax, json; d = jax.local_devices(); print(json.dumps({'platform': d[0].platform, "
    "'device': d[0].device_kind, 'num_devices': len(d), "
    "'memory_bytes': (d[0].memory_stats() or {}).get('bytes_limit')}))"
)


def fail(message: str) -> NoReturn:
    """Ends with one line."""
    sys.stderr.write(f"error: {message}\n")
    sys.exit(2)


def _ask(python: str, program: str) -> str | None:
    """What a program prints last, None where it fails."""
    try:
        done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return None if done.returncode else (done.stdout.strip().splitlines() or [""])[-1]


def find_device(python: str) -> dict[str, Any]:
    """The platform, kind, number and memory of the devices that JAX has in commands."""
    said = _ask(python, DEVICE)
    if said is None:
        fail(f"{python}: JAX finds no device: {python} -c 'import jax; jax.devices()' says why")
    return json.loads(said)


def find_lacks(python: str, torch: str, platform: str) -> dict[str, str]:
    """Why there is no PyTorch, no pytest or no benchmark, by these names; what is there is left
    out.
    """
    lacks, on_gpu = {}, _ask(torch, "import torch; print(torch.cuda.is_available())")
    if on_gpu is None:
        lacks["torch"] = "there is no PyTorch (TORCH=PYTHON names an interpreter that has it)"
    elif platform != "cpu" and on_gpu != "True":
        lacks["torch"] = "PyTorch sees no GPU"
    if _ask(python, "import pytest, hypothesis, scipy") is None:
        lacks["pytest"] = "pytest, hypothesis or scipy is missing"
    if platform == "tpu":
        lacks["benchmark"] = "a TPU belongs to one process at a time, and a benchmark has several"
    return lacks


def find_commit() -> str:
    """The commit of the working tree, with + where files differ from it; "" outside of git."""
    commands = ("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")
    said = []
    for command in commands:
        try:
            done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
        except OSError:
            return ""
        if done.returncode:
            return ""
        said.append(done.stdout)
    # The report itself changes these.
    own = ("docs/accelerators.json", "docs/accelerators.md", "README.md")
    changed = [line for line in said[1].splitlines() if line[3:] not in own]
    return said[0].strip() + "+" * bool(changed)


def _path(text: str) -> Path | None:
    return Path(text).resolve() if text else None


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options; empty ones are as if they were not given."""
    parser = argparse.ArgumentParser(prog="experiments.report", description=__doc__.splitlines()[0])
    given = parser.add_argument
    given("--part", type=int, default=0, choices=(0, *PARTS), help="0: all, one after the other")
    given("--size", default="full", choices=("full", "smoke"), help="smoke: to try it out")
    given("--published", type=_path, help="folder of the published arrays and tables")
    given("--cifar", type=_path, help="folder of CIFAR-10")
    given("--torch", default="", help="interpreter that has PyTorch; default: this one")
    given("--minutes", type=float, default=9.0, help="of each part")
    given("--json", type=_path, help="the file of records; default: docs/accelerators.json")
    given("--runs", type=_path, help="folder of the run folders; default: runs/accelerator_report")
    given("--pages", action="store_true", help="measure nothing: write the pages of the records")
    options = parser.parse_args(arguments)
    for name in ("published", "cifar"):
        folder = getattr(options, name)
        if folder and not folder.is_dir():
            fail(f"{name.upper()}: there is no folder {str(folder)!r}")
    if options.minutes <= 0:
        fail(f"MINUTES: must be more than 0, got {options.minutes:g}")
    return options


def main(arguments: list[str], **how: Any) -> int:
    """Carries out what the options ask for; the exit code. how: see `carry_out`."""
    options = parse(arguments)
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        fail(
            f"{sys.executable} has no {', '.join(lacking)}: pip install -e . brings what is needed"
        )
    import jax

    jax.config.update("jax_platforms", "cpu")  # of this process: the device is for the commands
    from nad_jax.errors import InputError

    try:
        return _report(options, how)
    except InputError as error:
        fail(str(error))


def _report(options: argparse.Namespace, how: dict[str, Any]) -> int:
    # Not before it is known that they can be imported.
    from experiments.report import pages
    from experiments.report.carry_out import LEAST_SECONDS, RUN_AGAIN, Report, carry_out
    from experiments.report.items import Settings, list_items
    from experiments.report.measured import read_report
    from nad_jax import store
    from nad_jax.versions import versions

    begun = time.monotonic()
    smoke, own = options.size == "smoke", ROOT / "docs" / "accelerators.json"
    base = options.runs or ROOT / "runs" / f"accelerator_report{'_smoke' * smoke}"
    path = options.json or (base / "accelerators.json" if smoke else own)
    if smoke and path.is_relative_to(ROOT / "docs"):
        fail(f"json: {path} is for measurements, not for SIZE=smoke")

    def write() -> None:
        if path == own:
            pages.write_pages(path, ROOT)
        else:
            store.write_text(path.with_suffix(".md"), pages.make_table(read_report(path)))

    if options.pages:
        write()
        return 0
    device = find_device(sys.executable)
    if device["platform"] == "cpu" and not smoke:
        fail(
            "device: JAX has a CPU alone here, and the report is of an accelerator; SIZE=smoke tries "
            "it out"
        )
    runs = base / re.sub(r"\W+", "_", device["device"])
    for folder in (path.parent, runs):
        store.make_folder(folder)
    torch = options.torch or sys.executable
    lacks = find_lacks(sys.executable, torch, device["platform"])
    says = {"size": options.size, **device, "versions": versions(), "commit": find_commit()}
    names = {str(options.published): "PUBLISHED", str(options.cifar): "CIFAR", "None": "None"}
    names |= {f"--config.python={torch}": "--config.python=TORCH", f"{ROOT}/": ""}
    report = Report(path, runs, says, write, names)
    torch_device = "cpu" if device["platform"] == "cpu" else "cuda"
    settings = Settings(
        smoke, runs, sys.executable, torch, lacks, torch_device, options.published, options.cifar
    )
    complete, how = True, {"least": 0.0 if smoke else LEAST_SECONDS, **how}
    for part in PARTS if options.part == 0 else (options.part,):
        # Anew, for parts need what others leave.
        items = [item for item in list_items(settings) if item.part == part]
        left = 60 * options.minutes - (time.monotonic() - begun)
        complete &= carry_out(items, report, left, **how)
        begun = time.monotonic()
    print(f"{path}: {len(read_report(path))} items")
    return 0 if complete else RUN_AGAIN


def take_signals() -> None:
    """Ends the process where it is told to end, with the exit code of what can be run again."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(75))


if __name__ == "__main__":
    take_signals()
    sys.exit(main(sys.argv[1:]))
