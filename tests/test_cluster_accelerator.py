"""A job that asked for an accelerator does not compute without one."""

from types import SimpleNamespace

import jax
import pytest

from experiments.run.accelerator import EXTRAS, check_accelerator
from nad_jax.errors import InputError
from tests.commands import Command
from tests.test_launch import SWEEP


@pytest.mark.parametrize("expected", ["gpu", "tpu"])
def test_a_command_that_requires_an_accelerator_stops_where_jax_finds_a_cpu(expected, tmp_path):
    command = [*SWEEP, f"--workdir={tmp_path / 'run'}", f"--require_accelerator={expected}"]
    process = Command(*command)
    assert process.wait() == 2
    assert process.errors == (
        f"error: require_accelerator: expected a {expected.upper()}, JAX found "
        f"{jax.local_devices()[0]}; its JAX comes with "
        f"pip install -e '.[{EXTRAS[expected]}]'\n"
    )
    assert not (tmp_path / "run").exists()


def test_what_is_no_accelerator_is_refused(tmp_path):
    process = Command(*SWEEP, f"--workdir={tmp_path / 'run'}", "--require_accelerator=cuda")
    assert process.wait() == 2 and not (tmp_path / "run").exists()
    assert process.errors.startswith("error: require_accelerator: unknown value 'cuda'")


def _find(monkeypatch, *platforms):
    devices = [SimpleNamespace(platform=platform) for platform in platforms]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


def test_all_devices_must_be_of_the_kind_that_is_expected(monkeypatch):
    _find(monkeypatch, "gpu", "gpu")
    check_accelerator("gpu")
    with pytest.raises(InputError, match=r"expected a TPU, JAX found .*gpu"):
        check_accelerator("tpu")
    _find(monkeypatch, "tpu", "cpu")
    with pytest.raises(InputError, match=r"expected a TPU, JAX found .*tpu.*cpu"):
        check_accelerator("tpu")


def test_a_platform_that_jax_cannot_start_is_one_line(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'tpu': UNAVAILABLE\nmore")

    monkeypatch.setattr(jax, "local_devices", fail)
    with pytest.raises(InputError) as caught:
        check_accelerator("tpu")
    assert "JAX found nothing (Unable to initialize backend 'tpu'" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
