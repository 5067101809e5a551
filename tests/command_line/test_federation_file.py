"""A mistake in a federation file is one sentence that says where it is, and exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from forks import fedshare
from parts import federation_text, one_sentence

from fedshare.errors import UserError
from fedshare.federation_file import read_federation_file, with_sources
from protos.fedshare.v1 import federation_pb2 as pb
from protos.policy import policy_of
from workers.errors import WorkerError

MISTAKES = {
    "an unknown key": ('name = "x"\ncolour = 1', "colour: Extra inputs are not permitted"),
    "an unknown key in a section": ('name = "x"\n[recipe]\nepoch = 1', "recipe.epoch: Extra inputs are not permitted"),
    "no name": ("seed = 1", "name: Field required"),
    "a name with a slash": ('name = "a/b"', "name: 'a/b' is not a name"),
    "a name beyond 100 characters": (f'name = "{"a" * 101}"', "name: 'aaa"),
    "text for a number": ('name = "x"\n[subspace]\nrank = "many"', "subspace.rank: Input should be a valid integer"),
    "a rank of zero": ('name = "x"\n[subspace]\nrank = 0', "subspace.rank: Input should be greater than or equal to 1"),
    "a tolerance of one": (
        'name = "x"\n[subspace]\ntolerance = 1.0',
        "subspace.tolerance: Input should be less than 1",
    ),
    "directions of three bits": (
        'name = "x"\n[subspace]\ndirection_bits = 3',
        "subspace.direction_bits: Input should be 4 or 8",
    ),
    "columns of an empty start": (
        'name = "x"\n[subspace]\nstart = "empty"\nstart_columns = 8',
        "subspace: start_columns means nothing to an empty start",
    ),
    "an unknown start": ('name = "x"\n[subspace]\nstart = "W0"', "subspace.start: Input should be 'empty', 'seed'"),
    "an empty start without directions": (
        'name = "x"\n[subspace]\nstart = "empty"\nnew_directions = 0',
        "subspace: with an empty start a task needs new_directions: 1 or more",
    ),
    "a negative seed": ('name = "x"\nseed = -1', "seed: Input should be greater than or equal to 0"),
    "a seed beyond 64 bits": (f'name = "x"\nseed = {2**64}', "seed: Input should be less than"),
    "epochs that are infinite": (
        'name = "x"\n[recipe]\nepochs = inf',
        "recipe.epochs: Input should be a finite number",
    ),
    "no target module": ('name = "x"\n[base]\ntarget_modules = []', "base.target_modules: List should have at least 1"),
    "a doubled task": ('name = "x"\n[[tasks]]\nname = "t"\n[[tasks]]\nname = "t"', "two tasks are named 't'"),
    "a task with a hostile name": ('name = "x"\n[[tasks]]\nname = "../t"', "tasks.0.name: '../t' is not a name"),
    "a task without a name": ('name = "x"\n[[tasks]]\nsource = "t"', "tasks.0.name: Field required"),
    "mixing for replace": (
        'name = "x"\n[[policies]]\nmixing = 0.5',
        "policies.0: mixing means nothing to replace",
    ),
    "a buffer for fedasync": (
        'name = "x"\n[[policies]]\nkind = "fedasync"\nbuffer_size = 2',
        "policies.0: buffer_size means nothing to fedasync",
    ),
    "a slope for the constant rule": (
        'name = "x"\n[[policies]]\nkind = "fedasync"\na = 1',
        "policies.0: a means nothing to the rule constant",
    ),
    "two policies for one task": (
        'name = "x"\n[[policies]]\ntask = "t"\n[[policies]]\ntask = "t"',
        "two policies are for t",
    ),
    "mixing of zero": (
        'name = "x"\n[[policies]]\nkind = "fedasync"\nmixing = 0',
        "policies.0.mixing: Input should be greater than 0",
    ),
    "an unknown kind of policy": (
        'name = "x"\n[[policies]]\nkind = "mean"',
        "policies.0.kind: Input should be 'replace'",
    ),
    "deviations below zero": ('name = "x"\n[quarantine]\ndeviations_max = -1', "quarantine.deviations_max: Input"),
    "a section that is a number": ('name = "x"\nrecipe = 3', "recipe: Input should be"),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_is_one_sentence_with_the_file_and_the_place(tmp_path: Path, mistake: tuple[str, str]):
    text, sentence = mistake
    file = tmp_path / "federation.toml"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        read_federation_file(file)
    assert str(raised.value).startswith(f"{file}: {sentence}") and "\n" not in str(raised.value)


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "bad TOML": (lambda file: file.write_text("name = "), "cannot be read: Invalid value (at end of document)"),
    "bytes that are not text": (lambda file: file.write_bytes(b"name = \xff"), "cannot be read: 'utf-8'"),
    "a folder": (lambda file: file.mkdir(), "cannot be read: "),
}


@pytest.mark.parametrize("mistake", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, mistake: tuple[Callable[[Path], object], str]):
    make, sentence = mistake
    file = tmp_path / "federation.toml"
    make(file)
    with pytest.raises(UserError) as raised:
        read_federation_file(file)
    assert str(raised.value).startswith(f"{file} {sentence}") and "\n" not in str(raised.value)


def test_commands_end_with_the_sentence_and_exit_code_2(tmp_path: Path):
    file = tmp_path / "federation.toml"
    assert one_sentence(fedshare("run", file)) == f"there is no federation file {file}"
    file.write_text("name = ")
    assert one_sentence(fedshare("coordinator", file, "--home", tmp_path / "home")).startswith(f"{file} cannot be read")
    file.write_text('name = "x"\ncolour = 1')
    assert one_sentence(fedshare("run", file)) == f"{file}: colour: Extra inputs are not permitted"
    assert list(tmp_path.iterdir()) == [file]


def test_base_model_without_the_wanted_modules_is_one_sentence(tmp_path: Path, tiny_base: Path, tasks: Path):
    file = tmp_path / "federation.toml"
    text = federation_text(tiny_base, tasks)
    file.write_text(text.replace("[subspace]", 'target_modules = ["q_proj", "v_proj"]\n[subspace]'))
    with pytest.raises(UserError, match=f"^{tiny_base} has no linear layer named q_proj or v_proj$"):
        read_federation_file(file).spec()


@pytest.mark.parametrize(
    "columns, budget, sentence",
    [
        (33, 0, r"start_columns is 33, but bert\S+ has room for 32"),
        (16, 15, "the start's 16 columns are more than columns_max, 15: every merge would compact"),
    ],
)
def test_more_columns_at_the_start_than_there_is_room_for_are_one_sentence(
    tmp_path: Path, tiny_base: Path, tasks: Path, columns: int, budget: int, sentence: str
):
    file = tmp_path / "federation.toml"
    text = federation_text(tiny_base, tasks, start="weights", start_columns=columns)
    file.write_text(f"{text}[budget]\ncolumns_max = {budget}\n")
    with pytest.raises(UserError, match=f"^{sentence}$"):
        read_federation_file(file).spec()


@pytest.mark.parametrize(
    "said, kind, columns, new",
    [
        ({}, pb.START_KIND_WEIGHTS, 32, 0),  # as many as there is room for
        ({"start": "seed", "start_columns": 16}, pb.START_KIND_SEED, 16, 0),
        ({"new_directions": 2}, pb.START_KIND_WEIGHTS, 32, 2),
        ({"start": "empty"}, pb.START_KIND_EMPTY, 0, 8),
    ],
)
def test_tasks_begin_in_coefficients_only_unless_the_start_is_empty(
    tmp_path: Path, tiny_base: Path, tasks: Path, said: dict[str, object], kind: pb.StartKind, columns: int, new: int
):
    file = tmp_path / "federation.toml"
    file.write_text(federation_text(tiny_base, tasks, **{"rank": 4, **said}).replace("rank = 4\nrank = 4", "rank = 4"))
    spec = read_federation_file(file).spec()
    assert spec.start == pb.Start(kind=kind, columns=columns) and spec.directions.first == new


def test_target_modules_are_those_whose_name_ends_so(federation_toml: Path):
    modules = [m.name for m in read_federation_file(federation_toml).spec().modules]
    layers = [f"bert.encoder.layer.{n}.attention.self" for n in (0, 1)]
    assert sorted(modules) == sorted(f"{layer}.{side}" for layer in layers for side in ("query", "value"))


def test_budget_and_versions_reach_the_spec_and_a_budget_leaves_room_by_itself(federation_toml: Path, tmp_path: Path):
    plain = read_federation_file(federation_toml).spec()
    assert (plain.budget.columns_max, plain.versions_kept) == (0, 0)
    for said, after in (("columns_max = 40", 30), ("columns_max = 40\ncolumns_after = 25", 25)):
        file = tmp_path / "federation.toml"
        file.write_text(f"{federation_toml.read_text()}\n[budget]\n{said}\n[versions]\nkept = 50\n")
        spec = read_federation_file(file).spec()
        assert (spec.budget.columns_max, spec.budget.columns_after, spec.versions_kept) == (40, after, 50)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("columns_max = 9\ncolumns_after = 9", "columns_after must be smaller than columns_max"),
        ("columns_after = 9", "columns_after must be smaller than columns_max"),
        ("columns_max = 1", "columns_max must be at least 2, so that a compaction can make room"),
    ],
)
def test_budget_that_makes_no_room_is_one_sentence(tmp_path: Path, said: str, sentence: str):
    file = tmp_path / "federation.toml"
    file.write_text(f'name = "x"\n[budget]\n{said}\n')
    with pytest.raises(UserError, match=rf"budget: .*{sentence}$"):
        read_federation_file(file)


def test_file_without_tasks_means_every_task_of_the_data_folder(federation_toml: Path, tasks: Path):
    file = with_sources(read_federation_file(federation_toml), federation_toml.parent)
    assert {task.name: task.source for task in file.tasks} == {
        name: str(tasks / name) for name in ("animal", "colour", "number")
    }


def test_command_line_names_tasks_instead_of_the_file(federation_toml: Path, tasks: Path):
    parsed = read_federation_file(federation_toml)
    file = with_sources(parsed, federation_toml.parent, names=" colour,number,")
    assert [task.name for task in file.tasks] == ["colour", "number"]
    with pytest.raises(UserError, match=r"^--tasks: '\.\./x' is not a name of a task$"):
        with_sources(parsed, federation_toml.parent, names="../x")


def test_data_folder_that_is_not_there_is_one_sentence(federation_toml: Path, tmp_path: Path):
    with pytest.raises(WorkerError, match=f"^{tmp_path}/nothing is not a folder"):
        with_sources(read_federation_file(federation_toml), tmp_path, data=str(tmp_path / "nothing"))


def test_policies_in_the_file_are_those_that_the_coordinator_is_told(federation_toml: Path, tmp_path: Path):
    file = tmp_path / "federation.toml"
    lines = (
        *("[[policies]]", 'kind = "fedasync"', 'rule = "hinge"', "a = 10", "b = 4", "staleness_max = 9"),
        *("[[policies]]", 'task = "colour"', 'kind = "fedbuff"', "buffer_size = 3"),
        *("[[policies]]", 'task = "animal"'),
    )
    file.write_text(federation_toml.read_text() + "\n".join(lines))
    spec = read_federation_file(file).spec()
    number, colour, animal = (policy_of(spec.policies, task) for task in ("number", "colour", "animal"))
    assert (number.kind, number.mixing, number.rule) == (pb.POLICY_KIND_FEDASYNC, 0.6, pb.STALENESS_RULE_HINGE)
    assert (number.a, number.b, number.staleness_max) == (10, 4, 9)
    assert (colour.kind, colour.mixing, colour.buffer_size) == (pb.POLICY_KIND_FEDBUFF, 1, 3)
    assert (colour.rule, colour.a) == (pb.STALENESS_RULE_POLYNOMIAL, 0.5) and not colour.HasField("staleness_max")
    assert (animal.task, animal.kind) == ("animal", pb.POLICY_KIND_REPLACE)
    assert policy_of((), "any") == pb.Policy()
