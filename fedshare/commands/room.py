"""Commands that make room: compact (fewer columns) and collect (fewer versions)."""

from __future__ import annotations

from typing import Annotated

import typer

from fedshare import options
from fedshare.commands.give import give
from fedshare.errors import UserError

COUNT_MAX = 2**32 - 1


def add_to(app: typer.Typer) -> None:
    for command in (compact, collect):
        app.command(rich_help_panel="Change what a coordinator keeps")(command)


def compact(
    size: Annotated[int | None, typer.Option(min=1, max=COUNT_MAX, help="Columns a side of a module, at most.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="As few columns as lose each task at most this much of dW, in (0, 1).")
    ] = None,
    coordinator: options.Coordinator = options.DEFAULT_COORDINATOR,
    command_id: options.CommandId = "",
    as_json: options.Json = False,
) -> None:
    """Make a new version with fewer columns: all tasks together lose least, and it says how much each has lost."""
    from protos.fedshare.v1 import federation_pb2 as pb

    if (size is None) == (tolerance is None):
        raise UserError("say either --size or --tolerance")
    if tolerance is not None and not 0 < tolerance < 1:
        raise UserError(f"--tolerance must be between 0 and 1, not {tolerance:g}")
    request = pb.CommandRequest(compact=pb.Compact(size=size or 0, tolerance=tolerance or 0.0))
    give(request, coordinator, command_id, as_json)


def collect(
    keep: Annotated[int, typer.Option(min=1, max=COUNT_MAX, help="Newest versions that stay readable.")],
    coordinator: options.Coordinator = options.DEFAULT_COORDINATOR,
    command_id: options.CommandId = "",
    as_json: options.Json = False,
) -> None:
    """Of all but the newest versions keep only the record. What the journal needs, to forget and to replay, stays."""
    from protos.fedshare.v1 import federation_pb2 as pb

    give(pb.CommandRequest(collect=pb.Collect(keep=keep)), coordinator, command_id, as_json)
