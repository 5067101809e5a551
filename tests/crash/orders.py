"""Commands that somebody gives in a run, sensible ones and others."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from protos.fedshare.v1 import federation_pb2 as pb

FORGOTTEN = (("shared", ""), ("task-0", ""), ("task-1", ""), ("", "w1"), ("", "w0"))

KINDS = ("rollback", "rollback", "forget", "forget", "compact", "compact", "collect")


VERSIONS = (0, 1, 2, 3, 6)


def draw(
    rng: Random, aside: Sequence[str], sent: Sequence[str], wanted: str = "", versions: Sequence[int] = VERSIONS
) -> pb.CommandRequest:
    """aside: updates that are in quarantine; sent: all there are. wanted: a kind that should come often. versions: to
    which a rollback goes."""
    request = pb.CommandRequest(command_id=f"{rng.getrandbits(128):032x}")
    named = rng.choice(aside or sent or [""])
    if named and rng.random() < (0.9 if aside and wanted == "judge" else 0.6 if aside else 0.05):
        request.judge.CopyFrom(pb.Judge(update_id=named, accept=rng.random() < 0.6))
        return request
    wanted = wanted if wanted in KINDS else ""
    kind = wanted if wanted and rng.random() < 0.7 else rng.choice(KINDS)
    if kind == "rollback":
        request.rollback.version = rng.choice(versions)
    elif kind == "forget":
        task, worker = rng.choice(FORGOTTEN)
        request.forget.CopyFrom(pb.Forget(task=task, worker=worker, erase=rng.random() < 0.5))
    elif kind == "compact":
        request.compact.CopyFrom(_compact(rng))
    else:
        request.collect.keep = rng.randint(1, 3)
    return request


def _compact(rng: Random) -> pb.Compact:
    return (
        pb.Compact(size=rng.randint(1, 4)) if rng.random() < 0.6 else pb.Compact(tolerance=rng.choice((0.1, 0.4, 0.8)))
    )
