"""What goes wrong next: at the step that a run aims at, or after some steps."""

from __future__ import annotations

from random import Random

from .points import COORDINATOR, DISK_FULL, HANG, KILL, NEEDS_ROOM, POWER_CUT, WORKERS, Due, Faults

CLEANS_UP = ("unlink", "rmdir", "move, before mkdir blobs", "rename *.safetensors")
SWEEP = "coordinator: blobs.Blobs.sweep, before commit"
"""Cut off here it is to be put right."""
STEPS_MAX = 40
"""A life of a worker has so many durable steps."""


def arm(faults: Faults, rng: Random, target: str) -> None:
    """Where the target cleans up after something, something must go wrong before it."""
    cleans_up = any(step in target for step in CLEANS_UP) and "Folder.delete" not in target
    if target and rng.random() < 0.6:
        point = SWEEP if cleans_up and "Folder.move" in target and rng.random() < 0.5 else target
        may_be_full = NEEDS_ROOM.match(point.partition(", ")[2])
        faults.aim = Due(rng.choice((KILL, POWER_CUT, DISK_FULL) if may_be_full else (KILL, POWER_CUT)), point=point)
    if cleans_up and rng.random() < 0.5:
        faults.due = Due(DISK_FULL, rng.randint(1, STEPS_MAX), side=target.partition(":")[0])
    elif rng.random() < 0.8:
        kind = rng.choice((KILL, KILL, POWER_CUT, DISK_FULL, HANG))
        side = COORDINATOR if kind == HANG else rng.choice((COORDINATOR, COORDINATOR, WORKERS))
        faults.due = Due(kind, rng.randint(1, STEPS_MAX), side=side)


def command_for(target: str) -> str:
    """The kind of command that leads to it; empty: none does."""
    if any(step in target for step in ("sweep", "Folder.move", "Folder.delete")):
        return "collect"
    return target.partition(" for a ")[2].partition(",")[0]
