"""What the one writer asks of itself: a compaction when the basis has outgrown its budget, and a collection when more
versions can be read than are kept. Journaled like anybody's command and carried out in its turn, so that replay,
forget and story see it.

The command's id follows from what it says, the federation and the version that made it due: a crash in between
journals it once, and what the federation's file says anew is another command.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from time import time

from coordinator.catalog import Catalog, Version
from coordinator.history import kind_of
from coordinator.journal import Journal
from protos.fedshare.v1 import federation_pb2 as pb

log = logging.getLogger(__name__)


class Upkeep:
    def __init__(self, spec: pb.FederationSpec, journal: Journal, catalog: Catalog):
        self._spec, self._journal, self._catalog = spec, journal, catalog
        self._collect_from = 0  # one that could not be done is not ordered again at once: it looks at the whole journal

    def after(self, head: Version, consumed: int) -> None:
        """Journal what is due now, unless such a command waits already. Costs two counts where nothing is due."""
        for request in self._due(head):
            kind = request.WhichOneof("command")
            if kind in self._journal.waiting_commands(consumed):
                continue
            what = request.SerializeToString(deterministic=True).hex()
            request.command_id = _id(self._spec.federation_id, what, head.version)
            decision, repeated = self._journal.command(request, time())
            if not repeated:
                log.info("due: %s id=%s position=%d", kind, request.command_id, decision.position)
            if kind == "collect":
                self._collect_from = head.version + slack(self._spec.versions_kept)

    def _due(self, head: Version) -> Iterator[pb.CommandRequest]:
        budget, kept = self._spec.budget, self._spec.versions_kept
        columns = max((max(r.basis_out, r.basis_in) for r in head.records), default=0)
        if budget.columns_max and kind_of(head) == pb.VERSION_KIND_MERGE and columns > budget.columns_max:
            yield pb.CommandRequest(compact=pb.Compact(size=budget.columns_after))
        if kept and head.version >= self._collect_from and self._catalog.count_readable() > kept + slack(kept):
            yield pb.CommandRequest(collect=pb.Collect(keep=kept))


def slack(kept: int) -> int:
    """So many versions more than are kept are let be: collecting looks at the whole journal."""
    return max(8, kept // 4)


def _id(*parts: object) -> str:
    """32 hex digits."""
    return hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:32]
