"""Results as rows: for pandas, for CSV files, and in one line for a reader."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from nad_jax import store
from nad_jax.errors import as_path, first_line, known

Row = dict[str, Any]


def format_table(rows: list[Row], columns: tuple[str, ...]) -> str:
    """The rows as CSV; numbers with the digits that a float32 has."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        floats = {n: f"{v:.7g}" for n, v in row.items() if isinstance(v, float | np.floating)}
        writer.writerow({**row, **floats})
    return text.getvalue()


def zip_columns(columns: dict[str, Any]) -> list[Row]:
    """One row for each place of columns of equal length."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class Tabular:
    """Methods of records whose method `to_rows` gives a dictionary for each row of a table.

    `rows` is its earlier name, which every record has, too.
    """

    def to_csv(self, path: str | Path) -> None:
        """Writes the rows as CSV; raises `InputError` where the file cannot be written."""
        rows = self.rows()
        store.write_text(as_path("path", path), format_table(rows, tuple(rows[0])))

    def to_dataframe(self) -> Any:
        """The rows as a `pandas.DataFrame`; raises `ImportError` where pandas is not installed."""
        try:
            import pandas  # which nothing else needs
        except ImportError as error:
            raise ImportError(
                f"to_dataframe: needs pandas, which cannot be imported ({first_line(error)}); "
                "install it (pip install pandas), or take to_rows()"
            ) from error
        return pandas.DataFrame(self.rows())


def list_metrics(record: Any) -> tuple[str, ...]:
    """The names of those metrics of a record, or its type, that are numbers, one a network."""
    others = ("losses", "variables", "observed", "settings")
    return tuple(name for name in record._fields if name not in others)


class Metrics(Tabular):
    """Methods of the records of trained networks."""

    def to_rows(self) -> list[Row]:
        """A row for each network: its number, what it was trained with, and every metric that is a
        number.

        A setting that has the name of another column is in `task_` and this name.
        """
        columns = {name: np.atleast_1d(getattr(self, name)) for name in list_metrics(self)}
        taken, settings = {"network", *columns}, getattr(self, "settings", None) or {}
        said = {f"task_{n}" if n in taken else n: values for n, values in settings.items()}
        numbers = range(len(columns["test_accuracy"]))
        return zip_columns({"network": numbers, **said, **columns})

    rows = to_rows

    def plot(self) -> Any:
        """A figure of the minibatch losses and the test accuracies."""
        from nad_jax import accuracy_plots  # matplotlib takes longer to import than the rest

        return accuracy_plots.plot_training(np.asarray(self.losses), np.asarray(self.test_accuracy))

    def __repr__(self) -> str:
        name, accuracy = type(self).__name__, known(self.test_accuracy)
        if accuracy is None or accuracy.ndim != 1:  # traced, or of one network
            return f"{name}(test_accuracy={self.test_accuracy}, …)"
        mean, low, high = accuracy.mean(), accuracy.min(), accuracy.max()
        text = f"{name}({len(accuracy)} networks, test accuracy {mean:.1%} ({low:.1%} … {high:.1%})"
        text += f", {np.shape(self.losses)[-1]} steps"
        if diverged := (np.asarray(self.diverged_at) >= 0).sum():
            text += f", {diverged} diverged"
        if more := [n for n in ("variables", "observed") if getattr(self, n) is not None]:
            text += f", with {' and '.join(more)}"
        return f"{text}; fields: {', '.join(list_metrics(self))}, losses)"
