"""How many networks an error takes, in closed form and measured."""

import numpy as np
import pytest

import nad_jax
from experiments import compute_nads
from experiments.run import dry_run
from nad_jax.errors import InputError
from tests.test_configs import load_config


def _model(initialization="he", **options):
    return nad_jax.create_model("mlp", (20,), width=20, initialization=initialization, **options)


def _estimate(readout, count=1_000, **how):
    return nad_jax.estimate_nads(
        _model(), count, derivative="input_gradient", readout=readout, **how
    )


def _measured(nads):
    """The record without its closed form."""
    return nads._replace(config={n: v for n, v in nads.config.items() if n != "kurtosis"})


@pytest.mark.parametrize(
    ("readout", "kappa", "needed"), [("marginalized", 1.5625, 5_625), ("sampled", 4.6875, 36_875)]
)
def test_records_know_how_many_networks_an_error_takes(readout, kappa, needed):
    nads = _estimate(readout)
    assert nads.kurtosis().exact and nads.kurtosis(3).value == pytest.approx(kappa)
    assert nads.networks_needed(0.01) == needed
    found = _measured(nads).kurtosis()
    assert not found.exact and found.num_networks == 1_000
    assert (found.value - 1) / (kappa - 1) == pytest.approx(1, abs=0.5)
    one = _measured(nads).kurtosis(3)
    expected = 1 + 1_000 * (nads.eigenvalue_sem[3] / nads.eigenvalues[3]) ** 2
    assert one.value == pytest.approx(expected)
    assert repr(one).endswith("measured from 1000 networks)")


@pytest.mark.parametrize(
    ("initialization", "how"),
    [
        ("reference", {}),
        ("sigma:1.4:0.1", {}),
        ("he", {"points": np.ones((2, 20), np.float32)}),
        ("he", {"readout": "sampled", "num_readouts": 2}),
        ("he", {"readout": "sampled", "centred": True}),
        ("he", {"derivative": "central_difference"}),
    ],
)
def test_the_closed_form_is_for_its_assumptions_alone(initialization, how):
    how = {"derivative": "input_gradient", **how}
    nads = nad_jax.estimate_nads(_model(initialization), 32, **how)
    assert not nads.kurtosis().exact and nads.kurtosis().value > 1


def test_several_points_and_read_outs_leave_fewer_networks_to_take():
    x = np.random.default_rng(0).normal(size=(8, 20)).astype(np.float32)
    plain = _measured(_estimate("sampled")).networks_needed(0.1)
    for how in ({"points": x}, {"num_readouts": 8}):
        assert _estimate("sampled", **how).networks_needed(0.1) < 0.8 * plain


def test_records_that_do_not_say_are_refused():
    few, x = _measured(_estimate("sampled", 4)), np.ones((20, 20), np.float32)
    one = _estimate("sampled", 1, points=x)
    for nads in (few, one):
        with pytest.raises(InputError, match=r"^kurtosis: needs 8 batches of networks"):
            nads.networks_needed(0.1)
    with pytest.raises(
        InputError, match=r"^relative_error: must be a finite number greater than 0"
    ):
        _estimate("sampled", 16).networks_needed(0.0)
    with pytest.raises(InputError, match=r"^index: must be an integer in 0 … 19"):
        _estimate("sampled", 16).networks_needed(0.1, 20)


def _say(tmp_path, capsys, measure=True, **changes):
    config = load_config("compute_nads").get_config("mlp")
    config.update({"image_shape": (5, 4, 1), "width": 20, "unit_size": 20, "num_networks": 200})
    config.update({"derivative": "input_gradient", "symmetrized": False, **changes})
    dry_run.describe(compute_nads.make_study(config), tmp_path / "run", measure=measure)
    lines = capsys.readouterr().out.splitlines()
    return [line.strip() for line in lines if "relative error" in line]


def test_a_dry_run_says_which_error_the_networks_have(tmp_path, capsys):
    assert not _say(tmp_path, capsys, measure=False, initialization="he")
    (line,) = _say(tmp_path, capsys, initialization="he")
    assert line == (
        "relative error of vᵀGv 5.3% with 200 networks, 1% takes 5625 (κ = 1.56, exact)"
    )
    # The same law, which is not known to have a closed form where it is averaged over mirror images.
    how = {"initialization": "he", "readout": "sampled", "symmetrized": True}
    (line,) = _say(tmp_path, capsys, **how)
    kappa = float(line.split("κ = ")[1].split(",")[0])
    assert "measured from " in line
    assert (kappa - 1) / 3.6875 == pytest.approx(1, abs=0.5)
