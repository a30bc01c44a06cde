"""The pages that quote the report: its table in `docs/accelerators.md`, its sentence in README.md.

Both are functions of the stored records alone.
"""

import itertools
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from experiments.report.measured import Numbers, read_report
from nad_jax import store
from nad_jax.errors import InputError

MARKER, END = "<!-- accelerators.json -->", "<!-- -->"
NOTHING = "Nothing has been run on a GPU or TPU yet"


def clock(seconds: float) -> str:
    """A duration in words: 7.3 s, 1 min 5 s, 2 h 3 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def short(seconds: float) -> str:
    """A short duration in its unit: 12.3 µs, 4.56 ms."""
    scales = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
    unit = next((unit for unit in scales if seconds >= scales[unit]), "µs")
    return f"{seconds / scales[unit]:.3g} {unit}"


def _points(accuracy: float) -> str:
    return f"{100 * accuracy:.1f} %"


def _overlaps(found: Numbers) -> str:
    values = " / ".join(f"{value:.3f}".removeprefix("0") for value in found.values())
    return f"{values} (top {' / '.join(found)})"


def _describe_map(found: Numbers) -> str:
    text = f"{found['networks']} networks, {found['diverged']} diverged; cosine directions: mean "
    text += f"{_points(found['mean'])}, highest {_points(found['highest'])}, "
    text += f"{_points(found['share_at_90'])} of them at 90 % or more"
    if compared := found.get("published"):
        text += f"; published map, {compared['cells']} cells: "
        if compared["mean_difference"] is not None:
            text += f"mean difference {compared['mean_difference']:.2f} points"
        for name in ("pearson", "spearman"):
            if compared[name] is not None:
                text += f", {name.capitalize()} {compared[name]:.3f}".replace("0.", ".")
    return text


def _describe_torch(found: Numbers) -> str:
    text = f"{found['library']}, {found['machine']}: {clock(found['seconds_a_network'])} a network"
    return f"{text}, median of {found['networks']}"


def _describe_tests(found: Numbers) -> str:
    text = f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped"
    return text + "".join(f"; {name}" for name in found["failures"][:8])


def _describe_benchmark(found: Numbers) -> str:
    rows = [row for row in found["rows"] if row["failed"] is None]
    failed = len(found["rows"]) - len(rows)
    text = f"{len(rows)} ways timed, see below"
    return text + f"; {failed} do not fit the memory" * (failed > 0)


def _describe_nads(found: Numbers) -> str:
    text = f"{found['chunk_size']} networks at once; split-half overlap "
    text += _overlaps(found["split_half"])
    if "published" in found:
        text += f"; overlap with the published NADs {_overlaps(found['published'])}"
    if ratios := found.get("singular_value_ratio"):
        values = " / ".join(f"{ratio:.2f}" for ratio in ratios.values())
        text += f"; singular values over published {values} (index {' / '.join(ratios)})"
    return text


def _describe_leading(found: Numbers) -> str:
    text = f"{found['chunk_size']} networks at once; split-half overlap "
    text += _overlaps(found["split_half"])
    if "changed" in found:
        text += f"; changed by the last pass {_overlaps(found['changed'])}"
    return text


def _describe_cifar(found: Numbers) -> str:
    values = ", ".join(f"{name} {_points(value)}" for name, value in found["by"].items())
    return f"{found['networks']} networks, {found['diverged']} diverged; test accuracy: {values}"


DESCRIBE: dict[str, Callable[[Numbers], str]] = {
    "map": _describe_map,
    "torch": _describe_torch,
    "tests": _describe_tests,
    "benchmark": _describe_benchmark,
    "nads": _describe_nads,
    "leading": _describe_leading,
    "cifar": _describe_cifar,
}


def _describe(record: Numbers) -> tuple[str, str]:
    """The time and the result of an item, as the table has them."""
    if "missing" in record:
        return "–", f"not measured: {record['missing']}"
    took = clock(record["seconds"])
    if "failed" in record:
        return took, f"failed: {record['failed']}"
    found = record["numbers"]
    if compiled := found.get("compile_seconds"):
        took += f", {clock(compiled)} of it compilation"
    return took, DESCRIBE[record["kind"]](found)


def compare_torch(records: list[Numbers]) -> Numbers | None:
    """What LeNet's directions take here and in PyTorch: seconds a network of both with their
    ratio, and where both have trained the mean difference of accuracies in points.
    """
    named = {record["item"]: record for record in records if "numbers" in record}
    if not {"map_lenet", "torch_lenet"} <= {*named}:
        return None
    ours, theirs = (named[name]["numbers"] for name in ("map_lenet", "torch_lenet"))
    ours_seconds = named["map_lenet"]["seconds"] / ours["networks"]
    both = [(ours["along"][f], a) for f, a in theirs["along"].items() if f in ours["along"]]
    return {
        "ours": ours_seconds,
        "torch": theirs["seconds_a_network"],
        "ratio": ours_seconds / theirs["seconds_a_network"],
        "difference": 100 * statistics.fmean(abs(a - b) for a, b in both) if both else None,
    }


def _rates(row: Numbers) -> tuple[str, str]:
    """The rate of arithmetic of a timing, and its share of that of large matrix products."""
    if not row["operations"] or row["numbers"]:  # the floor is not of products alone
        return "", ""
    return (
        f"{row['operations'] / row['seconds'] / 1e12:.3g}",
        f"{row['floor'] / row['seconds']:.3f}",
    )


def list_timings(records: Iterable[Numbers]) -> list[Numbers]:
    """The rows of all benchmarks, those that do not fit too."""
    finished = [r for r in records if r["kind"] == "benchmark" and "numbers" in r]
    return [row for record in finished for row in record["numbers"]["rows"]]


def format_timings(rows: list[Numbers]) -> list[str]:
    """The table of the timings: of each task and precision the fastest way in bold."""
    lines = [
        "| network | task | convolution | precision | at once | ours | PyTorch | ours / PyTorch "
        "| TFLOP/s | of large products | memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    best = [min(group, key=lambda row: row["seconds"]) for group in _groups(rows)]
    for row in rows:
        names = row["architecture"], row["task"], row["convolution"], row["precision"]
        at_once = str(row["chunk_size"] or "")
        at_once = f"auto {at_once}".strip() if row["automatic"] else at_once
        cells = [*names, at_once + f", {row.get('mapping')}" * _has_mapping(row)]
        if row["failed"]:
            cells += [row["failed"], *[""] * 5]
        else:
            baseline = row["baseline"]
            theirs = (short(baseline), f"{row['seconds'] / baseline:.2f}") if baseline else ("", "")
            ours = short(row["seconds"])
            cells += [f"**{ours}**" if row in best else ours, *theirs, *_rates(row)]
            cells.append(f"{row['peak_bytes'] / 1e9:.2g} GB")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _groups(rows: list[Numbers]) -> list[list[Numbers]]:
    """The timed rows of each network, task and precision."""
    timed = [row for row in rows if row["failed"] is None]
    return [list(group) for _, group in itertools.groupby(sorted(timed, key=_work), key=_work)]


def _work(row: Numbers) -> tuple[str, str, str]:
    return row["architecture"], row["task"], row["precision"]


def imply_defaults(rows: list[Numbers]) -> list[str]:
    """A sentence for every network, task and precision of which several ways were timed: which one
    is the fastest, which share of the rate of products it reaches, how much slower others are, and
    what is chosen where nothing is asked for.
    """
    sentences = []
    for group in _groups(rows):
        if len(group) < 2:
            continue
        first, *others = sorted(group, key=lambda row: row["seconds"])
        sentence = f"{first['architecture']}, {first['task']} at precision {first['precision']}: "
        sentence += f"fastest with convolution={first['convolution']} and "
        sentence += f"chunk_size={first['chunk_size']}, "
        sentence += f"mapping={first.get('mapping')}, " * _has_mapping(first)
        sentence += short(first["seconds"])
        _, share = _rates(first)
        sentence += f", {share} of the rate of large products" * bool(share)
        slower = [
            f"{row['convolution']} and {row['chunk_size']}"
            + f", {row.get('mapping')}," * _has_mapping(row)
            + f" {_times(row, first)}"
            for row in others
        ]
        sentence += f"; {', '.join(slower[:3])}"
        automatic = [
            f"{row['convolution']} "
            + (row["failed"] or f"{row['chunk_size']} at once, {_times(row, first)}")
            for row in rows
            if row["automatic"] and _work(row) == _work(first)
        ]
        sentence += f". Automatic are with {'; with '.join(automatic)}" * bool(automatic)
        sentences.append(f"{sentence}.")
    return sentences


def _has_mapping(row: Numbers) -> bool:
    """Whether a mapping was asked for, which earlier versions could not."""
    return row.get("mapping", "auto") != "auto"


def _times(row: Numbers, first: Numbers) -> str:
    """How much longer a way takes than the fastest."""
    return f"{row['seconds'] / first['seconds']:.2f} × the time"


def check_records(records: list[Numbers]) -> None:
    """Raises `InputError` where a record is no measurement on an accelerator at full size."""
    for record in records:
        if record["platform"] == "cpu" or record["size"] != "full":
            raise InputError(
                f"{record['item']}: is of {record['device']} at {record['size']} size, no "
                "measurement on an accelerator"
            )


def _by_device(records: list[Numbers]) -> dict[str, list[Numbers]]:
    groups: dict[str, list[Numbers]] = {}
    for record in sorted(records, key=lambda record: record["part"]):
        groups.setdefault(record["device"], []).append(record)
    return groups


def make_table(records: list[Numbers]) -> str:
    """The report as Markdown: for each device what was measured, the timings, and what they say."""
    if not records:
        return f"{NOTHING}.\n"
    blocks = []
    for device, group in _by_device(records).items():
        last = group[-1]
        versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
        count = f"{last['num_devices']} × " * (last["num_devices"] > 1)
        lines = [f"## {device}", "", f"{count}{device} ({last['platform']}); {versions}.", ""]
        lines += ["| part | what | time | result | command | commit, date |", "|---" * 6 + "|"]
        for record in group:
            commands = "<br>".join(f"`{command}`" for command in record["command"])
            commit = record["commit"][:10] or record["versions"]["nad_jax"]
            cells = [str(record["part"]), record["says"], *_describe(record), commands]
            cells.append(f"{commit}, {record['date']}")
            lines.append(f"| {' | '.join(cell.replace('|', '∣') for cell in cells)} |")
        if compared := compare_torch(group):
            lines += ["", _say_torch(compared)]
        if rows := list_timings(group):
            lines += ["", *format_timings(rows)]
            lines += [line for sentence in imply_defaults(rows) for line in ("", sentence)]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _say_torch(compared: Numbers) -> str:
    text = f"A network of the map takes {short(compared['ours'])} of the whole command, in PyTorch "
    text += f"{short(compared['torch'])} after a warm-up: ratio {compared['ratio']:.3f}"
    if compared["difference"] is not None:
        text += f"; accuracies differ by {compared['difference']:.1f} points in the mean"
    return f"{text}."


def make_sentence(records: list[Numbers], link: str) -> str:
    """What README says of accelerators, in a sentence; `link` is that of the page."""
    if not records:
        return f"{NOTHING}; `make accelerator-report` measures one ([accelerators]({link}))."
    parts = []
    for device, group in _by_device(records).items():
        named = {record["item"]: record for record in group if "numbers" in record}
        found = [f"{len(named)} of {len(group)} items measured"]
        if "map_lenet" in named:
            record = named["map_lenet"]
            found = [f"{record['says']}: {clock(record['seconds'])}"]
            if compared := compare_torch(group):
                found.append(f"{compared['ratio']:.3f} of PyTorch's time")
            published = record["numbers"].get("published", {})
            if published.get("pearson") is not None:
                found.append(f"Pearson {published['pearson']:.3f} with the published map")
        if "nads_lenet" in named:
            record = named["nads_lenet"]
            found.append(f"{record['says']}: {clock(record['seconds'])}")
        parts.append(f"{device}: {', '.join(found)}")
    return f"On an accelerator, {'; '.join(parts)} ([accelerators]({link}))."


def replace(text: str, content: str, page: str) -> str:
    """A page with this content between its markers."""
    before, begin, rest = text.partition(MARKER)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{page}: must have a place between {MARKER} and {END}")
    return before + begin + content + end + after


def write_pages(path: Path, root: Path) -> None:
    """Writes what the records of a file say into the pages of the repository.

    Raises:
      InputError: where one of them is no measurement on an accelerator.
    """
    records = read_report(path)
    check_records(records)
    page, readme = root / "docs" / "accelerators.md", root / "README.md"
    contents = {page: f"\n{make_table(records)}"}
    contents[readme] = make_sentence(records, "docs/accelerators.md")
    for file, content in contents.items():
        store.write_text(file, replace(store.read_text(file), content, file.name))
