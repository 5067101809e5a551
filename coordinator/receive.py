"""Upper half of the walk: from bytes to a receipt. Decode, admit, keep the blob, journal; only then say so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import time

from coordinator import admit
from coordinator.bases import Bases
from coordinator.blobs import Blobs
from coordinator.errors import CoordinatorError, Refused
from coordinator.journal import Decision, Journal, Submission
from coordinator.trouble import TROUBLES, come_again
from protos.fedshare.v1 import federation_pb2 as pb
from protos.policy import policy_of, replaces
from share_algo import AlgebraError, Basis, Update
from share_algo.codec import decode_update

log = logging.getLogger(__name__)


class Receiver:
    """`arrived` is called with the position of each new journal entry."""

    def __init__(
        self,
        spec: pb.FederationSpec,
        journal: Journal,
        bases: Bases,
        blobs: Blobs,
        arrived: Callable[[int], None],
    ):
        self.spec, self._journal, self._bases, self._blobs = spec, journal, bases, blobs
        self._arrived = arrived

    def command(self, request: pb.CommandRequest) -> tuple[Decision, bool]:
        """Journaled, to be carried out in its turn. Returns (decision, was it here before)."""
        admit.command(request)
        decision, repeated = self._journal.command(request, time())
        log.info("received command=%s position=%d kind=%s", request.command_id, decision.position,
                 request.WhichOneof("command"))  # fmt: skip
        self._arrived(decision.position)
        return decision, repeated

    def expect(self, header: pb.UpdateHeader) -> Decision | None:
        """The first verdict if this update is here already, or a refusal. Its header is admitted."""
        return self._journal.expect(submission(header))

    def accept(self, header: pb.UpdateHeader, blob: bytes) -> tuple[Decision, bool]:
        """The whole blob has come and has its digest. Returns (decision, was it here before)."""
        if known := self.expect(header):
            return known, True
        admit.update(self.spec, header.task, _decoded(blob), self._base(header.base_version))
        self._must_add_up(header)
        try:
            decision, repeated = self._keep(header, blob)
        except TROUBLES as error:
            raise come_again(error) from None
        log.info("received update=%s position=%d task=%s worker=%s base=%d bytes=%d", header.update_id,
                 decision.position, header.task, header.worker, header.base_version, header.nbytes)  # fmt: skip
        self._arrived(decision.position)
        return decision, repeated

    def _keep(self, header: pb.UpdateHeader, blob: bytes) -> tuple[Decision, bool]:
        """An erasure may have come since it was expected: then no row names the blob, and another sweep deletes it."""
        try:
            with self._blobs.holding(header.digest):
                self._blobs.put(blob)
                decision, repeated = self._journal.append(submission(header), time())
        except Refused:
            self._journal.want_sweep()
            raise
        if decision.outcome == pb.OUTCOME_ERASED:
            self._journal.want_sweep()
        return decision, repeated

    def _base(self, version: int) -> Basis:
        """A damaged block is no fault of who sends, and may be restored: it is to come again."""
        try:
            return self._bases.of(version)
        except CoordinatorError as error:
            log.error("no update for version %d can be taken: %s", version, error)
            raise Refused(pb.OUTCOME_RETRY_STORE, str(error)) from None

    def _must_add_up(self, header: pb.UpdateHeader) -> None:
        """Where updates of a task are added up, as far as can be seen now: the merge looks at what waits."""
        if replaces(policy_of(self.spec.policies, header.task)):
            return
        catalog = self._bases.catalog
        if known := catalog.task_of(catalog.head().version, header.task):
            admit.labels(header.task, header.labels, known.kept.labels)


def _decoded(blob: bytes) -> Update:
    try:
        return decode_update(blob)
    except AlgebraError as error:
        raise Refused(pb.OUTCOME_REFUSED_MALFORMED, str(error)) from None


def submission(header: pb.UpdateHeader) -> Submission:
    return Submission(
        update_id=header.update_id,
        worker=header.worker,
        incarnation=header.incarnation,
        task=header.task,
        base_version=header.base_version,
        digest=header.digest,
        nbytes=header.nbytes,
        labels=list(header.labels),
        metrics=dict(header.metrics),
        warm_start=header.warm_start,
    )
