"""What the study of `predictors` is made of, for each architecture: the networks that are trained on
D(v), and ensembles of untrained ones. Each is a part, in a folder of its own.
"""

import itertools
import math
from typing import NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from experiments import geometry, sources, trained
from experiments.networks import read_model
from experiments.run import costs, targets
from experiments.run.costs import Ensemble, Setup
from experiments.run.folder import digest
from experiments.run.plan import Arrays, Cost, Json, Member, Program, Shapes, Weight, Work
from experiments.run.targets import Estimate, Target
from nad_jax.architectures import OPTIONS
from nad_jax.blocks import Blocks
from nad_jax.choices import choose_blocks
from nad_jax.ensemble import Execution
from nad_jax.errors import InputError
from nad_jax.models import Model
from nad_jax.store import DamagedError
from nad_jax.tables import list_metrics
from nad_jax.tasks import separable
from nad_jax.tasks.separable import TrainMetrics
from nad_jax.training import make_run

# Laws of points by their names in the table: the fields of `Estimator` that say them.
POINTS = {
    "shared": {"point": "shared", "point_scale": 1.0},
    "fresh": {"point": "fresh", "point_scale": 1.0},
    "origin": {"point": "shared", "point_scale": 0.0},
}
METRICS = list_metrics(TrainMetrics)


def make_config(config: ConfigDict, **chosen: object) -> ConfigDict:
    """The fields of one architecture, as networks, recipes and ensembles are read from them;
    `chosen` stand in place of the fields that are tuples.
    """
    unset = {"pooling": "default", "width": 0, "num_logits": 1, "logit": None, **OPTIONS}
    plain = {"centred": False, "symmetrized": False, "seed": config.geometry_seed}
    return ConfigDict({**config, **unset, **plain, **chosen})


class Part(Protocol):
    """What a study asks of the members of one folder."""

    folder: str

    def identity(self) -> Json: ...

    def list_members(self) -> list[Member]: ...

    def shapes(self) -> Shapes: ...

    def make_program(self, chunk_size: int) -> Program: ...

    def measure_cost(self) -> Cost: ...

    def estimate(self, given: Target) -> Estimate: ...

    def weigh(self) -> Weight: ...


class Trainees(NamedTuple):
    """Networks that are trained together: their seed, and the directions [n, D] of D(v) and their
    names.
    """

    seed: int
    rows: np.ndarray
    names: list[str]


class Trained(NamedTuple):
    """The networks of an architecture that are trained on D(v), one for each direction and seed.

    config: see `make_config`. directions: K of them.
    """

    config: ConfigDict
    directions: sources.Directions

    @property
    def folder(self) -> str:
        return f"{self.config.architecture},training"

    @property
    def names(self) -> list[str]:
        """Of the directions."""
        return [place["direction"] for place in self.directions.coordinates]

    def identity(self) -> Json:
        return {name: self.config[name] for name in ("architecture", "num_epochs")}

    def list_members(self) -> list[Member]:
        """So many networks of one seed each as are stored as one file."""
        names, size, members = self.names, self.config.training_unit_size, []
        for seed, first in itertools.product(self.config.seeds, range(0, len(names), size)):
            chosen = slice(first, first + size)
            what = Trainees(seed, self.directions.rows[chosen], names[chosen])
            name, program = (
                f"seed_{seed}_{digest(np.array(what.names))}",
                (self.config.architecture, "training"),
            )
            members.append(Member(name, program, what, len(what.names), self.folder))
        return members

    def read_setup(self) -> Setup:
        config = self.config
        samples = config.num_train, config.num_test
        recipe, learning_rate = trained.read_recipe(config, "optimizer", config.optimizer, *samples)
        return Setup(read_model(config, num_logits=2), separable(), recipe, learning_rate)

    def make_arrays(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of the task of networks of directions [n, D], of one direction [D] for one."""
        scales = {n: np.full(rows.shape[:-1], self.config[n]) for n in ("epsilon", "sigma")}
        return {"direction": rows, **scales}

    def shapes(self) -> Shapes:
        return {**dict.fromkeys(METRICS, ("networks",)), "diverged": ()}

    @property
    def _how(self) -> tuple[Execution, int]:
        """How it is trained, and how many networks at most at once."""
        config = self.config
        return Execution(config.mapping, config.chunk_size), config.training_unit_size

    def _choose(self, chunk_size: int = 0) -> Execution:
        execution, most = self._how
        execution = execution._replace(chunk_size=chunk_size or execution.chunk_size)
        arrays = self.make_arrays(self.directions.rows[0])
        return costs.choose_training(self.read_setup(), arrays, execution, most)

    def make_program(self, chunk_size: int) -> Program:
        resolved = self._choose(chunk_size)
        model, task, recipe, learning_rate = self.read_setup()
        run = make_run(model, task, recipe, resolved)

        def compute(work: Work) -> tuple[Arrays, int]:
            (member,), *how = work
            found = run(self.make_arrays(member.what.rows), learning_rate, member.what.seed, *how)
            diverged = np.int32((found.diverged_at >= 0).sum())
            metrics = {name: np.asarray(getattr(found, name)) for name in METRICS}
            return {**metrics, "diverged": diverged}, int(diverged)

        how = {"mapping": resolved.mapping, "chunk_size": resolved.chunk_size}
        how["model"] = dict(model.description)
        return Program(compute, resolved.chunk_size, len(resolved.devices), how)

    def measure_cost(self) -> Cost:
        arrays = self.make_arrays(self.directions.rows[0])
        return costs.measure_training(self.read_setup(), arrays, self._choose())

    def estimate(self, given: Target) -> Estimate:
        arrays = self.make_arrays(self.directions.rows[0])
        return targets.estimate_training(self.read_setup(), arrays, given, *self._how)

    def weigh(self) -> Weight:
        model, _, recipe, _ = self.read_setup()
        return _weigh(model, 3 * recipe.num_steps * recipe.batch_size)


class Geometry(NamedTuple):
    """An ensemble of an architecture, of one derivative and one law of points.

    config: see `make_config`. point: a name of `POINTS`.
    """

    config: ConfigDict
    point: str

    @property
    def folder(self) -> str:
        return f"{self.config.architecture},{self.config.derivative},{self.point}"

    def identity(self) -> Json:
        said = {name: self.config[name] for name in ("architecture", "derivative")}
        return {**said, "point": self.point}

    @property
    def ensemble(self) -> Ensemble:
        return geometry.read_ensemble(self.config)

    @property
    def blocks(self) -> Blocks:
        """The exactly equal blocks that G has."""
        return choose_blocks(self.ensemble.model, self.ensemble.estimator)

    def find_reason(self) -> str:
        """Why it predicts nothing, where that is known before it is measured, "" where it is not."""
        try:
            self.ensemble.resolve()
        except InputError as error:  # of the network at such points: values are checked elsewhere
            return "cannot be measured: " + "; ".join(str(error).splitlines())
        if self.blocks.count and self.blocks.num_units == 1:
            return f"all vᵀGv are equal: {self.blocks.reason}"
        return ""

    def list_members(self) -> list[Member]:
        program = self.config.architecture, self.config.derivative, self.point
        how = self.config, program, self.ensemble.num_rows
        return geometry.list_members(*how, folder=self.folder)

    def shapes(self) -> Shapes:
        return geometry.state_shapes(self.ensemble)

    def make_program(self, chunk_size: int) -> Program:
        return geometry.make_program(self.ensemble, chunk_size)

    def measure_cost(self) -> Cost:
        return geometry.measure_cost(self.ensemble)

    def estimate(self, given: Target) -> Estimate:
        return targets.estimate_ensemble(self.ensemble, given)

    def weigh(self) -> Weight:
        passes = 2 * math.prod(self.config.image_shape)
        if self.config.derivative == "input_gradient":
            passes = 2 * self.ensemble.num_rows
        return _weigh(self.ensemble.model, passes)


def check_trained(member: Member, arrays: Arrays) -> None:
    """Raises `DamagedError` where a file holds more or fewer trained networks."""
    held = len(arrays["test_accuracy"])
    if held != member.num_networks:
        raise DamagedError(f"holds {held} networks, not {member.num_networks}")


def _weigh(model: Model, passes: int) -> Weight:
    """A network that is evaluated at so many inputs."""
    weight = costs.weigh(model)
    return weight._replace(operations=passes * weight.operations)
