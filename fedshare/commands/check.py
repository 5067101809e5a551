"""The command that looks at a stopped coordinator's home: is everything there, and whole?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fedshare import options

DAMAGED = 1
"""Exit code when something is missing or damaged."""


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel="Look after a home")(check)


def check(
    home: Annotated[Path, typer.Option(help="A coordinator's home, while no coordinator runs on it.")],
    store: options.Store = "",
    blobs: options.Blobs = "",
    as_json: options.Json = False,
) -> None:
    """Read every blob of a home and compare it with its digest. Exit code 1: what is bad is named."""
    from coordinator.history import History
    from coordinator.home import open_home
    from coordinator.soundness import check as look

    with open_home(home, store=store, blobs=blobs) as opened:
        found = look(History.of(opened.spec, opened.engine, opened.blobs), opened.engine)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        for bad in found.bad:
            print(f"{bad.of}: {bad.why}")
        print(
            f"{found.blobs:,} blobs read, {len(found.bad)} bad; head {found.head}, newest whole version {found.sound}"
        )
    if found.bad:
        raise typer.Exit(DAMAGED)
