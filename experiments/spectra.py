"""What a sweep of ensembles says of their spectra: columns of its table, and figures."""

from pathlib import Path

from experiments import results
from nad_jax import sweep_plots
from nad_jax.nads import NADs
from nad_jax.spectrum_metrics import SpectrumMetrics, spectrum_metrics
from nad_jax.summary import name_derivative
from nad_jax.tables import Row


def measure(result: NADs) -> SpectrumMetrics | None:
    """The metrics of its spectrum; None of records that lack what these are made of."""
    if result.batches is None or not result.batch_spectra.shape[1]:
        return None
    return spectrum_metrics(result)


def list_metrics(result: NADs) -> Row:
    """The metrics of its spectrum as columns, each followed by its standard error."""
    found, row = measure(result), {}
    for one in [] if found is None else found.to_rows():
        row |= {one["metric"]: one["value"], f"{one['metric']}_sem": one["sem"]}
    return row


def draw(workdir: Path, found: dict[str, NADs], formats: tuple[str, ...]) -> list[Path]:
    """Draws `spectra`, and `metrics` of those records that have them, by what tells them apart."""
    configs = [nads.config for nads in found.values()]
    said = {name_derivative(one["derivative"], one.get("step", 0)) for one in configs}
    title = ", ".join([f"{len(found)} geometries", *sorted(said)])
    figures = {
        "spectra": sweep_plots.plot_spectra(
            {label: nads.eigenvalues for label, nads in found.items()}, f"Spectra of {title}"
        )
    }
    metrics = {label: measure(nads) for label, nads in found.items()}
    known = {label: one for label, one in metrics.items() if one is not None}
    if known:
        figures["metrics"] = sweep_plots.plot_metrics(known, f"How isotropic: {title}")
    return results.save_figures(workdir, figures, formats)
