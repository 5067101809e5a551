"""compact, collect, quarantine, accept and reject: in words, with --json as JSON, and one sentence for mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from forks import fedshare
from learning import WHY, Learning, keep_aside, learned
from parts import CoordinatorHere, one_sentence, small_home

Give = Callable[..., CompletedProcess[str]]


@pytest.fixture
def learning(tmp_path: Path) -> Iterator[Learning]:
    with CoordinatorHere(small_home(tmp_path / "home")) as coordinator:
        yield learned(coordinator)


@pytest.fixture
def give(learning: Learning, monkeypatch: pytest.MonkeyPatch) -> Give:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("FEDSHARE_COORDINATOR", learning.coordinator.address)
    return fedshare


def said(ended: CompletedProcess[str]) -> str:
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_compact_says_what_it_made_and_versions_show_it(give: Give):
    assert said(give("compact", "--size", 5)).startswith("version 5: 8 and 8 columns became 5 and 5; 3 tasks, each")
    line = said(give("versions")).splitlines()[-1].split()
    assert line[:2] == ["5", "(compact)"] and "5+5" in line
    shown = json.loads(said(give("show", 5, "--json")))
    assert (shown["kind"], shown["generation"]) == ("VERSION_KIND_COMPACT", 1)
    errors = {t["task"]: t["relative_error"] for t in shown["manifest"]["tasks"]}
    assert max(errors.values()) == shown["largest_error"] > 0.01
    assert "generation 1" in said(give("status"))
    assert json.loads(said(give("compact", "--tolerance", 0.5, "--json")))["version"] == 6


def test_show_says_of_every_task_how_true_it_is_and_where_that_is_a_bound(give: Give, learning: Learning):
    give("compact", "--size", 5)
    learning.learn("d", base=4)
    give("compact", "--size", 4)
    shown = said(give("show", 7)).splitlines()[-4:]
    assert [line.split()[0] for line in shown] == ["a", "b", "c", "d"]
    assert all(" <= " in line for line in shown[:3]) and " <= " not in shown[3]


def test_diff_shows_what_a_compaction_cost_each_task(give: Give):
    give("compact", "--size", 5)
    found = json.loads(said(give("diff", 4, 5, "--json")))
    assert set(found["changed"]) == {"a", "b", "c"} and max(found["changed"].values()) > 0.01


def test_collect_leaves_the_records_and_says_so(give: Give):
    assert said(give("collect", "--keep", 1)) == "3 versions up to 3 were collected; 0 updates stated anew\n"
    assert [line.split()[-1] for line in said(give("versions")).splitlines()[1:4]] == ["collected"] * 3
    assert one_sentence(give("show", 2)) == "version 2 was collected: only its record is left"
    assert (
        one_sentence(give("collect", "--keep", 1)) == "not done: nothing to collect: 1 versions can be read, 1 are kept"
    )


def test_quarantine_lists_what_waits_and_accept_and_reject_judge_it(give: Give, learning: Learning):
    assert said(give("quarantine")) == "nothing waits\n" and json.loads(said(give("quarantine", "--json"))) == []
    first, second = (keep_aside(learning, task) for task in ("odd", "odder"))
    lines = said(give("quarantine")).splitlines()
    assert [line.split()[:2] for line in lines[1::2]] == [[first[:12], "odd"], [second[:12], "odder"]]
    assert lines[2::2] == [f"  {WHY}"] * 2
    assert [a["update_id"] for a in json.loads(said(give("quarantine", "--json")))] == [first, second]
    assert "2 quarantined" in said(give("status"))
    assert said(give("accept", first[:8])) == f"version 5: update {first[:12]} for task odd was accepted\n"
    assert json.loads(said(give("reject", second, "--json")))["outcome"] == "OUTCOME_DONE"
    assert said(give("story", second)).splitlines()[-1].split()[2] == "rejected"
    assert "5 merged, 0 queued, 0 skipped, 1 rejected\n" in said(give("status"))
    assert json.loads(said(give("status", "--json")))["rejected"] == 1
    assert one_sentence(give("accept", second)) == f"not done: update {second} is not in quarantine: it is rejected"


MISTAKES = {
    "neither size nor tolerance": (("compact",), "say either --size or --tolerance"),
    "both": (("compact", "--size", 3, "--tolerance", 0.1), "say either --size or --tolerance"),
    "a tolerance of 1": (("compact", "--tolerance", 1), "--tolerance must be between 0 and 1, not 1"),
    "a tolerance that is no number": (
        ("compact", "--tolerance", "nan"),
        "--tolerance must be between 0 and 1, not nan",
    ),
    "a replay's tolerance that is no number": (
        ("replay", "--tolerance", "nan"),
        "--tolerance must be a number from 0 on, not nan",
    ),
    "a size that is there already": (("compact", "--size", 99), "not done: nothing to compact to 99 a side"),
    "an update that is not there": (("accept", "abcdef"), "no update has an id that starts with 'abcdef'"),
    "a prefix that is too short": (("reject", "abc"), "no update has an id that starts with 'abc' (give 6 or more"),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_is_one_sentence(give: Give, mistake: tuple[tuple[object, ...], str]):
    args, sentence = mistake
    assert one_sentence(give(*args)).startswith(sentence)


@pytest.mark.parametrize("args", [("compact", "--size", 0), ("collect", "--keep", 0), ("collect",)], ids=str)
def test_number_that_is_none_is_refused_before_anything_is_asked(give: Give, args: tuple[object, ...]):
    ended = give(*args)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
