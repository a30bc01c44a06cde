"""The items of the report, each a few ordinary commands and what is read of the folder they leave.

At smoke size, which tries the report out, networks are those of logistic regression on few samples;
commands are the same but for the fields of `SMOKE`.
"""

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from experiments.report import measured
from experiments.report.measured import Numbers

# Fields that make commands small, by their recipe file.
_TRAINED = {"num_train": 16, "num_test": 16, "num_epochs": 2, "batch_size": 8, "loss_window": 2}
_ENSEMBLE = {"architecture": "logreg", "num_networks": 4, "unit_size": 2, "figure_directions": 2}
SMOKE: dict[str, dict[str, Any]] = {
    "directional_bias": {"architectures": "logreg", **_TRAINED}
    | {"frequency_range": "-4,4", "frequency_step": 4, "chunk_size": 2, "num_devices": 1},
    "compute_nads": _ENSEMBLE,
    "leading_nads": {**_ENSEMBLE, "image_shape": "6,6,1"}
    | {"num_directions": 2, "num_extra": 2, "num_passes": 2},
    "benchmark": {"architectures": "lenet", "image_shape": "16,16,1", "batch_size": 8}
    | {"seconds": 0.0, "chunk_sizes": 2, "convolutions": "lax", "precisions": "highest"}
    | {f"num_{name}.lenet": 2 for name in ("rounds", "steps", "directions")},
    "flip_cifar": {"architectures": "logreg", "seeds": 0, **_TRAINED},
    "poison_cifar": {"architectures": "logreg", "nad_indices": "0,10", **_TRAINED},
}
# Modules of tests whose statements hold on any device, the quickest first, without those of several
# CPU devices, which are in processes of their own.
TESTS = (
    "vector_fields", "spectral", "subspaces", "sketch", "separable", "covariance", "interventions",
    "scaling", "geometry", "training", "convolution",
)  # fmt: skip
# Their tolerances are those of float32.
TEST_ENVIRONMENT = {
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    # Hundreds of small programs are not worth trying out algorithms for.
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_gpu_autotune_level=0",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
# Along which PyTorch trains: (row, column).
FREQUENCIES = ((0, 0), (0, 4), (4, 0), (4, 4), (8, 0), (0, 8), (2, 2), (6, 6))
FILES = {"lenet": "LeNet", "vgg11": "VGG11", "resnet18": "ResNet18", "densenet121": "DenseNet121"}


class Settings(NamedTuple):
    """How the report is made.

    smoke: at the smallest size. runs: where run folders are. python: the interpreter of commands;
    torch: one that has PyTorch. lacks: why there is no PyTorch, no pytest or no benchmark, by these
    names. published: the folder of published arrays and tables. cifar: of CIFAR-10.
    """

    smoke: bool
    runs: Path
    python: str
    torch: str
    lacks: dict[str, str]
    device: str = "cuda"  # of PyTorch
    published: Path | None = None
    cifar: Path | None = None


class Item(NamedTuple):
    """One line of the report.

    name: also of its folder. kind: how it is described, see `pages`. part: 1 … 4. says: what it is.
    commands: with their interpreters. read(folder): its numbers. environment: of the commands.
    ends_with: exit codes of commands that have done their work. tries: of a command that does not go
    on where it was, after which it is left out; 0: any number. missing: why it cannot be measured
    here.
    """

    name: str
    kind: str
    part: int
    says: str
    commands: tuple[tuple[str, ...], ...]
    read: Callable[[Path], Numbers]
    environment: dict[str, str] = {}  # noqa: RUF012, not changed
    ends_with: tuple[int, ...] = (0,)
    tries: int = 0
    missing: str = ""

    @property
    def typed(self) -> list[str]:
        """The commands as a user types them."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return [" ".join([*variables, "python", shlex.join(rest)]) for _, *rest in self.commands]


def list_items(how: Settings) -> list[Item]:
    """Every item, the most valuable first in each part; at smoke size one of each sort."""
    items = [_map(how, 1, "lenet", phases="both"), _torch(how), _tests(how)]
    items += [
        _benchmark(how, "lenet", "chunks", chunk_sizes="0,8,128,256"),
        _benchmark(
            how,
            "resnet18",
            "chunks",
            convolutions="lax",
            mappings="sequential,vectorized",
            chunk_sizes=8,
        ),
        _benchmark(how, "lenet", "precisions", precisions="highest,bfloat16", chunk_sizes=128),
        _benchmark(how, "vgg11", "chunks", mappings="sequential,vectorized", chunk_sizes=8),
        _benchmark(
            how, "lenet", "nads", tasks="central_difference,gradient", chunk_sizes="0,32,128"
        ),
        _benchmark(
            how,
            "densenet121",
            "chunks",
            convolutions="lax",
            mappings="sequential,vectorized",
            chunk_sizes=4,
        ),
    ]
    sizes = {"lenet": (10_000, 1000), "resnet18": (200, 20), "densenet121": (600, 20)}
    items += [_nads(how, *entry) for entry in sizes.items()] + [_leading(how)]
    items += [
        _map(how, 4, "vgg11"),
        _cifar(how, "flip_cifar", "lenet"),
        _cifar(how, "poison_cifar", "lenet"),
        _map(how, 4, "resnet18"),
        _cifar(how, "flip_cifar", "resnet18"),
        _cifar(how, "poison_cifar", "resnet18"),
    ]
    if not how.smoke:
        return items
    sorts = {(item.part, item.name.partition("_")[0]): item for item in reversed(items)}
    return [item for item in items if item in sorts.values()]


def _main(how: Settings, name: str, recipe: str, **fields: Any) -> tuple[str, ...]:
    """The command of a recipe, `file` or `file:argument`, with these fields, into the folder of an
    item.
    """
    fields |= SMOKE[recipe.partition(":")[0]] if how.smoke else {}
    file, colon, argument = recipe.partition(":")
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    command = ("-m", "experiments.main", f"--config=configs/{file}.py{colon}{argument}", *flags)
    return how.python, *command, f"--workdir={how.runs / name}"


def _map(how: Settings, part: int, architecture: str, **fields: Any) -> Item:
    name = f"map_{architecture}"
    known = "logreg" if how.smoke else architecture
    table = measured.find_table(how.published, known)
    if table:
        fields["compare"] = table
    command = _main(how, name, f"directional_bias:accuracy_map,{architecture}", **fields)
    count = 256 if fields.get("phases") == "both" else 130
    says = f"{FILES[architecture]} trained on {count} Fourier directions, 20 epochs"
    read = partial(measured.read_map, table=table, architecture=known, along=FREQUENCIES)
    return Item(name, "map", part, says, (command,), read)


def _torch(how: Settings) -> Item:
    name = "torch_lenet"
    where = " ".join(f"{row},{column}" for row, column in FREQUENCIES)
    output = how.runs / name / "networks.json"
    command = [how.torch, "-m", "experiments.benchmark.torch_training", f"--output={output}"]
    command += ["--frequencies", where, f"--device={how.device}"]
    if how.smoke:
        command += ["--image_shape=16,16,1", "--num_train=16", "--num_test=16", "--num_epochs=1"]
    says = f"the same in PyTorch, {len(FREQUENCIES)} of the directions one after the other"
    missing = how.lacks.get("torch", "")
    return Item(name, "torch", 1, says, (tuple(command),), measured.read_torch, missing=missing)


def _tests(how: Settings) -> Item:
    name, modules = "tests", ("spectral",) if how.smoke else TESTS
    commands = []
    for module in modules:
        report = f"--junitxml={how.runs / name / module}.xml"
        # What other packages of the machine warn of is no fault; one module is not all of them.
        options = ("-q", "-W", "default", "--continue-on-collection-errors", report)
        options += ("-k", "refused" if how.smoke else "not sharded")
        commands.append((how.python, "-m", "pytest", *options, f"tests/test_{module}.py"))
    says = f"{len(modules)} modules of tests, products in float32"
    carried_out = {"environment": TEST_ENVIRONMENT, "ends_with": (0, 1), "tries": 2}
    missing = how.lacks.get("pytest", "")
    read = partial(measured.read_tests, modules=modules)
    return Item(name, "tests", 1, says, tuple(commands), read, **carried_out, missing=missing)


def _benchmark(how: Settings, architecture: str, what: str, **fields: Any) -> Item:
    name = f"benchmark_{architecture}_{what}"
    fields = {"tasks": "directions", "precisions": "default", **fields}
    fields |= {"architectures": architecture, "seconds": 0.3, f"num_rounds.{architecture}": 3}
    if not how.lacks.get("torch"):
        fields["python"] = how.torch
    command = _main(how, name, "benchmark:gpu", **fields)
    says = {
        "chunks": "a training step by convolution and networks at once",
        "precisions": "a training step by precision",
        "nads": "NADs by convolution and networks at once",
    }[what]
    says = f"{FILES[architecture]}: {says}"
    missing = how.lacks.get("benchmark", "")
    return Item(name, "benchmark", 2, says, (command,), measured.read_benchmark, missing=missing)


def _published(how: Settings, architecture: str, kind: str) -> Path | None:
    """A published array, if there is one."""
    path = how.published and how.published / f"{FILES[architecture]}_{kind}.npy"
    return path if path and path.exists() else None


def _nads(how: Settings, architecture: str, size: tuple[int, int]) -> Item:
    name, (count, unit_size) = f"nads_{architecture}", size
    fields: dict[str, Any] = {"num_networks": count, "unit_size": unit_size}
    if directions := _published(how, architecture, "NADs"):
        fields["compare"] = directions
    if values := _published(how, architecture, "eigenvals"):
        fields["compare_singular_values"] = values
    command = _main(how, name, f"compute_nads:{architecture}", **fields)
    says = f"NADs of {FILES[architecture]}, {count:,} networks"
    return Item(name, "nads", 3, says, (command,), measured.read_nads)


def _leading(how: Settings) -> Item:
    name = "leading"
    command = _main(how, name, "leading_nads")
    says = "leading NADs of ResNet18 at 224×224×3, 256 networks of 16 read-outs, 3 passes"
    return Item(name, "leading", 3, says, (command,), measured.read_leading)


def _cifar(how: Settings, recipe: str, architecture: str) -> Item:
    name = f"{recipe.partition('_')[0]}_{architecture}"
    nads = _published(how, architecture, "NADs") or how.runs / f"nads_{architecture}" / "nads.npz"
    missing = ""
    if how.cifar is None:
        missing = "no CIFAR-10 is given (CIFAR=DIR)"
    elif not nads.exists():
        missing = "no NADs are there: PUBLISHED=DIR, or those of part 3"
    fields = {"data_dir": how.cifar or "CIFAR", "nads": nads}
    command = _main(how, name, f"{recipe}:{architecture}", **fields)
    what = {"flip_cifar": "in the flipped basis", "poison_cifar": "poisoned along NADs"}[recipe]
    says = f"{FILES[architecture]} on CIFAR-10 {what}"
    read = partial(measured.read_cifar, recipe=recipe)
    return Item(name, "cifar", 4, says, (command,), read, missing=missing)
