"""The short form of `make crash`: some hundred runs of the walk, killed at every durable step that they come to."""

from __future__ import annotations

import pytest

from .campaign import Campaign, campaign

RUNS = 150
FIRST = 1_000_000

ESSENTIAL = (
    "coordinator: blobs.Blobs.put, before rename *.safetensors",
    "coordinator: blobs.Blobs.put, before fsync blobs",
    "coordinator: journal.Journal.append, before commit",
    "coordinator: journal.Journal.append, inside commit",
    "coordinator: journal.Journal.append, after commit",
    "coordinator: catalog.Catalog.publish, before commit",
    "coordinator: catalog.Catalog.publish, inside commit",
    "coordinator: catalog.Catalog.publish, after commit",
    "coordinator: members.Members.join, inside commit",
    "workers: outbox.Outbox.put, before replace header.json",
    "workers: outbox.Outbox.put, after replace header.json",
    "workers: outbox.Outbox.done, after unlink header.json",
)


@pytest.fixture(scope="module")
def crashed() -> Campaign:
    return campaign(range(FIRST, FIRST + RUNS))


def test_nothing_is_lost_and_nothing_doubled_wherever_it_is_killed(crashed: Campaign):
    assert crashed.failed == {}
    assert crashed.runs == RUNS and crashed.counts["versions"] > RUNS


def test_every_essential_step_was_killed_before_and_after_it(crashed: Campaign):
    assert [point for point in ESSENTIAL if not crashed.crashed[point]] == []


def test_runs_met_every_kind_of_trouble(crashed: Campaign):
    kinds = (
        "kill", "power cut", "disk full", "clock jumps", "replies lost", "requests doubled", "requests sent again",
        "restarts", "refused lives", "versions taken back", "versions erased",
    )  # fmt: skip
    assert [kind for kind in kinds if not crashed.counts[kind]] == []


def test_seed_is_enough_to_do_a_run_again():
    first, again = (campaign([FIRST]) for _ in range(2))
    assert first.crashed == again.crashed and first.counts == again.counts
