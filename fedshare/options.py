"""Options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_PORT = 50051
VERSION_MAX = 2**63 - 1
DEFAULT_COORDINATOR = f"127.0.0.1:{DEFAULT_PORT}"

Coordinator = Annotated[
    str,
    typer.Option(
        "--coordinator",
        "-c",
        envvar="FEDSHARE_COORDINATOR",
        help="host:port of the coordinator; more, separated by commas, where others stand by.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
CommandId = Annotated[
    str, typer.Option(help="32 hex digits: the same command given twice is carried out once.", metavar="ID")
]
Home = Annotated[
    Path | None, typer.Option(help="Folder that is kept between starts; else one in fedshare-home (demo: demo-home).")
]
File = Annotated[Path, typer.Argument(help="A federation file (TOML).", metavar="FILE")]
Store = Annotated[
    str, typer.Option(envvar="FEDSHARE_STORE", help="postgresql://user@host/database; else a file in HOME.")
]
Blobs = Annotated[
    str,
    typer.Option(
        envvar="FEDSHARE_BLOBS",
        help="Folder or URL (s3://bucket/path, gs://...); else where they were kept before; new: HOME/blobs.",
    ),
]
