"""The run folder of a study of numbers: what is stored, found again, refused, and computed anew."""

import json

import numpy as np
import pytest

from experiments import compute_nads, directional_bias
from experiments.run import dry_run, runner
from experiments.run.folder import Folder
from experiments.run.plan import Cost, Member, Program, Study
from experiments.run.shards import Shard
from nad_jax import store
from nad_jax.errors import InputError
from nad_jax.store import DamagedError
from tests.test_configs import load_config


def _square(work):
    numbers = np.array([member.what for member in work.members], float)
    return numbers**2


def _study(numbers, computed, collected=None, unit_size=0, **changes):
    """The squares of numbers, each with a curve of its own length where it is a file of its own."""

    def compute(work):
        computed.append([member.what for member in work.members])
        squares = _square(work)
        if unit_size:
            return {"square": squares}, 0
        (number,) = computed[-1]
        return {"square": squares[0], "steps": np.arange(number), "losses": np.ones(number)}, 0

    curves = {} if unit_size else {"steps": ("looks",), "losses": ("looks",)}
    study = Study(
        {"": {"power": 2}},
        [Member(f"number_{number}", "square", number) for number in numbers],
        lambda member: {"square": (), **curves},
        lambda member, chunk_size: Program(compute, 1, 1, {"chunk_size": 1}),
        lambda member: Cost(0.0, 0.0, 0),
        lambda folder, num_missing: (collected if collected is not None else []).append(
            ({m.what: float(a["square"]) for m, a in folder.stored()}, num_missing)
        ),
        unit_size=unit_size,
    )
    return study._replace(**changes)


@pytest.mark.parametrize("unit_size", [0, 1, 2, 5])
def test_members_are_found_by_their_names_however_they_are_grouped(unit_size, tmp_path):
    computed, collected = [], []
    assert runner.run(_study((1, 2, 3), computed, collected, unit_size), tmp_path)
    assert collected == [({1: 1.0, 2: 4.0, 3: 9.0}, 0)]
    assert [len(unit) for unit in computed] == {0: [1, 1, 1], 1: [1, 1, 1], 2: [2, 1], 5: [3]}[
        unit_size
    ]
    computed.clear()
    regrouped = unit_size + 1 if unit_size else 0
    assert runner.run(_study((3, 5, 1), computed, collected, regrouped), tmp_path)
    assert computed == [[5]] and collected[-1] == ({3: 9.0, 5: 25.0, 1: 1.0}, 0)


def _damage(path, arrays, kind):
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "array missing":
        store.write_npz(path, {name: array for name, array in arrays.items() if name != "square"})
    elif kind == "another shape":
        store.write_npz(path, {**arrays, "square": np.ones(3)})
    elif kind == "text":
        store.write_npz(path, {**arrays, "square": np.array("four")})
    elif kind == "curves of two lengths":
        store.write_npz(path, {**arrays, "losses": np.ones(7)})
    elif kind == "under another name":
        path.write_bytes(path.with_name("number_3.npz").read_bytes())


KINDS = ("truncated", "array missing", "another shape", "text", "curves of two lengths",
         "under another name")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_that_is_not_what_it_must_be_is_kept_aside_and_computed_again(kind, tmp_path):
    computed, collected = [], []
    runner.run(_study((2, 3), computed), tmp_path)
    path = tmp_path / "units" / "number_2.npz"
    content = path.read_bytes()
    _damage(path, store.read_npz(path), kind)
    folder = Folder(tmp_path, _study((2, 3), computed), repair=False)
    assert [unit.name for unit in folder.missing()] == ["number_2"] and path.exists()
    runner.run(_study((2, 3), computed, collected), tmp_path)
    assert computed == [[2], [3], [2]] and collected[0][0] == {2: 4.0, 3: 9.0}
    assert path.read_bytes() == content
    assert path.with_name("number_2.npz.corrupt").exists()


def test_what_a_unit_says_besides_and_what_an_experiment_checks_is_its_own(tmp_path):
    computed = []

    def saying(basis):
        study = _study((2,), computed)
        (member,) = study.members
        return study._replace(members=[member._replace(says={"basis": basis})])

    runner.run(saying("first"), tmp_path)
    runner.run(saying("first"), tmp_path)
    runner.run(saying("second"), tmp_path)
    assert computed == [[2], [2]]

    def refuse(member, arrays):
        raise DamagedError(f"{member.what} is no number")

    study = saying("second")._replace(check=refuse)
    with pytest.raises(runner.RunAgain, match="units were damaged after they had been written"):
        runner.run(study, tmp_path)


def test_json_units_are_read_as_suspiciously(tmp_path):
    computed, collected = [], []
    study = _study((2, 3), computed, collected, suffix=".json")
    program = Program(lambda work: ({"square": work.members[0].what ** 2}, 0), 1, 1, {})
    study = study._replace(
        make_program=lambda member, size: program, shapes=lambda member: {"square": ()}
    )
    assert runner.run(study, tmp_path)
    path = tmp_path / "units" / "number_2.json"
    assert json.loads(path.read_text())["square"] == 4
    for text in ("", "[]", path.read_text().replace("square", "root")):
        path.write_text(text)
        assert runner.run(study, tmp_path) and collected[-1][0] == {2: 4.0, 3: 9.0}
    with pytest.raises(InputError, match=r"power: folder 2, command 3"):
        runner.run(study._replace(identities={"": {"power": 3}}), tmp_path)


def _rounds(computed, number=0, total=3):
    """A study whose members are those of the round before times ten; its folder remembers it."""
    study = _study([10**number * n for n in (1, 2)], computed)

    def begun(folder):
        """How many rounds after the first have begun."""
        return sum(name.startswith("begun") for name in folder.names())

    def then(folder):
        if folder.missing():
            raise runner.RunAgain(f"round {number} is not over")
        begin = Member(f"begun_{number + 1}", "", 0, 0)
        folder.write(Folder(folder.workdir, study._replace(members=[begin])).units()[0],
                     {"square": 0.0, "steps": [], "losses": []}, {})  # fmt: skip
        return _rounds(computed, number + 1, total)

    return study._replace(
        round=(number, total),
        then=then if number + 1 < total else None,
        resume=lambda folder: _rounds(computed, begun(folder), total),
    )


def test_studies_follow_each_other_and_are_taken_up_where_they_are(tmp_path, capsys):
    computed = []
    shards = [Shard(0, 2), Shard(1, 2)]
    with pytest.raises(runner.RunAgain, match="round 0 is not over"):
        runner.run(_rounds(computed), tmp_path, shards[0])
    dry_run.describe(_rounds(computed), tmp_path)
    printed = capsys.readouterr().out
    assert "plan: 6 networks in 6 units; stored 1 networks, missing 5 networks" in printed
    with pytest.raises(runner.RunAgain, match="round 1 is not over"):
        runner.run(_rounds(computed), tmp_path, shards[1])
    assert runner.run(_rounds(computed), tmp_path)
    assert computed == [[1], [2], [20], [10], [100], [200]]
    assert runner.run(_rounds(computed), tmp_path) and len(computed) == 6
    dry_run.describe(_rounds(computed), tmp_path)
    assert "stored 6 networks, missing 0 networks in 0 units" in capsys.readouterr().out


def test_a_command_that_is_refused_does_not_take_the_place_of_the_last(tmp_path, monkeypatch):
    first, second = (json.dumps({"experiment": "", "fields": n}) for n in (1, 2))
    runner.run(_study((1,), []), tmp_path, said=first)
    kept = (tmp_path / "run.json", tmp_path / "progress" / "plan.json")
    before = [path.read_bytes() for path in kept]
    monkeypatch.setattr(runner.origin, "device_kind", lambda: "abacus")
    with pytest.raises(InputError, match="was computed with other versions"):
        runner.run(_study((1, 2), []), tmp_path, said=second)
    assert [path.read_bytes() for path in kept] == before
    runner.run(_study((1, 2), []), tmp_path, allow_other_versions=True, said=second)
    assert kept[0].read_text() == second


def test_how_networks_are_computed_is_not_what_they_are():
    config = load_config("compute_nads").get_config("lenet")
    identity = compute_nads.FIELDS.identity(config)
    config.update(mapping="vectorized", chunk_size=4, block_size=32, num_networks=7, compare="x")
    assert compute_nads.FIELDS.identity(config) == identity
    config.step = 1.0
    assert compute_nads.FIELDS.identity(config) == {**identity, "step": 1.0}


def test_a_field_that_came_later_changes_no_name_where_it_is_as_before():
    config = load_config("compute_nads").get_config("lenet")
    assert "width" not in compute_nads.FIELDS.identity(config)
    config.width = 32
    assert compute_nads.FIELDS.identity(config)["width"] == 32
    config = load_config("directional_bias").get_config("accuracy_map")
    config.update(source="pixel", indices=(3,), widths=(0, 32))
    assert directional_bias.FIELDS.command(config)["widths"] == (0, 32)
    before, wide = directional_bias.make_networks(config)
    assert "width" not in before.name and json.loads(wide.name)["width"] == 32
    assert before.program == ("lenet", "default", "sgd", 10_000)
    assert wide.program == (*before.program, 32)
    assert [network.what.coordinates["width"] for network in (before, wide)] == [0, 32]


@pytest.mark.parametrize("experiment", [compute_nads, directional_bias])
def test_the_fields_of_a_recipe_file_are_the_known_ones(experiment):
    config = load_config(experiment.FIELDS.experiment).get_config()
    with config.unlocked():
        config.num_network = 3
        del config.chunk_size
    with pytest.raises(InputError) as caught:
        experiment.validate(config)
    missing, unknown = str(caught.value).splitlines()
    assert missing == "chunk_size: field is missing"
    assert unknown.startswith("config field: unknown value 'num_network'")
