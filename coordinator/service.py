"""The gRPC edge: messages in, calls to the rooms behind, messages out. The only file of this room that imports grpc.

Whatever blocks (SQLite, files, decoding) runs in threads; the event loop only waits and passes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from time import time
from typing import Any

import grpc

from coordinator import admit, replay, story, views
from coordinator.broadcast import Broadcast
from coordinator.errors import CoordinatorError, Fenced, Refused, is_transient
from coordinator.history import History
from coordinator.journal import Decision
from coordinator.measured import PAGE, Measured, Measurement
from coordinator.members import Members
from coordinator.receive import Receiver
from coordinator.trouble import TROUBLES, come_again
from protos.chunks import CHUNK_BYTES_MAX, TRANSFER_SECONDS_MAX, Joiner, M, cut, in_pieces
from protos.fedshare.v1 import federation_pb2 as pb
from protos.fedshare.v1.federation_pb2_grpc import FederationServicer, add_FederationServicer_to_server

SUBMITS_MAX = 16
"""Updates that may be on their way into memory at once; one more is told to come again."""
READINGS_MAX = 16
"""Blobs of more than a chunk that are in memory at once for those who fetch them: as many as arrive. One more waits."""
CHUNK_SECONDS_MAX = 60.0
"""A sender that is silent for longer inside one update has gone away, and so has a reader that takes nothing."""
FAREWELL_SECONDS_MAX = 1.0
"""What a reader that was too slow is waited for once more; if it reads on, it finds the sentence."""
TOO_SLOW = f"nothing was taken for {CHUNK_SECONDS_MAX:g} s, or all took {TRANSFER_SECONDS_MAX:g} s: ask for it again"
MESSAGE_BYTES_MAX = CHUNK_BYTES_MAX + (3 << 20)
STOP_SECONDS_MAX = 5.0
"""What calls in progress get when the coordinator stops."""
OPTIONS = [
    ("grpc.so_reuseport", 0),  # a port in use must be an error
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 10_000),  # both sides: a cut network is seen in seconds
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]


class Service(FederationServicer):
    def __init__(
        self,
        spec: pb.FederationSpec,
        members: Members,
        history: History,
        measured: Measured,
        receiver: Receiver,
        broadcast: Broadcast,
        lineage: views.LineageView,
    ):
        self._spec, self._members, self._history, self._measured = spec, members, history, measured
        self._journal, self._catalog, self._blobs = history.journal, history.catalog, history.blobs
        self._receiver, self._broadcast = receiver, broadcast
        self._lineage = lineage
        self._submits, self._reading = 0, asyncio.Semaphore(READINGS_MAX)
        self.replays = Replays(history, spec)

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.FederationSpec:
        return self._spec

    async def Join(self, request: pb.JoinRequest, context: Any) -> pb.JoinReply:
        return await _answer(context, self._join, request)

    async def Submit(self, requests: AsyncIterator[pb.SubmitRequest], context: Any) -> pb.Receipt:
        header = pb.UpdateHeader()
        try:
            header = (await _next(requests)).header
            return await self._submit(header, requests)
        except Refused as refused:
            return _refusal(header.update_id, refused)
        except TROUBLES as error:
            return _refusal(header.update_id, come_again(error))
        except Fenced as fenced:
            return await context.abort(grpc.StatusCode.UNAVAILABLE, str(fenced))

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.VersionNotice]:
        async for newest in self._broadcast.follow():
            head = newest.head
            yield pb.VersionNotice(
                version=head.version,
                parent=head.parent,
                digest=head.digest,
                task=head.task,
                consumed_position=newest.consumed,
            )

    async def Fetch(self, request: pb.FetchRequest, context: Any) -> None:
        """Writes its replies itself: what is yielded would wait for its reader where nothing here can bound it."""
        try:
            async with asyncio.timeout(TRANSFER_SECONDS_MAX):
                return await self._fetch(request, context)
        except TimeoutError:
            pass  # and with it what was held to be sent
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS_MAX):
                await context.abort(grpc.StatusCode.ABORTED, TOO_SLOW)
        raise asyncio.CancelledError

    async def Report(self, request: pb.ReportRequest, context: Any) -> pb.ReportReply:
        await _answer(context, self._report, request)
        return pb.ReportReply()

    async def Leave(self, request: pb.LeaveRequest, context: Any) -> pb.LeaveReply:
        await _answer(context, self._leave, request)
        return pb.LeaveReply()

    async def Story(self, request: pb.StoryRequest, context: Any) -> AsyncIterator[pb.StoryReply]:
        of = (request.update_id, self._journal, self._catalog, self._measured)
        for piece in await _answer(context, _pieces, story.tell, *of):
            yield piece

    async def Status(self, request: pb.StatusRequest, context: Any) -> AsyncIterator[pb.StatusReply]:
        for piece in await _answer(context, _pieces, self._status):
            yield piece

    async def Versions(self, request: pb.VersionsRequest, context: Any) -> AsyncIterator[pb.VersionsReply]:
        for piece in await _answer(context, _pieces, views.versions, self._catalog, request):
            yield piece

    async def Metrics(self, request: pb.MetricsRequest, context: Any) -> AsyncIterator[pb.MetricsReply]:
        last = 0
        while found := await _answer(context, self._metrics, request.task, last):
            yield pb.MetricsReply(metrics=[views.metric(m) for m in found])
            last = found[-1].id

    async def Command(self, request: pb.CommandRequest, context: Any) -> pb.Receipt:
        decision, repeated = await _answer(context, self._receiver.command, request)
        return _receipt(decision, repeated=repeated)

    async def Quarantined(self, request: pb.QuarantinedRequest, context: Any) -> AsyncIterator[pb.QuarantinedReply]:
        for piece in await _answer(context, _pieces, views.quarantined, self._journal):
            yield piece

    async def Replay(self, request: pb.ReplayRequest, context: Any) -> pb.ReplayReply:
        return await _awaited(context, self.replays.one())

    def _join(self, request: pb.JoinRequest) -> pb.JoinReply:
        admit.name("task", request.task)  # first: a worker may be named after it
        admit.name("worker", request.worker)
        if request.federation_id:
            admit.federation(self._spec, request.federation_id)
        admit.base_model(self._spec, request.base_fingerprint)
        incarnation = self._members.join(request.worker, request.task, time())
        newest = self._journal.newest(request.worker, request.task)
        return pb.JoinReply(
            federation_id=self._spec.federation_id,
            incarnation=incarnation,
            head=self._catalog.head().version,
            learned=views.verdict(newest, self._catalog) if newest else None,
        )

    async def _submit(self, header: pb.UpdateHeader, requests: AsyncIterator[pb.SubmitRequest]) -> pb.Receipt:
        admit.header(self._spec, header)
        is_long = header.nbytes > CHUNK_BYTES_MAX  # else it is here as soon as an answer, and `accept` asks, too
        if is_long and (known := await _ended(self._receiver.expect, header)):
            return _receipt(known, repeated=True)
        if self._submits >= SUBMITS_MAX:
            raise Refused(pb.OUTCOME_RETRY_BUSY, f"{SUBMITS_MAX} updates are arriving just now")
        self._submits += 1
        try:
            blob = await _joined(header, requests)
            decision, repeated = await _ended(self._receiver.accept, header, blob)
        finally:
            self._submits -= 1
        return _receipt(decision, repeated=repeated)

    async def _fetch(self, request: pb.FetchRequest, context: Any) -> None:
        newest, why = self._broadcast.newest, ""
        if newest.waiting and not request.HasField("version"):
            request.version, why = newest.head.version, newest.waiting  # what came after it may not be whole
        manifest = await _answer(context, views.manifest, self._catalog, request, why)
        for piece in await _answer(context, _pieces, lambda: manifest):
            await _write(context, pb.FetchReply(manifest=piece))
        for name in () if request.manifest_only else _wanted(manifest, set(request.have)):
            async with self._reading if name.nbytes > CHUNK_BYTES_MAX else nullcontext():
                await self._send(context, manifest.version, name)

    async def _send(self, context: Any, version: int, name: pb.BlobRef) -> None:
        blob = await _answer(context, views.part, self._catalog, self._blobs, version, name.digest)
        await _write(context, pb.FetchReply(blob=name))
        for chunk in cut(blob):
            await _write(context, pb.FetchReply(chunk=chunk))

    def _leave(self, request: pb.LeaveRequest) -> None:
        admit.name("worker", request.worker)
        self._members.leave(request.worker, request.incarnation, time())

    def _status(self) -> pb.StatusReply:
        reply = views.status(self._spec, self._members, self._journal, self._catalog, self._lineage)
        reply.waiting = self._broadcast.newest.waiting
        return reply

    def _metrics(self, task: str, after: int) -> list[Measurement]:
        if task:
            admit.name("task", task)
        return self._measured.of_task(task, after, PAGE)

    def _report(self, request: pb.ReportRequest) -> None:
        admit.name("worker", request.worker)
        admit.name("task", request.task)
        admit.metrics(request.metrics)
        views.measurable(self._catalog, request.version)
        self._measured.add(
            request.worker, request.incarnation, request.task, request.version, dict(request.metrics), time()
        )


class Replays:
    """One at a time, in a thread of its own: it takes as long as all merges did, and other calls need theirs.

    It ends at its next step when its caller goes, or the coordinator stops.
    """

    def __init__(self, history: History, spec: pb.FederationSpec):
        self._history, self._spec = history, spec
        self._thread = ThreadPoolExecutor(1, "replay")
        self._ending: threading.Event | None = None  # of the one that is under way

    async def one(self) -> pb.ReplayReply:
        if self._ending is not None:
            raise Refused(pb.OUTCOME_RETRY_BUSY, "another replay is under way: ask again when it has ended")
        self._ending = ending = threading.Event()

        def must_go_on() -> None:
            if ending.is_set():
                raise Refused(pb.OUTCOME_RETRY_BUSY, "the coordinator stops: ask for the replay again when it is back")

        try:
            compare = partial(replay.compare, self._history, self._spec, must_go_on)
            return await asyncio.get_running_loop().run_in_executor(self._thread, compare)
        finally:
            ending.set()
            self._ending = None

    def stop(self) -> None:
        if self._ending is not None:
            self._ending.set()

    def join(self) -> None:
        """Wait for the step at hand."""
        self._thread.shutdown()


class Edge:
    """A listening gRPC server. `port` is the one that was given by the system when 0 was asked for."""

    def __init__(self, service: Service, host: str, port: int):
        self._server, self._replays = grpc.aio.server(options=OPTIONS), service.replays
        add_FederationServicer_to_server(service, self._server)
        try:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            raise port_in_use(f"{host}:{port}") from None

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, *, at_once: bool = False) -> None:
        self._replays.stop()
        await self._server.stop(0 if at_once else STOP_SECONDS_MAX)
        await asyncio.to_thread(self._replays.join)


def port_in_use(address: str) -> CoordinatorError:
    return CoordinatorError(f"cannot listen on {address}: the port is in use; choose another --port")


async def _answer(context: Any, call: Callable[..., Any], *args: object) -> Any:
    """Run a blocking call in a thread."""
    return await _awaited(context, _ended(call, *args))


async def _ended(call: Callable[..., Any], *args: object) -> Any:
    """Run a blocking call in a thread, to its end: whoever hangs up meanwhile keeps until then what is counted."""
    running, hung_up = asyncio.get_running_loop().run_in_executor(None, partial(call, *args)), False
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            hung_up = True
    if not hung_up:
        return running.result()
    running.exception()  # nobody is there to be told
    raise asyncio.CancelledError


def _pieces(call: Callable[..., M], *args: object) -> list[M]:
    return list(in_pieces(call(*args)))


async def _awaited(context: Any, answer: Awaitable[Any]) -> Any:
    """What the caller did wrong becomes a status with one sentence."""
    try:
        return await answer
    except Refused as refused:
        await context.abort(_status(refused), refused.reason)
    except CoordinatorError as error:
        await context.abort(grpc.StatusCode.DATA_LOSS, str(error))
    except TROUBLES as error:
        await context.abort(grpc.StatusCode.ABORTED, come_again(error).reason)
    except Fenced as fenced:
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(fenced))


def _status(refused: Refused) -> grpc.StatusCode:
    if refused.outcome == pb.OUTCOME_REFUSED_MALFORMED:
        return grpc.StatusCode.INVALID_ARGUMENT
    return grpc.StatusCode.ABORTED if is_transient(refused.outcome) else grpc.StatusCode.FAILED_PRECONDITION


async def _next(requests: AsyncIterator[pb.SubmitRequest]) -> pb.SubmitRequest:
    try:
        async with asyncio.timeout(CHUNK_SECONDS_MAX):
            return await anext(requests)
    except (StopAsyncIteration, TimeoutError):
        raise Refused(pb.OUTCOME_RETRY_DIGEST, "the update did not come whole: send it again") from None


async def _write(context: Any, reply: pb.FetchReply) -> None:
    async with asyncio.timeout(CHUNK_SECONDS_MAX):
        await context.write(reply)


async def _joined(header: pb.UpdateHeader, requests: AsyncIterator[pb.SubmitRequest]) -> bytes:
    try:
        joiner = Joiner(header.digest, header.nbytes)
        async with asyncio.timeout(TRANSFER_SECONDS_MAX):
            while not joiner.complete:
                joiner.add((await _next(requests)).chunk)
        return joiner.blob()
    except ValueError as error:
        raise Refused(pb.OUTCOME_RETRY_DIGEST, f"the update did not come whole: {error}") from None
    except TimeoutError:
        why = f"the update did not come whole within {TRANSFER_SECONDS_MAX:g} s: send it again"
        raise Refused(pb.OUTCOME_RETRY_DIGEST, why) from None


def _wanted(manifest: pb.Manifest, have: set[str]) -> Iterable[pb.BlobRef]:
    for name in [*manifest.blocks, *(task.entry for task in manifest.tasks)]:
        if name.digest not in have:
            have.add(name.digest)
            yield name


def _receipt(decision: Decision, *, repeated: bool) -> pb.Receipt:
    return pb.Receipt(
        update_id=decision.update_id,
        outcome=decision.outcome,
        reason=decision.reason,
        position=decision.position,
        repeated=repeated,
        version=decision.version,
    )


def _refusal(update_id: str, refused: Refused) -> pb.Receipt:
    return pb.Receipt(
        update_id=update_id,
        outcome=refused.outcome,
        reason=refused.reason,
        is_transient=is_transient(refused.outcome),
    )
