"""benchmarks.families with our own column only: the other libraries are no dependency of this project."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from benchmarks.families import FAMILIES, PROBES, alone, compared, run, table
from benchmarks.family_probes.ours import ShareAlgo
from benchmarks.family_probes.probe import FAILS, HOLDS, Outcome, Place, Probe

CHEAP = [probe for probe in PROBES if probe.family in (1, 2, 7, 8, 9)]


@pytest.mark.parametrize("probe", CHEAP, ids=lambda probe: f"{probe.family} {probe.name}")
@pytest.mark.filterwarnings("ignore")
def test_share_algo_holds_in_every_probe_of_the_cheap_families(probe: Probe, tmp_path: Path):
    outcome = run(probe, ShareAlgo, Place(tmp_path))
    assert outcome.verdict == HOLDS, outcome


def test_each_of_the_ten_families_has_probes():
    assert {probe.family for probe in PROBES} == set(FAMILIES) == set(range(1, 11))


def _raise(*_: object) -> Outcome:
    raise TypeError("no such thing\nand more")


def _spin(*_: object) -> Outcome:
    while True:
        time.process_time()


@pytest.mark.parametrize(
    ("misbehave", "cell"),
    [(_raise, "raised TypeError"), (_spin, "cut off at 1 s"), (lambda *_: os._exit(3), "its process died (3)")],
)
def test_probe_that_raises_spins_or_dies_is_a_result_that_fails(misbehave, cell):
    outcome = alone(Probe(1, "misbehaves", misbehave, seconds=1), ShareAlgo, full=False)
    assert (outcome.cell, outcome.verdict) == (cell, FAILS)


def test_only_the_best_library_within_one_percent_holds_in_a_comparison():
    outcomes = compared([Outcome("", "", 1.0), Outcome("", "", 1.009), Outcome("", "", 1.02), Outcome("died", FAILS)])
    assert [o.verdict for o in outcomes] == [HOLDS, HOLDS, FAILS, FAILS]


def test_table_counts_what_holds_and_shows_the_first_that_does_not():
    bad, good = PROBES[0], PROBES[1]
    lines = table({good: {"ours": Outcome("fine", HOLDS)}, bad: {"ours": Outcome("lost", FAILS)}}).splitlines()
    assert lines[-1] == f"| 1 | {FAMILIES[1]} | 1 of 2; {bad.name}: lost |"
