"""How the geometry of an ensemble evolves while it is trained: its cosines with given matrices, how
fast it turns, and what networks learn meanwhile.

Source: GIH, "Geometric Inductive Biases of Deep Networks" (Movahedi, Orvieto, Moosavi-Dezfooli,
2025).

Differs from the reference code: in cosines ‖E[G]‖² is the mean of tr(G G') over pairs of different
networks, which has no bias; the mean G of a few networks is longer by its own noise, and its cosine
too small. Velocities are those of the mean G, as there.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import ensemble
from nad_jax.chunks import (
    Cohort,
    Progress,
    choose_chunks,
    choose_mapping,
    flatten_tree,
    make_chunk,
    restore_tree,
)
from nad_jax.contract import check_inputs
from nad_jax.ensemble import Execution
from nad_jax.errors import (
    InputError,
    check_function,
    check_integer,
    check_record,
    host_array,
    unknown,
)
from nad_jax.fitting import Stages, make_evaluate, make_fit
from nad_jax.models import Model, split_trainable
from nad_jax.recipe import Recipe
from nad_jax.snapshots import Snapshots
from nad_jax.tables import Row, Tabular, zip_columns
from nad_jax.task import Members, Task
from nad_jax.task_contract import check_task
from nad_jax.training import make_members, plan_cohorts

Estimate = tuple[np.ndarray, np.ndarray]


class Evolution(NamedTuple):
    """The geometries G of N networks at the start and after each of E epochs; a network's is the
    mean over points of g gᵀ, g the gradient of a logit.

    alignments: by the name of a matrix M, tr(G M)/‖M‖, [E + 1, N].
    products: tr(G G') of every pair of networks, [E + 1, N, N]. steps: of G after an epoch and G'
      after the next one, [E, N, N].
    accuracy: on the training samples, [E + 1, N]. distance: ‖θ − θ₀‖/‖θ₀‖ of the weights,
      [E + 1, N]. losses: of minibatches, [N, T].
    test_accuracy: after training, [N]. diverged_at: as in `FitMetrics`, [N]; networks that diverged
      are left out of what is estimated.
    """

    alignments: Mapping[str, np.ndarray]
    products: np.ndarray
    steps: np.ndarray
    accuracy: np.ndarray
    distance: np.ndarray
    losses: np.ndarray
    test_accuracy: np.ndarray
    diverged_at: np.ndarray

    def _sound(self) -> np.ndarray:
        """The numbers of the networks that did not diverge."""
        return np.flatnonzero(self.diverged_at < 0)

    def cosine(self, name: str) -> Estimate:
        """The cosine of the geometry with a matrix, tr(G M)/(‖G‖ ‖M‖), and its standard error by the
        jackknife over networks: [E + 1] each. It needs two networks, and its error three.

        Raises:
          InputError: for a name that no matrix has.
        """
        if name not in self.alignments:
            raise unknown("name", name, self.alignments)

        def cosine(kept: np.ndarray) -> np.ndarray:
            return _mean(self.alignments[name][:, kept]) / _length(self.products, kept)

        return _jackknife(cosine, self._sound())

    def velocity(self) -> Estimate:
        """1 − cos(G_t, G_{t+1}) of the mean G of these networks, and its standard error by the
        jackknife: [E] each.
        """

        def velocity(kept: np.ndarray) -> np.ndarray:
            square, steps = (
                _mean(one[:, kept][:, :, kept].astype(np.float64).reshape(len(one), -1))
                for one in (self.products, self.steps)
            )
            return 1 - steps / np.sqrt(square[:-1] * square[1:])

        return _jackknife(velocity, self._sound())

    def to_rows(self) -> list[Row]:
        """A row for each epoch: cosines, the velocity from the epoch before, accuracy and distance,
        each with its standard error between networks.
        """
        kept = self._sound()
        columns: dict[str, Any] = {"epoch": range(len(self.accuracy))}
        found = {f"cosine_{name}": self.cosine(name) for name in self.alignments}
        found["velocity"] = [np.append(np.nan, values) for values in self.velocity()]
        for name in ("accuracy", "distance"):
            values = getattr(self, name)[:, kept]
            spread = values.std(1, ddof=1) if len(kept) > 1 else np.full(len(values), np.nan)
            found[name] = _mean(values), spread / np.sqrt(len(kept) or np.nan)
        for name, (values, errors) in found.items():
            columns |= {name: values, f"{name}_sem": errors}
        return zip_columns(columns)

    rows, to_csv, to_dataframe = to_rows, Tabular.to_csv, Tabular.to_dataframe

    def __repr__(self) -> str:
        rows, count = self.to_rows(), len(self.diverged_at)
        lost = count - len(self._sound())
        if lost == count:
            return f"Geometry of {count} networks over {len(rows) - 1} epochs: all of them diverged"
        first, last = rows[0], rows[-1]
        names = [name for name in first if f"{name}_sem" in first and name != "velocity"]
        lines = [f"Geometry of {count} networks over {len(rows) - 1} epochs"]
        for name in names:
            ends = (f"{row[name]:.3g} ± {row[f'{name}_sem']:.1g}" for row in (first, last))
            lines.append(f"  {name}: {' → '.join(ends)}")
        lines.append(f"  velocity: {np.nanmean(self.velocity()[0]):.2g} an epoch")
        if lost:
            lines.append(f"  {lost} networks diverged and are left out")
        return "\n".join(lines)


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis; nan where there is nothing, without a warning."""
    return values.sum(-1) / (values.shape[-1] or np.nan)


def _length(products: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """‖E[G]‖, from the mean over pairs of different networks, [E + 1]; nan of a single one, and
    where that mean is noise below 0.
    """
    some, count = products[:, kept][:, :, kept].astype(np.float64), len(kept)
    pairs = count * (count - 1)
    means = (some.sum((1, 2)) - np.trace(some, axis1=1, axis2=2)) / (pairs or np.nan)
    return np.sqrt(np.where(means > 0, means, np.nan))


def _jackknife(estimate: Callable[[np.ndarray], np.ndarray], kept: np.ndarray) -> Estimate:
    """An estimate from all these networks, and its standard error by leaving out one at a time."""
    whole, count = estimate(kept), len(kept)
    if count < 3:
        return whole, np.full_like(whole, np.nan)
    parts = np.stack([estimate(np.delete(kept, place)) for place in range(count)])
    spread = ((parts - parts.mean(0)) ** 2).sum(0)
    return whole, np.sqrt((count - 1) / count * spread)


class _Look(NamedTuple):
    """What is measured of networks at an epoch; every leaf [n, …]. geometry: [n, D, D]."""

    geometry: jax.Array
    accuracy: jax.Array
    distance: jax.Array


def geometry_evolution(
    model: Model,
    task: Task,
    references: Mapping[str, Any],
    points: Any,
    seed: Any,
    learning_rate: Any = None,
    recipe: Recipe | None = None,
    *,
    logit: int = 0,
    mapping: str = "auto",
    chunk_size: int = 0,
    num_devices: int = 0,
    progress: Progress | None = None,
    snapshots: Snapshots | None = None,
    **arrays: Any,
) -> Evolution:
    """Trains an ensemble and measures its geometry at the start and after every epoch: one step of
    the full batch where `recipe.batch_size` is the number of samples.

    Args:
      model, task, learning_rate, recipe, mapping, chunk_size, num_devices, snapshots, arrays: as of
        `train_many`.
      references: matrices [D, D] by name that the geometry is compared with: the second moment S of
        the data, G S G.
      points: [P, *input_shape] or [P, D], where gradients are taken, the same of all networks.
      seed: another one for each network [N], N ≥ 2.
      logit: whose gradients.
      progress: called with the number of networks done, a fraction as they advance together.

    All networks are held at once, each with some 16·D² bytes; chunks are not fitted to memory, in
    which a chunk of networks with their batches must have room.

    Source: GIH.

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    check_record("task", task, Task)
    check_function("progress", progress)
    check_record("model", model, Model)
    check_integer("logit", logit, 0, model.num_logits - 1)
    recipe, points = task.resolve_recipe(recipe), check_inputs("points", model, points)
    references = _check_references(references, points[0].size)
    execution = Execution(task.mapping if mapping == "auto" else mapping, chunk_size, num_devices)
    execution = choose_chunks(choose_mapping(model, recipe.batch_size, execution))
    rate = recipe.choose_learning_rate(learning_rate, task.learning_rate)
    members, seeds = make_members(model, task, arrays, rate, seed)
    task.check(recipe, members.arrays)
    if len(seeds) < 2:
        raise InputError(f"seed: must be of at least two networks, got {len(seeds)}")
    if len(np.unique(seeds)) < len(seeds):  # pairs of networks must be independent
        raise InputError(f"seed: must be another one for each network, got {seeds.tolist()}")

    @lru_cache(maxsize=1)
    def place(group: int) -> Any:
        data = task.data(model, recipe, group)
        return jax.device_put(data, ensemble.replicated(execution.devices))

    groups = [0] if task.shared else list(dict.fromkeys(seeds.tolist()))
    if not task.trusted:
        one = jax.tree.map(lambda leaf: leaf[0], members)
        check_task(model, recipe, task, place(groups[0]), one)
    size = execution.chunk_size
    cohorts = plan_cohorts(place, groups, task.shared, members, seeds, size)
    chunk = make_chunk(make_fit(model, recipe, task), execution)
    look = _make_look(model, task, recipe, points, logit, execution)
    ensemble_of = _Ensemble(chunk, cohorts, size, look, references)
    return ensemble_of.train(recipe.num_epochs, progress, snapshots)


def _check_references(references: Any, dimension: int) -> dict[str, np.ndarray]:
    """The matrices, each over its Frobenius norm."""
    if not isinstance(references, Mapping):
        raise InputError(f"references: must be matrices by name, got {references!r}")
    found = {}
    for name, matrix in references.items():
        matrix = host_array(f"references[{name!r}]", matrix, f"[{dimension}, {dimension}]")
        norm = np.linalg.norm(matrix)
        if not norm:
            raise InputError(f"references[{name!r}]: must not be zero")
        found[name] = np.asarray(matrix / norm, np.float32)
    return found


Look = Callable[[Any, Any, Any, Members], _Look]


def _make_look(
    model: Model, task: Task, recipe: Recipe, points: jax.Array, logit: int, execution: Execution
) -> Look:
    """Builds `look(variables, start, data, members)` of networks [n], compiled."""
    evaluate = make_evaluate(model, task, recipe, "train")

    def weights_of(variables: Any) -> list[jax.Array]:
        return split_trainable(model, variables)[0]

    def look_at(variables: Any, start: Any, member: Members, data: Any) -> _Look:
        def value(x: jax.Array) -> jax.Array:
            return model.apply(variables, x)[:, logit].sum()

        with jax.default_matmul_precision("highest"):
            rows = jax.grad(value)(points).reshape(len(points), -1)
            geometry = rows.T @ rows / len(points)
        accuracy, _, _ = evaluate(variables, data, member)
        # Whatever the precision of the network is: what a snapshot holds has one form.
        geometry, accuracy = (one.astype(jnp.float32) for one in (geometry, accuracy))
        pairs = list(zip(weights_of(variables), weights_of(start), strict=True))
        moved = sum(jnp.sum(jnp.abs(now - then) ** 2) for now, then in pairs)
        size = sum(jnp.sum(jnp.abs(then) ** 2) for _, then in pairs)
        return _Look(geometry, accuracy, jnp.sqrt(moved / size).astype(jnp.float32))

    def look(data: Any, variables: Any, start: Any, members: Members) -> _Look:
        one = partial(look_at, data=data)
        return ensemble.map_members(one, execution.mapping, variables, start, members)

    sharded = jax.jit(ensemble.shard_members(look, execution.devices))
    return lambda variables, start, data, members: sharded(data, variables, start, members)


class _Held(NamedTuple):
    """What an ensemble in training holds, in a snapshot as well.

    states: of each cohort. geometry: [N, D, D], of the last epoch. series: what was found so far.
    """

    states: list[Any]
    geometry: np.ndarray
    series: dict[str, np.ndarray]


class _Ensemble(NamedTuple):
    """Networks of several cohorts that advance together."""

    chunk: Stages
    cohorts: list[Cohort]
    size: int
    look: Look
    references: dict[str, np.ndarray]

    def train(
        self, num_epochs: int, progress: Progress | None, snapshots: Snapshots | None
    ) -> Evolution:
        count = sum(len(cohort.numbers) for cohort in self.cohorts)
        chunk = self.chunk
        starts = [chunk.variables(chunk.start(one.padded(self.size)[0])) for one in self.cohorts]
        held, begin = self._load(snapshots)
        for epoch in range(begin, num_epochs + 1):
            states, looks = [], []
            for n, cohort in enumerate(self.cohorts):
                data, (members, _) = cohort.data(), cohort.padded(self.size)
                state = (
                    chunk.epoch(held.states[n], data, members) if epoch else chunk.start(members)
                )
                found = self.look(chunk.variables(state), starts[n], data, members)
                states.append(jax.block_until_ready(state))
                kept = len(cohort.numbers)
                looks.append(jax.tree.map(lambda leaf, k=kept: np.asarray(leaf[:k]), found))
            held = self._add(held, states, self._in_order(looks))
            if epoch and snapshots is not None and snapshots.due():
                snapshots.save(epoch, {**flatten_tree(held), "epochs_done": np.asarray(epoch)})
            if progress is not None:
                progress(count * epoch / num_epochs)
        return self._finish(held)

    def _in_order(self, parts: list[Any]) -> Any:
        """Leaves of all cohorts [N, …], in the order of the networks."""
        back = np.argsort(np.concatenate([cohort.numbers for cohort in self.cohorts]))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *parts)

    def _add(self, held: _Held | None, states: list[Any], look: _Look) -> _Held:
        """What is held after one more epoch."""
        # In double precision: of a slow geometry 1 − cos is the rest of nearly equal products.
        flat = look.geometry.reshape(len(look.geometry), -1).astype(np.float64)
        new = {
            f"alignment:{name}": flat @ matrix.reshape(-1)
            for name, matrix in self.references.items()
        }
        new |= {"products": flat @ flat.T, "accuracy": look.accuracy, "distance": look.distance}
        if held is not None:
            new["steps"] = held.geometry.reshape(flat.shape).astype(np.float64) @ flat.T
        series = {} if held is None else held.series
        empty = np.zeros((0, len(flat), len(flat)), flat.dtype)
        series = {"steps": empty, **series}
        for name, values in new.items():
            so_far = series.get(name, np.zeros((0, *values.shape), values.dtype))
            series[name] = np.concatenate([so_far, values[None]])
        return _Held(states, look.geometry, series)

    def _load(self, snapshots: Snapshots | None) -> tuple[_Held | None, int]:
        """What a snapshot holds, and the next epoch; nothing and 0 where there is none."""
        if snapshots is None:
            return None, 0
        check_record("snapshots", snapshots, Snapshots)
        snapshots.bind({"chunk_size": self.size, "observed": sorted(self.references)})
        if (kept := snapshots.load()) is None:
            return None, 0
        states = [self.chunk.start(cohort.padded(self.size)[0]) for cohort in self.cohorts]
        single, double = np.zeros((), np.float32), np.zeros(())
        names = ["steps", "products", *(f"alignment:{name}" for name in self.references)]
        series = {**dict.fromkeys(names, double), "accuracy": single, "distance": single}
        like = _Held(states, single, series)
        held = restore_tree(like, kept)
        placed = jax.tree.map(lambda leaf: leaf.sharding, states)
        states = jax.device_put(held.states, placed)
        return held._replace(states=states), int(kept["epochs_done"]) + 1

    def _finish(self, held: _Held) -> Evolution:
        parts, last = [], ("losses", "test_accuracy", "diverged_at")
        for cohort, state in zip(self.cohorts, held.states, strict=True):
            members = cohort.padded(self.size)[0]
            metrics = self.chunk.finish(state, cohort.data(), members)
            wanted, kept = [getattr(metrics, name) for name in last], len(cohort.numbers)
            parts.append(jax.tree.map(lambda leaf, n=kept: np.asarray(leaf)[:n], wanted))
        found = dict(zip(last, self._in_order(parts), strict=True))
        found |= {name: held.series[name] for name in ("products", "steps", "accuracy", "distance")}
        alignments = {name: held.series[f"alignment:{name}"] for name in self.references}
        return Evolution(alignments, **found)
