"""What goes wrong next: at the step that a run aims at, or after some steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random

from .points import COORDINATOR, DISK_FULL, HANG, KILL, NEEDS_ROOM, POWER_CUT, WORKERS, Due, Faults

POINTS = Path(__file__).with_name("points.txt")
CLEANS_UP = ("unlink", "rmdir", "blob_place.editions")
SWEEP = "coordinator: blobs.Blobs.sweep, before commit"
"""Cut off here, it may go on for all that those know who come after it."""
STEPS_MAX = 40
"""A life of a worker has so many durable steps."""


@cache
def known() -> tuple[str, ...]:
    return tuple(POINTS.read_text().splitlines()) if POINTS.exists() else ()


def arm(faults: Faults, rng: Random, target: str) -> None:
    if target and rng.random() < 0.6 and not (faults.aim and faults.aim.point == target):
        faults.aim = _aim(rng, target)
    if _cleans_up(target) and rng.random() < 0.5:
        faults.due = Due(DISK_FULL, rng.randint(1, STEPS_MAX), side=target.partition(":")[0])
    elif rng.random() < 0.8:
        kind = rng.choice((KILL, KILL, POWER_CUT, DISK_FULL, HANG))
        side = COORDINATOR if kind == HANG else rng.choice((COORDINATOR, COORDINATOR, WORKERS))
        faults.due = Due(kind, rng.randint(1, STEPS_MAX), side=side)


def _aim(rng: Random, target: str) -> Due:
    """Where the target cleans up after something, that goes wrong first."""
    may_be_full = NEEDS_ROOM.match(target.partition(", ")[2])
    aim = Due(rng.choice((KILL, POWER_CUT, DISK_FULL) if may_be_full else (KILL, POWER_CUT)), point=target)
    if not _cleans_up(target) or rng.random() < 0.2:
        return aim
    kind, points = _before(target)
    return Due(kind, point=rng.choice(points), then=aim) if points else aim


def _before(target: str) -> tuple[str, Sequence[str]]:
    """How and where it may go wrong, so that it comes to the target."""
    function = target.partition(", ")[0]
    if "blob_place.editions" in target:
        return KILL, [SWEEP]
    if function.endswith("__init__"):  # it clears what a life before has left of this file
        file = target.rpartition(" ")[2]
        puts = [point for point in known() if point.startswith(function.replace("__init__", "put"))]
        return KILL, [point for point in puts if point.endswith(f"after fsync {file}")] or puts
    return DISK_FULL, [p for p in known() if p.startswith(f"{function}, ") and NEEDS_ROOM.match(p.partition(", ")[2])]


def _cleans_up(target: str) -> bool:
    return any(step in target for step in CLEANS_UP) and "Folder.delete" not in target


def command_for(target: str) -> str:
    """The kind of command that leads to it; empty: none does."""
    if any(step in target for step in ("sweep", "blob_place.editions", "Folder.delete", "set_aside")):
        return "collect"
    return target.partition(" for a ")[2].partition(",")[0]
