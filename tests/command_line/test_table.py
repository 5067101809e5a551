"""Every table at every width: ids and numbers are whole, names go on in the next line, what is missing is counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import StringIO
from itertools import pairwise

import pytest
from forks import fedshare
from learning import WHY, Learning, keep_aside
from parts import CoordinatorHere, order, small_home
from rich.console import Console

from fedshare.federation_file import Task
from fedshare.results import Results, TaskResult, show
from fedshare.run import View
from fedshare.screen import Screen
from protos.fedshare.v1 import federation_pb2 as pb
from workers.ray_host import Glimpse

WIDTHS = (40, 60, 80, 100, 120)
PIPED = 0
TASK, WORKER, ODD = "t" + 93 * "a" + "1", "w" + 93 * "b" + "1", "odd-" + 91 * "c"
TABLES = {
    "versions": {"version", "task", "worker"},
    "status": {"worker", "task"},
    "show 5": {"task", "error"},
    "quarantine": {"update", "task", "worker"},
}
"""By command, the columns that are shown at any width."""
HEADER = re.compile(r"(version|worker|task|update) +(task|worker|stage|since|version|error)\b")
MISSING = re.compile(r"(\d+) columns? do(?:es)? not fit: widen the terminal")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a coordinator with long names, rollbacks, a compaction, a collection and two updates in quarantine."""
    with CoordinatorHere(small_home(tmp_path_factory.mktemp("wide") / "home")) as coordinator:
        learning = Learning(coordinator)
        learning.learn(f"{TASK}@{WORKER}", base=0)
        learning.learn("b", base=0)
        order(coordinator, rollback=pb.Rollback(version=1))
        order(coordinator, rollback=pb.Rollback(version=2))
        order(coordinator, compact=pb.Compact(size=3))
        order(coordinator, collect=pb.Collect(keep=3))
        keep_aside(learning, ODD, base=3)
        keep_aside(learning, "odder", base=3)
        yield coordinator.address


def printed(address: str, command: str, width: int) -> list[str]:
    """By `fedshare`, in a terminal of this width or piped, which COLUMNS must not narrow."""
    terminal = {"TTY_COMPATIBLE": "1", "LINES": "50"} if width else {}
    ended = fedshare(*command.split(), "-c", address, COLUMNS=str(width or 40), **terminal)
    assert (ended.returncode, ended.stderr) == (0, "")
    return lines_of(ended.stdout)


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in ESCAPES.sub("", text).splitlines()]


def table_of(lines: list[str]) -> list[str]:
    first = max(i for i, line in enumerate(lines) if HEADER.match(line))
    ends = (i for i, line in enumerate(lines) if i > first and (MISSING.match(" ".join(lines[i:])) or not line))
    return lines[first : next(ends, None)]


def columns(table: list[str]) -> dict[str, str]:
    """By heading all that is below it, joined: sentences under a row are left out."""
    headings = list(re.finditer(r"\S+(?: \S+)*", table[0]))
    starts = [*(heading.start() for heading in headings), 1_000]
    rows = [line for line in table[1:] if not re.match(r"  \S", line)]
    cells = ("".join(line[start:end].strip() for line in rows) for start, end in pairwise(starts))
    return dict(zip((heading[0] for heading in headings), cells, strict=True))


def left_out(lines: list[str]) -> int:
    found = MISSING.search(" ".join(lines))
    return int(found[1]) if found else 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", TABLES)
def test_in_a_terminal_nothing_is_cut_and_what_is_left_out_is_counted(address: str, command: str, width: int):
    lines, whole = printed(address, command, width), columns(table_of(printed(address, command, PIPED)))
    shown = columns(table_of(lines))
    assert max(map(len, table_of(lines))) <= width
    assert shown == {heading: whole[heading] for heading in shown}
    assert shown.keys() >= TABLES[command] and left_out(lines) == len(whole) - len(shown)


@pytest.mark.parametrize("command", TABLES)
def test_what_is_piped_is_whole_whatever_the_terminals_width_is(address: str, command: str):
    lines = printed(address, command, PIPED)
    names = {"quarantine": (ODD, f"{ODD}-worker"), "show 5": (TASK,)}.get(command, (TASK, WORKER))
    assert any(all(name in line for name in names) for line in table_of(lines)) and not left_out(lines)


@pytest.mark.parametrize("width", [PIPED, *WIDTHS])
def test_quarantine_gives_whole_ids_and_reasons_at_any_width(address: str, width: int):
    with_ids = columns(table_of(lines := printed(address, "quarantine", width)))
    assert re.fullmatch("[0-9a-f]{24}", with_ids["update"])
    assert lines.count(f"  {WHY}") == 2


@pytest.mark.parametrize("width", [PIPED, *WIDTHS])
def test_kinds_of_versions_are_whole_at_any_width(address: str, width: int):
    text = "\n".join(printed(address, "versions", width))
    assert text.count("(rollback)") == 2 and "(compact)" in text


def drawn(width: int, draw) -> list[str]:
    file = StringIO()
    draw(Console(file=file, force_terminal=True, width=width, height=100))
    return lines_of(file.getvalue())


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_that_ends_a_run_has_whole_numbers_at_any_width(width: int):
    task = TaskResult(TASK, WORKER, 13, 12, 0.98765, 0.91234, None, 9e-8, 123_456_789, 987_654_321)
    lines = drawn(width, lambda console: show(Results("wide", 13, [task], {}, 1, 2), console))
    table = lines[1 : next(i for i, line in enumerate(lines) if not line or MISSING.match(" ".join(lines[i:])))]
    assert max(map(len, table)) <= width
    numbers = {cell for line in table for cell in line.split() if re.fullmatch(r"[\d.,]+x?", cell)} - {"1"}
    assert {"91.2"} <= numbers <= {"13", "98.8", "91.2", "123,456,789", "987,654,321", "8.0x"}
    shown = [word for word in ("task", "version", "learned", "at head", "sent", "as LoRA", "ratio")
             if word in f"{table[0]}\n{table[1]}"]  # fmt: skip
    assert left_out(lines) == 7 - len(shown)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_screen_of_a_run_has_whole_numbers_at_any_width(width: int):
    known = {"stage": "watching", "version": 12_345, "accuracy": 0.98765, "fraction": 1.0}
    view = View([Glimpse(WORKER, known)], [Task(name=TASK)], 3.0, [])

    def picture(console: Console) -> None:
        with Screen(console, 2) as screen:
            screen.show(view)

    lines = drawn(width, picture)
    shown = columns(table_of(lines))
    assert shown["worker"] == f"{WORKER}{TASK}-worker" and shown["accuracy"] == "0.988"
    assert shown.get("on version", "12345") == "12345" and left_out(lines) == 5 - len(shown)
