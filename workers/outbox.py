"""The outbox: finished work stays on this disk until its story has ended. Durable before anything is sent.

OUTBOX/UPDATE_ID/header.json           written last: a folder without it is torn and is cleared away
OUTBOX/UPDATE_ID/update.safetensors    what is sent
OUTBOX/UPDATE_ID/trained.safetensors   logits of the function trained, to compare with the function kept
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from protos.chunks import digest_of
from workers import disk
from workers.errors import WorkerError


class Header(BaseModel):
    """What must be known to send an update again, word for word."""

    update_id: str
    task: str
    base_version: int
    digest: str
    nbytes: int
    labels: list[str]
    metrics: dict[str, float]
    warm_start: str = ""


@dataclass(frozen=True)
class Parcel:
    """One update in the outbox."""

    folder: Path
    header: Header

    def blob(self) -> bytes:
        """Raises WorkerError when the disk gives back other bytes: sending them could only fail, for ever."""
        file = self.folder / "update.safetensors"
        blob = file.read_bytes() if file.exists() else b""
        if digest_of(blob) != self.header.digest:
            raise WorkerError(f"{file} is damaged: move {self.folder} away and start again, to fit the task anew")
        return blob

    def trained_logits(self) -> Tensor:
        """Raises WorkerError when they cannot be read: a comparison is lost with them, and nothing that is sent."""
        file = self.folder / "trained.safetensors"
        try:
            return load_file(file)["logits"]
        except (OSError, SafetensorError, KeyError):
            raise WorkerError(
                f"{file} is damaged: the function kept is not compared with the function trained"
            ) from None


class Outbox:
    def __init__(self, folder: Path):
        self.folder = folder
        disk.make_folder(folder)
        for torn in folder.iterdir():
            if torn.is_dir() and not (torn / "header.json").exists():
                shutil.rmtree(torn)

    def put(
        self,
        task: str,
        base_version: int,
        blob: bytes,
        digest: str,
        labels: Sequence[str],
        metrics: Mapping[str, float],
        logits: Tensor,
        warm_start: str = "",
    ) -> Parcel:
        """Durable when it returns. Raises WorkerError, with nothing left behind, when the disk does not take it."""
        header = Header(
            update_id=uuid.uuid4().hex,
            task=task,
            base_version=base_version,
            digest=digest,
            nbytes=len(blob),
            labels=list(labels),
            metrics=dict(metrics),
            warm_start=warm_start,
        )
        folder = self.folder / header.update_id
        try:
            folder.mkdir()
            disk.write(folder / "update.safetensors", blob)
            disk.write(folder / "trained.safetensors", save({"logits": logits}))
            disk.write(folder / "header.part", header.model_dump_json(indent=1).encode())
            os.replace(folder / "header.part", folder / "header.json")
            disk.sync_folder(folder)
            disk.sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise WorkerError(f"cannot keep the result in {self.folder}: {error.strerror}") from None
        return Parcel(folder, header)

    def parcels(self) -> list[Parcel]:
        """What is still on its way, oldest first."""
        headers = sorted(self.folder.glob("*/header.json"), key=lambda path: path.stat().st_mtime)
        return [Parcel(path.parent, _header(path)) for path in headers]

    def done(self, parcel: Parcel) -> None:
        """Its story has ended well: it may go."""
        (parcel.folder / "header.json").unlink()
        shutil.rmtree(parcel.folder)


def _header(path: Path) -> Header:
    try:
        return Header.model_validate_json(path.read_bytes())
    except ValidationError:
        raise WorkerError(f"{path} is damaged: move {path.parent} away and start again, to fit the task anew") from None
