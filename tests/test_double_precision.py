"""Everything runs where JAX is in double precision, and gives the same numbers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

PROGRAM = Path(__file__).with_name("double_precision.py")


def test_double_precision_changes_nothing_but_rounding(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[1])}
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-W", "error", PROGRAM, tmp_path / f"{name}.npz", name],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("single", "double")
    }
    for name, process in processes.items():
        message = process.communicate()[1]
        assert process.returncode == 0, f"{name}: {message[-3000:]}"
    with np.load(tmp_path / "single.npz") as single, np.load(tmp_path / "double.npz") as double:
        assert sum(name.endswith("float64") for name in double.files) > 10
        for name in double.files:
            expected = single[name if name in single.files else name.replace("float64", "float32")]
            np.testing.assert_allclose(
                double[name], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max(), err_msg=name
            )
