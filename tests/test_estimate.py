import pytest

from experiments import compute_nads, directional_bias, trained
from experiments.run import costs
from experiments.run.costs import largest_chunk
from nad_jax import Execution
from tests.test_configs import load_config


@pytest.mark.parametrize(
    ("most", "multiple", "limit", "chunk_size"),
    [
        (32, 1, 10_000, 32),
        (32, 1, 1000, 8),
        (32, 1, 100, 1),
        (32, 4, 1000, 8),
        (3, 4, 1, 4),
        (33, 2, 10_000, 32),
    ],
)
def test_the_most_networks_are_taken_that_fit(most, multiple, limit, chunk_size):
    asked = []

    def needs(size):
        asked.append(size)
        return 100 + 100 * size

    assert largest_chunk(needs, most, multiple, limit) == chunk_size
    assert asked in ([], [multiple, 2 * multiple])  # two compilations


def test_memory_is_that_of_the_machine_and_programs_need_more_for_more_networks():
    assert 2**30 < costs.device_bytes() < 2**50
    config = load_config("directional_bias").get_config("accuracy_map")
    config.update(
        image_shape=(16, 16, 1), num_train=(64,), num_test=64, batch_size=16, mapping="vectorized"
    )
    member = directional_bias.make_networks(config)[0]
    assert member.program == ("lenet", "default", "sgd", 64)
    setup = directional_bias._make_setup(config, member)
    two, four = (
        costs.training_bytes(setup, member.what.arrays, Execution("vectorized", size, 1))
        for size in (2, 4)
    )
    assert two < four < 2 * two


def test_sweeps_choose_what_fits_and_keep_what_is_given(monkeypatch):
    limits = []

    def remember(needs, most, multiple, limit):
        limits.append((most, multiple, limit))
        return 2

    monkeypatch.setattr(trained, "largest_chunk", remember)
    monkeypatch.setattr(costs, "largest_chunk", remember)
    config = load_config("directional_bias").get_config("accuracy_map")
    study = directional_bias.make_study(config)
    member = study.members[0]
    assert study.make_program(member, 0).chunk_size == 1 and not limits  # sequential on a CPU
    config.mapping = "vectorized"
    study = directional_bias.make_study(config)
    assert study.make_program(member, 4).chunk_size == 4 and not limits
    assert study.make_program(member, 0).chunk_size == 2
    assert limits == [(32, 1, costs.device_bytes() // 2)]
    config = load_config("compute_nads").get_config("mlp")
    config.update(mapping="vectorized", readout="sampled")
    study = compute_nads.make_study(config)
    assert study.make_program(study.members[0], 0).chunk_size == 2
    assert limits[1:] == [(120, 2, costs.device_bytes() // 2)]
