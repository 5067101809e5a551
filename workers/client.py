"""The coordinator, as seen from here. The only file of this room that imports grpc.

Every call is bounded in time. Nobody there becomes CoordinatorAway, a no becomes Refusal; nothing of gRPC
leaves this file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import grpc
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from protos.chunks import CHUNK_BYTES_MAX, TRANSFER_SECONDS_MAX, Joiner, M, cut, joined
from protos.fedshare.v1 import federation_pb2 as pb
from protos.fedshare.v1.federation_pb2_grpc import FederationStub
from workers.errors import CoordinatorAway, Refusal, Superseded, WorkerError

Answer = TypeVar("Answer")

CALL_SECONDS_MAX = 30.0
WATCH_SECONDS_MAX = 60.0
"""A watch is opened anew after this long; nothing is missed, the newest version comes first."""
COMMAND_SECONDS_MAX = 3600.0
"""A forget and a replay merge the whole journal once more."""
SLOW_SECONDS = 2.0
"""What is not decided after so long is spoken of."""
PAUSE_SECONDS_MAX = 5.0
"""Longest pause between two tries."""
OPTIONS = [
    ("grpc.max_receive_message_length", CHUNK_BYTES_MAX + (3 << 20)),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class Client:
    """Calls of fedshare.v1. With `patience_seconds` a call is tried again for that long while nobody answers.

    address: host:port, or several separated by commas: whoever answers is the coordinator, the others stand by. Raises
    WorkerError for one that is none.
    """

    def __init__(
        self,
        address: str,
        *,
        patience_seconds: float = 0.0,
        waiting: Callable[[float], None] = lambda seconds: None,
    ):
        self.address, self._patience, self._waiting = address, patience_seconds, waiting
        self._channels = [grpc.insecure_channel(one, options=OPTIONS) for one in _addresses(address)]
        self._stubs = [FederationStub(channel) for channel in self._channels]
        self._at = 0  # which of them answered last

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels:
            channel.close()

    @property
    def _stub(self) -> FederationStub:
        return self._stubs[self._at]

    def describe(self) -> pb.FederationSpec:
        return self._unary("Describe", pb.DescribeRequest())

    def join(self, worker: str, task: str, federation_id: str, base_fingerprint: str) -> pb.JoinReply:
        request = pb.JoinRequest(
            worker=worker, task=task, federation_id=federation_id, base_fingerprint=base_fingerprint
        )
        return self._unary("Join", request)

    def submit(self, header: pb.UpdateHeader, blob: bytes) -> pb.Receipt:
        """The receipt. Waits out what is transient; raises Refusal for what is final."""

        def once() -> pb.Receipt:
            receipt = self._stub.Submit(_parts(header, blob), timeout=TRANSFER_SECONDS_MAX)
            if receipt.is_transient:
                raise CoordinatorAway(receipt.reason)
            return receipt

        receipt = self._patiently(once)
        if receipt.outcome == pb.OUTCOME_REFUSED_INCARNATION:
            raise Superseded(receipt.reason)
        if not receipt.position:
            raise Refusal(receipt.reason)
        return receipt

    def watch(
        self, worker: str = "", incarnation: int = 0, seconds: float = WATCH_SECONDS_MAX
    ) -> Iterator[pb.VersionNotice]:
        """The newest version, now and at each change, for so long; then it ends."""
        request, asked = pb.WatchRequest(worker=worker, incarnation=incarnation), self._at
        try:
            yield from self._stub.Watch(request, timeout=seconds)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                raise self._away(error, asked) from None

    def fetch(
        self,
        version: int | None,
        *,
        tasks: Iterable[str] = (),
        have: Iterable[str] = (),
        every_task: bool = False,
        manifest_only: bool = False,
    ) -> tuple[pb.Manifest, dict[str, bytes]]:
        """The manifest of a version (None: the head) and the blobs that are not in `have`, each with its digest."""
        request = pb.FetchRequest(
            version=version, tasks=tasks, have=have, every_task=every_task, manifest_only=manifest_only
        )
        return self._patiently(lambda: _received(self._stub.Fetch(request, timeout=TRANSFER_SECONDS_MAX)))

    def report(self, worker: str, incarnation: int, task: str, version: int, metrics: Mapping[str, float]) -> None:
        request = pb.ReportRequest(worker=worker, incarnation=incarnation, task=task, version=version, metrics=metrics)
        self._unary("Report", request)

    def leave(self, worker: str, incarnation: int) -> None:
        self._unary("Leave", pb.LeaveRequest(worker=worker, incarnation=incarnation))

    def story(self, update_id: str) -> pb.StoryReply:
        return self._whole(pb.StoryReply, "Story", pb.StoryRequest(update_id=update_id))

    def status(self) -> pb.StatusReply:
        return self._whole(pb.StatusReply, "Status", pb.StatusRequest())

    def versions(self, first: int = 0) -> list[pb.VersionRecord]:
        """All records from `first` on, page by page."""
        found: list[pb.VersionRecord] = []
        while page := self._whole(pb.VersionsReply, "Versions", pb.VersionsRequest(first=first)).versions:
            found.extend(page)
            first = page[-1].version + 1
        return found

    def command(self, request: pb.CommandRequest) -> pb.Verdict:
        """Give the one writer a command, and wait for what becomes of it."""
        return self.carried_out(self.order(request))

    def order(self, request: pb.CommandRequest) -> pb.Receipt:
        """With it the command is journaled: it will be carried out, whoever waits."""
        return self._unary("Command", request)

    def carried_out(self, order: pb.Receipt, tell: Callable[[str], None] = lambda why: None) -> pb.Verdict:
        """What becomes of a command: waits COMMAND_SECONDS_MAX at most. tell: called with why that takes long."""
        deadline, seconds, consumed = time.monotonic() + COMMAND_SECONDS_MAX, SLOW_SECONDS, 0
        while time.monotonic() < deadline:
            for notice in self.watch(seconds=seconds):
                consumed = notice.consumed_position
                if consumed >= order.position:
                    return self.story(order.update_id).verdict
            in_hand = "it is in hand" if consumed == order.position - 1 else "what was journaled before it comes first"
            tell(self.status().waiting or in_hand)
            seconds = WATCH_SECONDS_MAX
        raise WorkerError(f"not carried out within {COMMAND_SECONDS_MAX:.0f} s")

    def quarantined(self) -> list[pb.Aside]:
        """Updates that wait for somebody's judgement, oldest first."""
        return list(self._whole(pb.QuarantinedReply, "Quarantined", pb.QuarantinedRequest()).updates)

    def replay(self) -> pb.ReplayReply:
        return self._patiently(lambda: self._stub.Replay(pb.ReplayRequest(), timeout=COMMAND_SECONDS_MAX))

    def metrics(self, task: str = "") -> list[pb.Metric]:
        """All that was reported, however much that is."""
        request = pb.MetricsRequest(task=task)
        return list(self._whole(pb.MetricsReply, "Metrics", request, TRANSFER_SECONDS_MAX).metrics)

    def _unary(self, method: str, request: object) -> Any:
        return self._patiently(lambda: getattr(self._stub, method)(request, timeout=CALL_SECONDS_MAX))

    def _whole(self, reply: type[M], method: str, request: object, seconds: float = CALL_SECONDS_MAX) -> M:
        """An answer that comes in pieces."""
        return self._patiently(lambda: joined(reply(), getattr(self._stub, method)(request, timeout=seconds)))

    def _away(self, error: grpc.RpcError, asked: int) -> WorkerError:
        """Where nobody answered, the next call asks the next; another thread may have found out as well."""
        if error.code() in AWAY and self._at == asked:
            self._at = (asked + 1) % len(self._stubs)
        return _translated(error, self.address)

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        def once() -> Answer:
            asked = self._at
            try:
                return call()
            except grpc.RpcError as error:
                raise self._away(error, asked) from None
            except ValueError as error:  # from Joiner: damaged on the way
                raise CoordinatorAway(f"what {self.address} sent did not come whole: {error}") from None

        def at_each() -> Answer:
            for _ in self._stubs[1:]:
                with suppress(CoordinatorAway):
                    return once()
            return once()

        def tell(state: RetryCallState) -> None:
            self._waiting(state.seconds_since_start or 0.0)

        retrying = Retrying(
            retry=retry_if_exception_type(CoordinatorAway),
            stop=stop_after_delay(self._patience),
            wait=wait_random_exponential(multiplier=0.2, max=PAUSE_SECONDS_MAX),
            before_sleep=tell,
            reraise=True,
        )
        return retrying(at_each)


def _addresses(said: str) -> list[str]:
    found = [one for one in map(str.strip, said.split(",")) if one]
    if not found:
        raise WorkerError("no coordinator is named: say its HOST:PORT with --coordinator")
    for one in found:
        host, _, port = one.rpartition(":")
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise WorkerError(f"the coordinator {one!r} is not HOST:PORT: name it like 127.0.0.1:50051")
    return found


def _translated(error: grpc.RpcError, address: str) -> WorkerError:
    """The one place where gRPC's errors become ours. ABORTED: the coordinator is there, and asks for another try."""
    if error.code() in AWAY:
        return CoordinatorAway(f"no coordinator answers at {address}: start it, or name another --coordinator")
    if error.code() is grpc.StatusCode.ABORTED:
        return CoordinatorAway(error.details())
    if error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT):
        return Refusal(error.details())
    first = (str(error.details()).splitlines() or [""])[0]
    return WorkerError(f"the coordinator at {address} failed ({error.code().name}): {first}")


def _parts(header: pb.UpdateHeader, blob: bytes) -> Iterator[pb.SubmitRequest]:
    yield pb.SubmitRequest(header=header)
    for chunk in cut(blob):
        yield pb.SubmitRequest(chunk=chunk)


def _received(replies: Iterator[pb.FetchReply]) -> tuple[pb.Manifest, dict[str, bytes]]:
    manifest = pb.Manifest()
    blobs: dict[str, bytes] = {}
    joiner: Joiner | None = None
    for reply in replies:
        if reply.HasField("manifest"):
            manifest.MergeFrom(reply.manifest)
        elif reply.HasField("blob"):
            joiner = Joiner(reply.blob.digest, reply.blob.nbytes)
        elif joiner is not None:
            joiner.add(reply.chunk)
        if joiner is not None and joiner.complete:
            blobs[joiner.digest] = joiner.blob()
            joiner = None
    return manifest, blobs
