"""Who fetches slowly, or hangs up, takes no memory and no place for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from parts import CoordinatorHere, RawWorker, random_adapter, small_home, small_spec

from protos.chunks import CHUNK_BYTES_MAX
from protos.fedshare.v1 import federation_pb2 as pb
from protos.fedshare.v1.federation_pb2_grpc import FederationStub

TAKES_LITTLE = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
"""A client that has nothing read ahead for it."""


@pytest.fixture
def wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CoordinatorHere]:
    """One blob of its head is several chunks long, and one such is in memory at once."""
    monkeypatch.setattr("coordinator.service.READINGS_MAX", 1)
    home = small_home(tmp_path / "home", small_spec("wide", {"encoder.a": (500_000, 8)}))
    with CoordinatorHere(home) as coordinator, RawWorker(coordinator.address) as raw:
        raw.teach(random_adapter(raw.spec, 1))
        coordinator.drained()
        yield coordinator


def fetched(coordinator: CoordinatorHere, seconds: float = 30) -> int:
    """The bytes of the largest blob of the head, read as fast as they come."""
    with grpc.insecure_channel(coordinator.address) as channel:
        replies = FederationStub(channel).Fetch(pb.FetchRequest(every_task=True), timeout=seconds)
        return max(reply.blob.nbytes for reply in replies)


@pytest.fixture
def stuck(wide: CoordinatorHere) -> Iterator[grpc.Call]:
    """A fetch that has begun to read the large blob, and reads no further. It has no deadline."""
    with grpc.insecure_channel(wide.address, options=TAKES_LITTLE) as channel:
        call = FederationStub(channel).Fetch(pb.FetchRequest(every_task=True))
        while next(call).blob.nbytes <= CHUNK_BYTES_MAX:
            pass
        yield call
        call.cancel()


@pytest.mark.parametrize("bound", ["CHUNK_SECONDS_MAX", "TRANSFER_SECONDS_MAX"])
def test_reader_that_takes_nothing_is_given_up_and_others_are_served(
    monkeypatch: pytest.MonkeyPatch, bound: str, request: pytest.FixtureRequest
):
    wide = request.getfixturevalue("wide")
    monkeypatch.setattr(f"coordinator.service.{bound}", 2.0)
    stuck = request.getfixturevalue("stuck")
    monkeypatch.setattr("coordinator.service.TRANSFER_SECONDS_MAX", 60.0)  # of others, who need not hurry
    assert fetched(wide) > 2 * CHUNK_BYTES_MAX
    with pytest.raises(grpc.RpcError, match="ask for it again"):
        list(stuck)
    assert stuck.code() is grpc.StatusCode.ABORTED


def test_reader_that_hangs_up_frees_its_place(wide: CoordinatorHere, stuck: grpc.Call):
    with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
        fetched(wide, seconds=1)  # the one place is taken
    stuck.cancel()
    assert fetched(wide) > 2 * CHUNK_BYTES_MAX
