"""Give a running coordinator a command, wait for it, and say what became of it."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from protos.fedshare.v1 import federation_pb2 as pb


def give(request: pb.CommandRequest, coordinator: str, command_id: str, as_json: bool) -> None:
    """Raises UserError, with the coordinator's reason, when it was not carried out."""
    from fedshare.commands.ask import as_dict
    from fedshare.errors import UserError
    from protos.fedshare.v1 import federation_pb2 as pb
    from workers.client import Client

    request.command_id = command_id or uuid.uuid4().hex
    with Client(coordinator) as client:
        verdict = client.command(request)
    if verdict.outcome != pb.OUTCOME_DONE:
        raise UserError(f"not done: {verdict.reason}")
    if as_json:
        print(json.dumps(as_dict(verdict)))
    else:
        version = f"version {verdict.version}: " if verdict.version else ""
        Console(highlight=False, soft_wrap=True).print(f"{version}{verdict.reason}")
