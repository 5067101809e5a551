"""The short form of `make crash ARGS="--processes"`: real processes over real gRPC, killed with SIGKILL."""

from __future__ import annotations

from pathlib import Path

import pytest

from .processes import storm

KILLS = 30


@pytest.mark.timeout(280)
def test_nothing_is_lost_and_nothing_doubled_when_processes_are_killed(tmp_path: Path):
    found = storm(tmp_path, KILLS, seed=15)
    assert found["kills of coordinator"] >= 3 and sum(n for what, n in found.items() if "kills" in what) == KILLS
    assert found["updates"] >= KILLS / 3 and found["receipts"] + found["refused"] >= found["updates"]
