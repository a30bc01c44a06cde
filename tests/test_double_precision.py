"""Everything runs where JAX is in double precision, and gives the same numbers."""

import numpy as np

from tests.commands import Command
from tests.double_precision import write


def test_double_precision_changes_nothing_but_rounding(tmp_path):
    processes = {
        name: Command(str(tmp_path / f"{name}.npz"), name, program=write)
        for name in ("single", "double")
    }
    for name, process in processes.items():
        assert process.wait() == 0, f"{name}: {process.errors[-3000:]}"
    with np.load(tmp_path / "single.npz") as single, np.load(tmp_path / "double.npz") as double:
        assert sum(name.endswith("float64") for name in double.files) > 10
        for name in double.files:
            expected = single[name if name in single.files else name.replace("float64", "float32")]
            np.testing.assert_allclose(
                double[name], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max(), err_msg=name
            )
