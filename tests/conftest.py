"""Test-wide settings, and the published arrays where they are at hand."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def published():
    """`published(name)` is the path of a published file; skips where NAD_PUBLISHED does not lead to it."""
    folder = os.environ.get("NAD_PUBLISHED")

    def find(name: str) -> Path:
        if not folder:
            pytest.skip(f"needs {name} of the published arrays: set NAD_PUBLISHED to their folder")
        path = Path(folder) / name
        if not path.exists():
            pytest.skip(f"needs {path}, which is missing")
        return path

    return find
