"""`fedshare export`: one task of a version as a standard PEFT LoRA folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedshare import options

if TYPE_CHECKING:
    from protos.fedshare.v1 import federation_pb2 as pb


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel="Take results out")(export)


def export(
    task: Annotated[str, typer.Option(help="Name of the task.")],
    to: Annotated[Path | None, typer.Option(help="Folder to write; else ./TASK-lora.")] = None,
    version: Annotated[int | None, typer.Option(min=0, max=options.VERSION_MAX, help="Else the newest.")] = None,
    coordinator: options.Coordinator = options.DEFAULT_COORDINATOR,
    as_json: options.Json = False,
) -> None:
    """Write a task as plain LoRA, for peft.PeftModel.from_pretrained and everything that reads it."""
    from fedshare.errors import UserError
    from share_algo.codec import decode_basis, decode_entry
    from share_algo.peft_folder import save_adapter
    from workers.client import Client
    from workers.weights import weights_for

    folder = to or Path(f"{task}-lora")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name another folder with --to")
    with Client(coordinator) as client:
        spec = client.describe()
        manifest, blobs = client.fetch(version, tasks=[task])
    basis = decode_basis((blobs[ref.digest] for ref in manifest.blocks), weights_for(spec))
    ref = manifest.tasks[0]
    adapter = decode_entry(blobs[ref.entry.digest]).adapter(basis)
    try:
        save_adapter(adapter, folder, base_model=spec.base.name, labels=list(ref.labels))
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
    said = {
        "task": task,
        "version": manifest.version,
        "folder": str(folder),
        "labels": list(ref.labels),
        "base_model": spec.base.name,
        "relative_error": ref.relative_error,
        "is_bound": ref.is_bound,
    }
    if as_json:
        print(json.dumps(said))
    else:
        where = f"{task} of version {manifest.version} is in {folder} ({len(ref.labels)} labels)"
        print(f"{where}{_lost(ref, spec.tolerance)}")


def _lost(ref: pb.TaskRef, tolerance: float) -> str:
    """Nothing where it is rounding: what a merge may lose."""
    if ref.relative_error <= tolerance:
        return ""
    most = "at most " if ref.is_bound else ""
    return f"; it has lost {most}{ref.relative_error:.1e} of the dW that was merged, in compactions"
