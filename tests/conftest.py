"""Test-wide settings, and the published arrays where they are at hand."""

import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest

from nad_jax import target

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)

# Large programs that several tests compile are compiled once, also by processes that tests start.
# Keeping the many small ones costs a fifth of the time, and almost none is asked for again.
_KEPT_FROM = 0.5  # seconds of compilation
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="nad_jax_programs_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(_KEPT_FROM)
    # Most of the time goes into compilation: a fifth less where programs are not optimized, and
    # again less than half without fusion emitters, which newer versions of JAX cannot do without,
    # and again a third less where a program is not split into parts for threads to compile.
    emitters = " --xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
    whole = "--xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", f"--xla_backend_optimization_level=0 {whole}{emitters}")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # each core has a process of its own
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", _KEPT_FROM)


@pytest.fixture(scope="session", autouse=True)
def one_device():
    """Computes on one device unless a test says otherwise: `target.compiled_for`."""
    with target.compiled_for(jax.devices()[:1]):
        yield


@pytest.fixture(scope="session")
def published():
    """`published(name)` is the path of a published file; skips where NAD_PUBLISHED does not lead to
    it.
    """
    folder = os.environ.get("NAD_PUBLISHED")

    def find(name: str) -> Path:
        if not folder:
            pytest.skip(f"needs {name} of the published arrays: set NAD_PUBLISHED to their folder")
        path = Path(folder) / name
        if not path.exists():
            pytest.skip(f"needs {path}, which is missing")
        return path

    return find


def pytest_collection_modifyitems(items):
    """Marks what `make test` leaves out."""
    lines = Path(__file__).with_name("thorough.txt").read_text(encoding="utf-8").splitlines()
    listed = {f"tests/{line}" for line in lines if not line.startswith("#")}
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.thorough)


def pytest_unconfigure():
    """Forgets the compiled programs."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
