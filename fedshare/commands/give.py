"""Give a running coordinator a command, wait for it, and say what became of it."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from protos.fedshare.v1 import federation_pb2 as pb
    from workers.client import Client


def give(
    request: pb.CommandRequest, coordinator: str, command_id: str, as_json: bool, not_done: str = "not done"
) -> None:
    """Raises UserError, with the coordinator's reason, when it was not carried out; Stopped when that is not known."""
    from fedshare.commands.ask import as_dict
    from fedshare.errors import UserError
    from protos.fedshare.v1 import federation_pb2 as pb
    from workers.client import Client

    request.command_id = command_id or uuid.uuid4().hex
    with Client(coordinator) as client:
        verdict = _carried_out(client, _ordered(client, request))
    if verdict.outcome != pb.OUTCOME_DONE:
        raise UserError(f"{not_done}: {verdict.reason}")
    if as_json:
        print(json.dumps(as_dict(verdict)))
    else:
        version = f"version {verdict.version}: " if verdict.version else ""
        Console(highlight=False, soft_wrap=True).print(f"{version}{verdict.reason}")


def _ordered(client: Client, request: pb.CommandRequest) -> pb.Receipt:
    from fedshare.errors import Stopped

    try:
        return client.order(request)
    except KeyboardInterrupt:
        raise Stopped(
            f"stopped; whether the command {request.command_id} is journaled is not known: given again with"
            f" --command-id {request.command_id} it is carried out once"
        ) from None


def _carried_out(client: Client, order: pb.Receipt) -> pb.Verdict:
    """From the receipt on, whatever ends the wait does not end the command."""
    from fedshare.errors import Stopped
    from workers.errors import WorkerError

    try:
        return client.carried_out(order, _teller(order.update_id))
    except (KeyboardInterrupt, WorkerError) as end:
        raise Stopped(
            f"{str(end) or 'stopped'}; the command {order.update_id} is journaled and will be carried out: ask with"
            f" `fedshare story {order.update_id[:12]}`, or give it again with --command-id {order.update_id}"
            " to wait for it"
        ) from None


def _teller(command_id: str) -> Callable[[str], None]:
    """Says on stderr why a command waits, each reason once."""
    said = set[str]()

    def tell(why: str) -> None:
        if why not in said:
            said.add(why)
            print(f"command {command_id} is journaled, and not carried out yet: {why}", file=sys.stderr, flush=True)

    return tell
