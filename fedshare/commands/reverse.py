"""Commands to a running coordinator that change what is kept: rollback, forget; and replay, which proves it."""

from __future__ import annotations

import json
import math
from typing import Annotated

import typer
from rich.console import Console

from fedshare import options
from fedshare.commands.give import give
from fedshare.errors import UserError

DIFFERS = 1
"""Exit code of a replay that does not give what is stored."""


def add_to(app: typer.Typer) -> None:
    for command in (rollback, forget, replay):
        app.command(rich_help_panel="Change what a coordinator keeps")(command)


def rollback(
    version: Annotated[int, typer.Argument(min=0, max=options.VERSION_MAX, help="Number of a version.")],
    coordinator: options.Coordinator = options.DEFAULT_COORDINATOR,
    command_id: options.CommandId = "",
    as_json: options.Json = False,
) -> None:
    """Make a new version that equals an older one. What was merged since is reverted, and may be submitted again."""
    from protos.fedshare.v1 import federation_pb2 as pb

    give(pb.CommandRequest(rollback=pb.Rollback(version=version)), coordinator, command_id, as_json)


def forget(
    task: Annotated[str, typer.Option(help="Forget every update for this task.")] = "",
    worker: Annotated[str, typer.Option(help="Forget every update of this worker.")] = "",
    erase: Annotated[
        bool,
        typer.Option("--erase", help="Also delete their bytes and names, and the versions that hold anything of them."),
    ] = False,
    coordinator: options.Coordinator = options.DEFAULT_COORDINATOR,
    command_id: options.CommandId = "",
    as_json: options.Json = False,
) -> None:
    """Make a new version as if a task's, or a worker's, updates had never come: rebuilt from the journal."""
    from protos.fedshare.v1 import federation_pb2 as pb

    request = pb.CommandRequest(forget=pb.Forget(task=task, worker=worker, erase=erase))
    whose = f"task {task!r}" if task else f"worker {worker!r}"
    give(request, coordinator, command_id, as_json, not_done=f"{whose} is not forgotten")


def replay(
    tolerance: Annotated[float, typer.Option(min=0, help="Largest relative difference that is not an error.")] = 1e-4,
    coordinator: options.Coordinator = options.DEFAULT_COORDINATOR,
    as_json: options.Json = False,
) -> None:
    """Rebuild every version from the journal, in memory, and compare it with what is stored. Exit code 1: differs."""
    from fedshare.commands.ask import as_dict
    from workers.client import Client

    if not math.isfinite(tolerance):
        raise UserError(f"--tolerance must be a number from 0 on, not {tolerance:g}")
    with Client(coordinator) as client:
        reply = client.replay()
    equal = max(reply.task.value, reply.basis.value) <= tolerance
    if as_json:
        print(json.dumps({**as_dict(reply), "tolerance": tolerance, "equal": equal}))
    else:
        say = Console(highlight=False, soft_wrap=True).print
        say(f"replayed {reply.versions} versions from version {reply.first} on, {reply.tasks} tasks compared")
        for what, found in (("of dW", reply.task), ("between bases", reply.basis)):
            where = f" ({found.where}, version {found.version})" if found.where else ""
            say(f"largest difference {what}: {found.value:.1e}{where}")
        say(f"{'equal' if equal else 'DIFFERENT'} at a tolerance of {tolerance:g}")
    if not equal:
        raise typer.Exit(DIFFERS)
