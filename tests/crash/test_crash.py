"""The short form of `make crash`: some hundred runs of the walk, killed at every durable step that they come to."""

from __future__ import annotations

import pytest

from .campaign import AIMED, ESSENTIAL, Campaign, campaign

RUNS = 160
TRIES_MAX = 30
"""More runs that aim at an essential step which none has hit yet."""


@pytest.fixture(scope="module")
def crashed() -> Campaign:
    found = campaign(range(AIMED, AIMED + RUNS), jobs=2)
    for number, point in enumerate(ESSENTIAL):
        for turn in range(TRIES_MAX):
            if found.crashed[point]:
                break
            found.add(campaign([AIMED + number + len(ESSENTIAL) * (RUNS + turn)]))
    return found


def test_nothing_is_lost_and_nothing_doubled_wherever_it_is_killed(crashed: Campaign):
    assert crashed.failed == {}
    assert crashed.runs >= RUNS and crashed.counts["versions"] > RUNS


def test_every_essential_step_was_killed_before_and_after_it(crashed: Campaign):
    assert [point for point in ESSENTIAL if not crashed.crashed[point]] == []


def test_runs_met_every_kind_of_trouble(crashed: Campaign):
    kinds = (
        "kill", "power cut", "disk full", "clock jumps", "replies lost", "requests doubled", "requests sent again",
        "restarts", "refused lives", "versions taken back", "versions erased", "versions collected", "batches",
        "weighted", "buffered", "superseded", "too stale", "quarantined", "judgements", "rejected", "compactions",
        "collections", "stated anew", "commands of its own", "takeovers", "stood by", "rivals refused",
    )  # fmt: skip
    assert [kind for kind in kinds if not crashed.counts[kind]] == []


def test_seed_is_enough_to_do_a_run_again():
    first, again = (campaign([AIMED]) for _ in range(2))
    assert first.crashed == again.crashed and first.counts == again.counts
