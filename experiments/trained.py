"""Studies of trained networks: the recipe that a config says, and the networks in stored units.

A network's name is what determines it, so a folder is extended by any sweep axis and nothing is
trained twice.
"""

import ast
import contextlib
import json
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import results
from experiments.run import costs, targets
from experiments.run.config import HOW, LATER, check_all, check_integers
from experiments.run.costs import Setup, choose_training, measure_training
from experiments.run.folder import Folder, Stored
from experiments.run.origin import parse_object
from experiments.run.plan import Arrays, Cost, Json, Member, Program, Shapes, Study, Work
from experiments.run.progress import read_seconds
from experiments.run.targets import Estimate, Target
from nad_jax import errors
from nad_jax.chunks import choose_chunks
from nad_jax.ensemble import Execution
from nad_jax.errors import InputError, check_choice, check_number
from nad_jax.fitting import Observer
from nad_jax.recipe import Recipe
from nad_jax.training import make_run
from nad_jax.weights import weights_to_arrays

TRAINED_HOW = ("unit_size", "num_devices", "keep_weights", *HOW)


def parse_optimizer(field: str, text: str) -> tuple[str, Json]:
    """The name and options of an optimizer, the value of `field`.

    It is written "sgd", "sgd:momentum=0.9" or "adam:b1=0.8:learning_rate=0.001".
    """
    name, *parts = str(text).split(":")
    options = {}
    for part in parts:
        option, equals, value = part.partition("=")
        try:
            options[option] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            equals = ""
        if not equals:
            raise InputError(
                f"{field}: options are written name:option=value:…, with numbers, got {text!r}"
            )
    return name, options


def read_recipe(
    config: ConfigDict, field: str, optimizer: str, num_train: int, num_test: int
) -> tuple[Recipe, float]:
    """How networks are trained with an optimizer, the value of `field`, and their learning rate."""
    optimizer, options = parse_optimizer(field, optimizer)
    learning_rate = options.pop("learning_rate", config.learning_rate)
    fields = {name: config[name] for name in Recipe.__dataclass_fields__ if name in config}
    fields |= {"optimizer": optimizer, "optimizer_options": options}
    fields |= {"num_train": num_train, "num_test": num_test}
    return Recipe(**fields), learning_rate


def check_recipe(
    config: ConfigDict,
    field: str,
    optimizer: str,
    num_train: int,
    num_test: int,
) -> None:
    """Raises `InputError` where `read_recipe` gives none that can be carried out."""
    recipe, learning_rate = read_recipe(config, field, optimizer, num_train, num_test)
    lines = (line.split(":", 1) for line in recipe.problems())
    problems = [f"{field if name == 'optimizer' else name}:{rest}" for name, rest in lines]
    problems += errors.problems(lambda: check_number("learning_rate", learning_rate, 0.0))
    errors.raise_problems(problems)


def check_execution(config: ConfigDict) -> None:
    """Raises `InputError` where networks cannot be trained in the way that a config says."""
    check_all(
        lambda: check_integers(config, unit_size=0),
        lambda: choose_chunks(Execution(config.mapping, config.chunk_size, config.num_devices)),
        lambda: check_choice("keep_weights", config.keep_weights, (False, True)),
    )


class Trainee(NamedTuple):
    """What is to be known of a network to train: its place in the table, `seed` included, and the
    arrays of its task by name.
    """

    coordinates: Json
    arrays: dict[str, Any]


class More(NamedTuple):
    """What is measured of trained networks besides, one by one.

    shapes: of its arrays, by name. measure(member, variables): these arrays. measure_seconds(member):
      how long that takes.
    """

    shapes: Shapes
    measure: Callable[[Member, Any], Arrays]
    measure_seconds: Callable[[Member], float]


def make_study(
    config: ConfigDict,
    identity: Json,
    networks: list[Member],
    metrics: tuple[str, ...],
    make_setup: Callable[[Member], Setup],
    collect: Callable[[Folder, int], None],
    observe: Callable[[Setup], Mapping[str, Observer]] | None = None,
    more: More | None = None,
) -> Study:
    """Networks in units of `config.unit_size` (0: one chunk) of one program; `what` of each is a
    `Trainee`, `metrics` name what of each goes into the table, beside what is in `more`.

    observe(setup): accuracies or other numbers of each network, by name, that are stored at the
    start and after every epoch.
    """
    execution = Execution(config.mapping, config.chunk_size, config.num_devices)
    unit_size = config.unit_size or choose_chunks(execution).chunk_size

    def choose_execution(member: Member, chunk_size: int) -> Execution:
        """As the config says, but no more networks at once than fit where it leaves their number
        open.
        """
        how = execution._replace(chunk_size=chunk_size or config.chunk_size)
        return choose_training(make_setup(member), member.what.arrays, how, unit_size)

    def measure_cost(member: Member) -> Cost:
        how = member.what.arrays, choose_execution(member, 0)
        setup = make_setup(member)
        looks = setup.recipe.num_epochs + 1 if observe else 0
        cost = measure_training(setup, *how, looks)
        seconds = more.measure_seconds(member) if more else 0.0
        return cost._replace(network_seconds=cost.network_seconds + seconds)

    def make_program(member: Member, chunk_size: int) -> Program:
        resolved = choose_execution(member, chunk_size)
        setup = make_setup(member)
        model, task, recipe, learning_rate = setup
        keep = config.keep_weights or more is not None
        run = make_run(model, task, recipe, resolved, observe and observe(setup), keep)

        def compute(work: Work) -> tuple[Arrays, int]:
            seeds = [member.what.coordinates["seed"] for member in work.members]
            found = run(_stack(work.members), learning_rate, seeds, *work[1:])
            arrays = {name: getattr(found, name) for name in (*metrics, "losses")}
            arrays |= found.observed or {}
            # For tables of later commands, which may not know this network.
            arrays["coordinates"] = [json.dumps(m.what.coordinates) for m in work.members]
            if more:
                arrays |= _measure(more, work.members, found.variables)
            if config.keep_weights:
                arrays |= weights_to_arrays(found.variables)
            return arrays, int((found.diverged_at >= 0).sum())

        how = {"mapping": resolved.mapping, "chunk_size": resolved.chunk_size}
        how["model"] = dict(model.description)
        return Program(compute, resolved.chunk_size, len(resolved.devices), how)

    def estimate(member: Member, given: Target) -> Estimate:
        how = member.what.arrays, given, execution, unit_size
        return targets.estimate_training(make_setup(member), *how)

    shapes = {**dict.fromkeys(metrics, ()), **(more.shapes if more else {})}
    if observe:
        setup = make_setup(networks[0])
        shapes |= dict.fromkeys(observe(setup), (setup.recipe.num_epochs + 1,))
    return Study(
        {"": identity},
        networks,
        lambda _: shapes,
        make_program,
        measure_cost,
        collect,
        unit_size,
        weigh=lambda member: costs.weigh(make_setup(member).model),
        estimate=estimate,
    )


def _measure(more: More, members: list[Member], variables: Any) -> Arrays:
    """What is measured of networks with such variables [N, …]: arrays [N, …]."""
    found = [
        more.measure(member, jax.tree.map(operator.itemgetter(number), variables))
        for number, member in enumerate(members)
    ]
    return {name: np.stack([one[name] for one in found]) for name in more.shapes}


def _stack(members: list[Member]) -> dict[str, np.ndarray]:
    """The arrays of networks, [N, …] each."""
    return {
        name: np.stack([member.what.arrays[name] for member in members])
        for name in members[0].what.arrays
    }


def list_rows(folder: Folder, columns: tuple[str, ...]) -> results.Rows:
    """The rows of the networks that are stored: first those of the command, then those that other
    commands have left, sorted.
    """
    seconds = read_seconds(folder.workdir)
    mine, others = folder.stored_by_command()

    def make_row(stored: Stored, coordinates: Json, command: str) -> results.Row:
        metrics = {name: stored.arrays[name] for name in columns if name in stored.arrays}
        row = {**coordinates, **metrics, **results.provenance(stored.said, command)}
        return {**row, "seconds": seconds.get(stored.label, "")}

    rows = [make_row(stored, member.what.coordinates, "this") for member, stored in mine]
    named = ((stored, _read_coordinates(stored, columns)) for stored in others)
    order = sorted(named, key=lambda pair: [(isinstance(v, str), v) for v in pair[1].values()])
    return rows + [make_row(*pair, "earlier") for pair in order]


def _read_coordinates(stored: Stored, columns: tuple[str, ...]) -> Json:
    """The place in the table of a network of another command; units of earlier versions say only
    what determines it.
    """
    texts = (str(stored.arrays.get("coordinates", "")), stored.name)
    said: Json = {}
    for text in texts:
        with contextlib.suppress(InputError):
            said = said or parse_object(stored.label, text)
    said = {"width": LATER["width"], **said}
    plain = (int, float, str)
    return {n: said[n] for n in columns if isinstance(said.get(n), plain)}
