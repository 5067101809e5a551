"""What happens in the demo: its folder is filled, and one worker is doomed to be killed in the middle of its fit."""

from __future__ import annotations

import shutil
from importlib.resources import files
from itertools import count
from pathlib import Path

from fedshare.demo.tasks import DEMO_TASKS, write_csv_folder
from fedshare.run import Accident

FOLDER = "demo-home"


def prepare(folder: Path | None, seed: int) -> tuple[Path, list[Accident]]:
    """Write the federation file and its data into `folder` (None: a new one here). Returns file and accidents."""
    folder = folder or _new_folder()
    for name in DEMO_TASKS:
        write_csv_folder(folder / "data" / name, name, seed)
    file = folder / "federation.toml"
    with (files("fedshare.demo") / "federation.toml").open("rb") as source, file.open("wb") as target:
        shutil.copyfileobj(source, target)
    return file, [Accident("colour-worker", at_fraction=0.4)]


def _new_folder() -> Path:
    names = (FOLDER if n == 1 else f"{FOLDER}-{n}" for n in count(1))
    return next(Path(name) for name in names if not Path(name).exists())
