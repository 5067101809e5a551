"""What is in quarantine, and somebody's judgement on it: quarantine, accept, reject."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from fedshare import options
from fedshare.commands.give import give

UpdateId = Annotated[str, typer.Argument(help="Id of an update, or its first 6 or more digits.", metavar="ID")]


def add_to(app: typer.Typer) -> None:
    for command in (quarantine, accept, reject):
        app.command(rich_help_panel="Judge what is in quarantine")(command)


def quarantine(coordinator: options.Coordinator = options.DEFAULT_COORDINATOR, as_json: options.Json = False) -> None:
    """Updates that are unlike the federation's others and wait for somebody to accept or reject them."""
    from fedshare.commands.ask import as_dict, time
    from fedshare.table import print_table
    from workers.client import Client

    with Client(coordinator) as client:
        found = client.quarantined()
    if as_json:
        print(json.dumps([as_dict(aside) for aside in found]))
        return
    if not found:
        print("nothing waits")
        return
    rows = ((a.update_id[:12], a.task, a.worker, time(a.received_at)) for a in found)
    reasons = [a.reason for a in found]
    print_table(Console(), ("update", "task", "worker", "received"), rows, spare=("received",), below=reasons)


def accept(
    update_id: UpdateId,
    coordinator: options.Coordinator = options.DEFAULT_COORDINATOR,
    command_id: options.CommandId = "",
    as_json: options.Json = False,
) -> None:
    """Merge a quarantined update now."""
    _judge(update_id, True, coordinator, command_id, as_json)


def reject(
    update_id: UpdateId,
    coordinator: options.Coordinator = options.DEFAULT_COORDINATOR,
    command_id: options.CommandId = "",
    as_json: options.Json = False,
) -> None:
    """Never merge a quarantined update."""
    _judge(update_id, False, coordinator, command_id, as_json)


def _judge(update_id: str, accepted: bool, coordinator: str, command_id: str, as_json: bool) -> None:
    from protos.fedshare.v1 import federation_pb2 as pb
    from workers.client import Client

    with Client(coordinator) as client:
        whole = client.story(update_id).update_id
    judge = pb.Judge(update_id=whole, accept=accepted)
    give(pb.CommandRequest(judge=judge), coordinator, command_id, as_json)
