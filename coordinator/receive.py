"""Upper half of the walk: from bytes to a receipt. Decode, admit, keep the blob, journal; only then say so."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from time import time

from sqlalchemy.exc import OperationalError

from coordinator import admit
from coordinator.blobs import Blobs
from coordinator.catalog import Catalog
from coordinator.errors import Refused
from coordinator.journal import Decision, Journal, Submission
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import AlgebraError, Basis, Update
from share_algo.codec import decode_update

log = logging.getLogger(__name__)

DISK_FULL = "the coordinator's disk is full: nothing was kept"


class Receiver:
    """`basis` gives the newest visible basis; `arrived` is called after each new journal entry."""

    def __init__(
        self,
        spec: pb.FederationSpec,
        journal: Journal,
        catalog: Catalog,
        blobs: Blobs,
        basis: Callable[[], Basis],
        arrived: Callable[[], None],
    ):
        self.spec, self._journal, self._catalog, self._blobs = spec, journal, catalog, blobs
        self._basis, self._arrived = basis, arrived

    def expect(self, header: pb.UpdateHeader) -> Decision | None:
        """Before any chunk is read: the first verdict if this update is here already, or a refusal."""
        admit.header(self.spec, header)
        return self._journal.expect(header.update_id, header.digest, header.worker, header.incarnation)

    def accept(self, header: pb.UpdateHeader, blob: bytes) -> tuple[Decision, bool]:
        """The whole blob has come and has its digest. Returns (decision, was it here before)."""
        base = self._catalog.get(header.base_version)
        if base is None:
            raise Refused(
                pb.OUTCOME_REFUSED_BASE_VERSION,
                f"version {header.base_version} does not exist in this federation",
            )
        basis = self._basis()
        if len(basis.blocks) < base.blocks:  # it is on disk, and in memory in an instant
            raise Refused(pb.OUTCOME_RETRY_BUSY, f"version {base.version} is becoming visible just now")
        admit.update(self.spec, _decoded(blob), basis.prefix(base.blocks))
        try:
            self._blobs.put(blob)
            decision, repeated = self._journal.append(_submission(header), time())
        except (OSError, OperationalError) as error:
            if disk_is_full(error):
                raise Refused(pb.OUTCOME_RETRY_DISK_FULL, DISK_FULL) from None
            raise
        log.info("received update=%s position=%d task=%s worker=%s base=%d bytes=%d", header.update_id,
                 decision.position, header.task, header.worker, header.base_version, header.nbytes)  # fmt: skip
        self._arrived()
        return decision, repeated


def disk_is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, OperationalError) and "full" in str(error.orig)


def _decoded(blob: bytes) -> Update:
    try:
        return decode_update(blob)
    except AlgebraError as error:
        raise Refused(pb.OUTCOME_REFUSED_MALFORMED, str(error)) from None


def _submission(header: pb.UpdateHeader) -> Submission:
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
    )
