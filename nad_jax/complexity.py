"""Sample complexity: the fewest training samples with which networks pass an accuracy, and how it
grows.

Source of the question: Lahoti, Karp, Winston, Singh, Li, Role of Locality and Weight Sharing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from nad_jax.ensemble import Execution
from nad_jax.errors import (
    InputError,
    check_integer,
    check_number,
    check_record,
    host_array,
    shown,
)
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.task import Task
from nad_jax.tasks.separable import check_num_samples
from nad_jax.training import make_run


class SampleComplexity(NamedTuple):
    """What a bisection has found.

    size: the smallest of the sizes tried whose mean accuracy over seeds is at least the threshold;
      None: not even the largest.
    tried: the sizes [T] that networks were trained with, ascending.
    accuracies: on the test samples, [T, S], one for each seed.
    """

    size: int | None
    tried: np.ndarray
    accuracies: np.ndarray


def sample_complexity(
    model: Model,
    task: Task,
    sizes: Sequence[int],
    threshold: float = 0.9,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    recipe: Recipe | None = None,
    learning_rate: float | None = None,
    mapping: str = "auto",
    **arrays: Any,
) -> SampleComplexity:
    """The smallest of some numbers of training samples at which the test accuracy of networks, in
    the mean over seeds, is at least a threshold: by bisection, so it should not fall with n.

    About 1 + log₂ of the number of sizes are trained with each seed, all by one compiled program:
    the number of steps is that of the recipe, whatever n is (see `tasks.dynamic_signal`).

    Args:
      model: with an output for each class.
      task: one that takes `num_samples`, such as `tasks.dynamic_signal`.
      sizes: the numbers to choose from, even, ascending, at most `num_train` of the recipe.
      threshold: in (0, 1].
      seeds: different ones.
      recipe, learning_rate: default: the task's.
      mapping: of the networks of a seed, see `Execution`.
      **arrays: those of the task but `num_samples`, of one network: signal=[d], sigma=0.5.

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    check_record("task", task, Task)
    if "num_samples" not in task.arrays:
        raise InputError("task: must take num_samples, as tasks.dynamic_signal does")
    recipe, threshold = task.resolve_recipe(recipe), check_threshold(threshold)
    sizes, seeds = check_sizes(sizes, recipe.num_train), _check_seeds(seeds)
    for name, instead in (("num_samples", "sizes"), ("seed", "seeds")):
        if name in arrays:
            raise InputError(f"{name}: is not taken, give {instead}; got {shown(arrays[name])}")
    run = make_run(model, task, recipe, Execution(mapping))
    found: dict[int, np.ndarray] = {}

    def passes(size: int) -> bool:
        given = {**arrays, "num_samples": size}
        each = {name: np.stack([np.asarray(one)] * len(seeds)) for name, one in given.items()}
        found[size] = run(each, learning_rate, seeds).test_accuracy
        return bool(_single(found[size].mean(dtype=np.float64)) >= _single(threshold))

    first = bisect_first(passes, sizes)
    tried = sorted(found)
    return SampleComplexity(first, np.array(tried), np.stack([found[size] for size in tried]))


def _single(accuracies: Any) -> Any:
    """Accuracies as they are compared with a threshold, to the precision that those of networks
    have: 9 of 10 samples pass .9, in the mean over seeds too.
    """
    return np.float64(np.float32(accuracies))


def _listed(name: str, values: Any) -> list[Any]:
    try:
        return list(values)
    except TypeError:
        raise InputError(f"{name}: must be integers [N], got {shown(values)}") from None


def _check_seeds(seeds: Any) -> np.ndarray:
    seeds = [check_integer("seeds", seed, 0, 2**32 - 1) for seed in _listed("seeds", seeds)]
    if len(set(seeds)) != len(seeds) or not seeds:
        raise InputError(f"seeds: must be different ones, one at least, got {seeds}")
    return np.array(seeds)


def check_threshold(threshold: float) -> float:
    """Returns a threshold of accuracies; raises `InputError` unless it is in (0, 1]."""
    if check_number("threshold", threshold, 0.0, exclusive=True) > 1:
        raise InputError(f"threshold: must be at most 1, got {threshold!r}")
    return float(threshold)


def check_sizes(sizes: Sequence[int], most: int) -> list[int]:
    """Returns numbers of training samples; raises `InputError` unless they are even, ascending and
    at most so large.
    """
    sizes = [check_num_samples("sizes", size) for size in _listed("sizes", sizes)]
    if not sizes or sorted(set(sizes)) != sizes or sizes[-1] > most:
        raise InputError(f"sizes: must ascend, up to num_train = {most}, got {sizes}")
    return sizes


def bisect_first(passes: Callable[[int], bool], sizes: Sequence[int]) -> int | None:
    """The first of ascending sizes that passes, where all after it do; None where the last does
    not. About 1 + log₂ of their number are asked.
    """
    if not passes(sizes[-1]):
        return None
    fails, last = -1, len(sizes) - 1
    while last - fails > 1:
        middle = (fails + last) // 2
        fails, last = (fails, middle) if passes(sizes[middle]) else (middle, last)
    return sizes[last]


def passing_sizes(sizes: np.ndarray, accuracies: np.ndarray, threshold: float) -> np.ndarray:
    """Where curves of accuracy first reach a threshold: between two sizes, log n is interpolated
    linearly in the accuracy.

    Args:
      sizes: n, [T], above 0, ascending.
      accuracies: [..., T], compared with the threshold in single precision, which networks have.
      threshold: in (0, 1].

    Returns: [...]; `sizes[0]` where the first already does, inf where none does.

    Raises:
      InputError: for other shapes, and for values that are not as above.
    """
    sizes = _check_grid(sizes)
    accuracies = _single(host_array("accuracies", accuracies, f"[..., {len(sizes)}]"))
    threshold = _single(check_threshold(threshold))
    passed = accuracies >= threshold
    first = passed.argmax(-1)[..., None]
    before = np.maximum(first - 1, 0)
    low, high = (np.take_along_axis(accuracies, one, -1) for one in (before, first))
    share = (threshold - low) / np.where(high > low, high - low, 1.0)
    logs = np.log(sizes)
    found = np.exp(logs[before] + share * (logs[first] - logs[before]))[..., 0]
    return np.where(passed.any(-1), found, np.inf)


def _check_grid(sizes: Any) -> np.ndarray:
    """Numbers of samples [T] in float64; raises `InputError` unless they ascend from above 0."""
    sizes = host_array("sizes", sizes, "[T]")
    if sizes[0] <= 0 or (np.diff(sizes) <= 0).any():
        raise InputError(f"sizes: must be above 0 and ascend, got {shown(sizes.tolist())}")
    return sizes


class Scaling(NamedTuple):
    """How sample complexity grows with a scale, n ∝ scale^slope.

    slope, slope_error: of least squares of log n on log scale, and its standard error; nan for
      fewer than two scales.
    sizes: n, [P], as of `passing_sizes`.
    low, high: [P], between which 68 % of the bootstrap samples lie; nan for one seed.
    used: [P], which of them the slope is of: those with n finite and above the smallest size.
    """

    slope: float
    slope_error: float
    sizes: np.ndarray
    low: np.ndarray
    high: np.ndarray
    used: np.ndarray


def fit_scaling(
    scales: Sequence[float],
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    threshold: float,
    num_draws: int = 1000,
) -> Scaling:
    """The sizes at which mean accuracies pass a threshold, and their slope over a scale.

    Errors are those of bootstrap samples of the seeds, the same seeds at every scale: the standard
    deviation of their slopes. Samples in which a scale that is used does not pass are left out.
    The accuracies of a sample are √(S/(S − 1)) as far from the mean of all S seeds as drawn: so
    their variance is that of a mean over seeds, which plain bootstrap samples fall short of. The
    intervals are no wider for so few seeds that the variance itself is uncertain.

    Args:
      scales: [P], above 0, different.
      curves: of each scale, the sizes [T] and the accuracies [T, S] of S seeds.
      threshold: in (0, 1].
      num_draws: bootstrap samples, two at least.

    Raises:
      InputError: for other shapes, for curves of different numbers of seeds, and for values that
        are not as above.
    """
    scales, curves = host_array("scales", scales, "[P]"), _check_curves(curves)
    if (scales <= 0).any() or len(set(scales.tolist())) < len(scales):
        raise InputError(f"scales: must be above 0 and different, got {shown(scales.tolist())}")
    if len(curves) != len(scales) or len({one.shape[1] for _, one in curves}) > 1:
        raise InputError("curves: must be one for each scale, of equally many seeds")
    num_seeds, num_draws = curves[0][1].shape[1], check_integer("num_draws", num_draws, 2)
    chosen = np.random.default_rng(0).integers(num_seeds, size=(num_draws, num_seeds))
    wider = math.sqrt(num_seeds / max(num_seeds - 1, 1))
    found, drawn = [], []
    for sizes, one in curves:
        mean = one.mean(1)
        found.append(passing_sizes(sizes, mean, threshold))
        samples = mean + wider * (one[:, chosen].mean(2).T - mean)
        drawn.append(passing_sizes(sizes, samples, threshold))
    found, drawn = np.stack(found), np.stack(drawn)
    used = np.isfinite(found) & (found > [sizes[0] for sizes, _ in curves])
    slope, slopes = (_slope(scales[used], one[used]) for one in (found[:, None], drawn))
    several = num_seeds > 1
    low, high = np.quantile(drawn, (0.16, 0.84), axis=1, method="nearest")
    return Scaling(
        float(slope[0]),
        float(np.std(slopes[np.isfinite(slopes)])) if several and used.sum() > 1 else np.nan,
        found,
        np.where(several, low, np.nan),
        np.where(several, high, np.nan),
        used,
    )


def _check_curves(curves: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sizes [T] and accuracies [T, S] of each curve in float64; raises `InputError` for others."""
    try:
        pairs = [(sizes, accuracies) for sizes, accuracies in curves]
    except (TypeError, ValueError):
        raise InputError(
            f"curves: must be pairs (sizes, accuracies), got {shown(curves)}"
        ) from None
    grids = [_check_grid(sizes) for sizes, _ in pairs]
    return [
        (grid, host_array("accuracies", accuracies, f"[{len(grid)}, S]"))
        for grid, (_, accuracies) in zip(grids, pairs, strict=True)
    ]


def _slope(scales: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The slopes [M] of least squares of log sizes [P, M] on log scales [P]; nan for fewer than two,
    and where a size is infinite.
    """
    if len(scales) < 2:
        return np.full(sizes.shape[1], np.nan)
    logs = np.log(scales) - np.log(scales).mean()
    with np.errstate(invalid="ignore"):
        return logs @ np.log(sizes) / (logs @ logs)
