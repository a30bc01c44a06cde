"""Which Fourier directions a model learns and which it cannot: test accuracies on D(v) against
chance.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from nad_jax.directions import dft_direction, half_space, spatial_shape
from nad_jax.errors import InputError, check_integer, check_number, check_record, host_array
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.tables import Row, Tabular, zip_columns
from nad_jax.training import train_many

# Above a half, in standard errors of a guess: one direction in 740 is taken for learned by chance.
_STANDARD_ERRORS = 3.0


class Learnability(NamedTuple):
    """Test accuracies of a model on D(v), v the real Fourier vectors of some frequencies.

    frequencies:  [K, A] integers, one for each axis but that of channels, in cycles per length of
      the axis; of images (vertical, horizontal).
    accuracy:     [K] mean over the seeds.
    accuracy_sem: [K] its standard error; of one seed that of the test samples alone.
    chance:       the accuracy up to which a direction counts as not learned: a half, and three
      standard errors of guesses of as many test samples.
    image_shape:  of one input.
    """

    frequencies: np.ndarray
    accuracy: np.ndarray
    accuracy_sem: np.ndarray
    chance: float
    image_shape: tuple[int, ...]

    @property
    def learned(self) -> np.ndarray:
        """Whether a direction is learned at all: [K]."""
        return self.accuracy > self.chance

    @property
    def cannot_learn(self) -> list[tuple[int, ...]]:
        """The frequencies whose accuracy is that of chance."""
        return [tuple(frequency) for frequency in self.frequencies[~self.learned].tolist()]

    def to_rows(self) -> list[Row]:
        """A row for each direction: its frequency along each axis, accuracy and standard error."""
        names = [f"frequency_{axis}" for axis in range(self.frequencies.shape[1])]
        columns = dict(zip(names, self.frequencies.T.tolist(), strict=True))
        columns |= {"accuracy": self.accuracy.tolist(), "accuracy_sem": self.accuracy_sem.tolist()}
        return zip_columns({**columns, "learned": self.learned.tolist()})

    rows, to_csv, to_dataframe = to_rows, Tabular.to_csv, Tabular.to_dataframe

    def plot(self) -> Any:
        """A figure of the accuracies over (vertical, horizontal) frequency; cells that were not
        tried are gray.

        Raises:
          InputError: for inputs that are no images.
        """
        from nad_jax import accuracy_plots  # matplotlib takes longer to import than all the rest

        if self.frequencies.shape[1] != 2:
            raise InputError(f"plot: draws maps of images, not of inputs {self.image_shape}")
        # v of frequency −f is v of frequency f.
        pairs = np.concatenate([self.frequencies, -self.frequencies])
        rows, columns = (np.unique(axis) for axis in pairs.T)
        cells = np.full((len(rows), len(columns)), np.nan)
        places = np.searchsorted(rows, pairs[:, 0]), np.searchsorted(columns, pairs[:, 1])
        cells[places] = np.tile(self.accuracy, 2)
        title = f"Accuracy on D(v), at most {self.chance:.1%} by chance"
        return accuracy_plots.plot_accuracy_maps({"": cells}, (rows, columns), title)

    def __repr__(self) -> str:
        hidden = self.cannot_learn
        listed = ", ".join(map(str, hidden[:4])) + ", …" * (len(hidden) > 4)
        return (
            f"Learnability({len(self.frequencies)} frequencies of inputs {self.image_shape}; "
            f"{len(hidden)} at chance (accuracy at most {self.chance:.1%})"
            f"{': ' + listed if hidden else ''}; "
            f"accuracy {self.accuracy.min():.1%} … {self.accuracy.max():.1%}; "
            f"fields: {', '.join(self._fields)})"
        )


def _grid(image_shape: tuple[int, ...], step: int) -> np.ndarray:
    """One frequency of each conjugate pair, every `step`-th along each axis: [K, A]."""
    frequencies = np.array(half_space(spatial_shape(image_shape)))
    return frequencies[(frequencies % step == 0).all(1)]


def learnable(
    model: Model,
    frequencies: Any = None,
    frequency_step: int = 3,
    num_seeds: int = 1,
    sigma: float = 3.0,
    epsilon: float = 1.0,
    channel: int = 0,
    *,
    recipe: Recipe | None = None,
    learning_rate: float | None = None,
    mapping: str = "auto",
    chunk_size: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Learnability:
    """Trains a network on D(v) for every frequency of v: what a model can learn and what it cannot.

    Source: NAD, Section 2, figure 1: at σ = 3 LeNet learns low frequencies alone, though the task
    is linearly separable along every v.

    Args:
      model: of two logits.
      frequencies: [K, A], of the cosines v; None: every `frequency_step`-th along each axis, one of
        each conjugate pair.
        An odd step, since strides of 2 fold frequencies onto each other: at all multiples of 4 a
        network may learn what it learns nowhere else.
      num_seeds: networks for each direction, with seeds 0, 1, …
      sigma, epsilon: standard deviation of the noise and half the distance of the classes, in units
        of the input.
      channel: in which v lives.
      recipe, learning_rate, mapping, chunk_size, progress: see `train_many`.

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    check_record("model", model, Model)
    num_seeds = check_integer("num_seeds", num_seeds, 1)
    sigma, epsilon = check_number("sigma", sigma, 0.0), check_number("epsilon", epsilon, 0.0)
    if frequencies is None:
        step = check_integer("frequency_step", frequency_step, 1)
        frequencies = _grid(model.image_shape, step)
    axes = len(spatial_shape(model.image_shape))
    given = host_array("frequencies", frequencies, f"[K, {axes}]")
    frequencies = given.astype(int)
    if (frequencies != given).any():
        raise InputError("frequencies: must be integers, in cycles per length of an axis")
    recipe = Recipe() if recipe is None else recipe
    rows = [dft_direction(model.image_shape, tuple(f), "cosine", channel) for f in frequencies]
    metrics = train_many(
        model,
        np.repeat(np.asarray(rows), num_seeds, axis=0),
        epsilon,
        sigma,
        learning_rate,
        np.tile(np.arange(num_seeds), len(rows)),
        recipe,
        mapping,
        chunk_size,
        progress=progress,
    )
    accuracy = np.asarray(metrics.test_accuracy, np.float64).reshape(len(rows), num_seeds)
    mean, samples = accuracy.mean(1), num_seeds * recipe.num_test
    sem = np.sqrt(mean * (1 - mean) / samples)
    if num_seeds > 1:
        sem = accuracy.std(1, ddof=1) / np.sqrt(num_seeds)
    chance = 0.5 + _STANDARD_ERRORS * np.sqrt(0.25 / samples)
    return Learnability(frequencies, mean, sem, float(chance), tuple(model.image_shape))
