"""What any command may meet: paths that cannot be used, a full disk behind the output, arguments without a word."""

from __future__ import annotations

import click
import pytest
import typer
from forks import fedshare, fedshare_process
from parts import one_sentence

from fedshare.app import app

LONG = "x" * 300


@pytest.mark.parametrize(
    "command",
    [
        "run {toml} --home {toml}",
        "run {toml} --home {toml}/home",
        "run {toml} --data {long}",
        "run {toml} --home {long}",
        "demo --home {toml}/home",
        "worker --task t --data {long} -c 127.0.0.1:1",
        "worker --task t --data {toml}/x -c 127.0.0.1:1",
        "export --task t --to {long}",
        "check --home {long}",
        "coordinator {toml} --home {long} --port 0",
    ],
)
def test_path_that_cannot_be_used_is_one_sentence(federation_toml, command: str):
    words = command.format(toml=federation_toml, long=federation_toml.parent / LONG).split()
    ended = fedshare(*words)
    [said] = ended.stderr.splitlines()
    assert ended.returncode == 2 and said.startswith("error: ") and str(federation_toml.parent) in said
    assert said.rpartition(": ")[2] in ("File exists", "Not a directory", "File name too long")


def test_task_without_data_stops_a_run_before_anything_is_started(federation_toml, tmp_path):
    said = one_sentence(fedshare("run", federation_toml, "--home", tmp_path / "home", "--tasks", "colour, nope"))
    assert said.startswith("there is no folder ") and "/nope: name one with train.csv" in said
    assert not (tmp_path / "home").exists()


def test_disk_that_is_full_behind_what_is_printed_is_one_sentence(walk, tmp_path):
    err = tmp_path / "err"
    process = fedshare_process("status", "-c", walk.coordinator.address, out="/dev/full", err=err)
    process.join(60)
    assert (process.exitcode, err.read_text()) == (2, "error: cannot use what is printed: No space left on device\n")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--task", "../x"), "--task '../x' is not a name"),
        (("--task", LONG), "--task 'xxx"),
        (("--task", "a", "--name", "b/c"), "--name 'b/c' is not a name"),
        (("--task", "a", "--patience-seconds", "nan"), "--patience-seconds must be a number of seconds, not nan"),
        (("--task", "a", "--data", "hf:"), "hf: names no dataset"),
    ],
    ids=str,
)
def test_workers_mistake_is_found_before_a_folder_is_made(walk, tmp_path, monkeypatch, option, said: str):
    monkeypatch.chdir(tmp_path)
    ended = fedshare("worker", "--data", walk.tasks / "colour", "-c", walk.coordinator.address, *option)
    assert one_sentence(ended).startswith(said)
    if "hf:" not in option:
        assert list(tmp_path.iterdir()) == []


def test_worker_looks_for_its_data_before_it_waits_for_a_coordinator(tmp_path):
    said = one_sentence(fedshare("worker", "--task", "t", "--data", tmp_path / "none", "-c", "127.0.0.1:1"))
    assert said.startswith(f"there is no folder {tmp_path / 'none'}")


def test_worker_that_waits_says_so_also_where_there_is_no_terminal(tasks, tmp_path):
    home = ("--home", tmp_path / "home", "--patience-seconds", 1)
    ended = fedshare("worker", "--task", "colour", "--data", tasks / "colour", "-c", "127.0.0.1:1", *home)
    first, last = ended.stderr.splitlines()
    assert first == "no coordinator answers: waiting for it" and last.startswith("error: no coordinator answers at")


def test_every_command_and_every_parameter_has_a_word_of_help():
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) and len(group.commands) > 15
    for name, command in group.commands.items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_coordinator_without_a_home_takes_the_only_one_or_names_those_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert one_sentence(fedshare("coordinator")) == (
        "say which home, with --home, or name a federation FILE: there is none in fedshare-home yet"
    )
    for name in ("first", "second"):
        (tmp_path / "fedshare-home" / name).mkdir(parents=True)
        (tmp_path / "fedshare-home" / name / "journal.sqlite").touch()
    assert one_sentence(fedshare("coordinator")).endswith(": fedshare-home/first, fedshare-home/second")
    (tmp_path / "fedshare-home" / "second" / "journal.sqlite").unlink()
    assert "fedshare-home/first" in one_sentence(fedshare("coordinator", "--port", 0))
