"""What a disk holds after a power cut: what was synced, and of the rest something.

Contents of files that were not synced since they were written may be cut off or zeros. Names that came, went or
changed and whose folder was not synced since may be as before: the newest of them, up to some point.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

KEPT = ("journal.sqlite", "lock")
"""Files whose owner syncs them by other means: SQLite does, and a lock says nothing."""


def path_of(file: int | str | os.PathLike[str], folder: int | None = None) -> Path:
    """Of a descriptor, or of a name below an open folder."""
    if isinstance(file, int):
        return Path(os.readlink(f"/proc/self/fd/{file}"))
    return Path(file) if folder is None else path_of(folder) / file


@dataclass
class Disk:
    """synced: what each file was when it was synced last. pending: changes of names that may still be lost."""

    synced: dict[int, tuple[int, int]] = field(default_factory=dict)
    pending: list[tuple[Path, Callable[[], None]]] = field(default_factory=list)

    @contextmanager
    def noting(self, step: str, path: Path, to: Path) -> Iterator[None]:
        if step == "fsync":
            yield
            self._note_sync(path)
            return
        undo = _undo(step, path, to)
        yield
        self.pending.append((to.parent, undo))

    def power_cut(self, root: Path, rng: Random) -> None:
        mine = [n for n, (folder, _) in enumerate(self.pending) if folder.is_relative_to(root)]
        lost = mine[rng.randint(0, len(mine)) :]
        for n in reversed(lost):
            self.pending[n][1]()
        self.pending = [one for n, one in enumerate(self.pending) if n not in mine]
        for file in sorted(root.rglob("*")):
            if file.is_file() and not file.name.startswith(KEPT) and not self._is_synced(file):
                _damage(file, rng)

    def _note_sync(self, path: Path) -> None:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            self.pending = [one for one in self.pending if one[0] != path]
        else:
            self.synced[status.st_ino] = (status.st_size, status.st_mtime_ns)

    def _is_synced(self, file: Path) -> bool:
        status = file.stat()
        return self.synced.get(status.st_ino) == (status.st_size, status.st_mtime_ns)


def _damage(file: Path, rng: Random) -> None:
    content = file.read_bytes()
    left = rng.choice((0, rng.randint(0, len(content)), len(content)))
    file.write_bytes(rng.choice((content[:left], content[:left].ljust(len(content), b"\0"))))


def _undo(step: str, path: Path, to: Path) -> Callable[[], None]:
    """How what is about to happen is taken back."""
    if step in ("rename", "replace"):
        return _renamed_back(path, to, to.read_bytes() if to.is_file() else None)
    if step == "unlink":
        return _written_again(path, path.read_bytes() if path.is_file() else None)
    if step == "mkdir":
        return lambda: shutil.rmtree(path, ignore_errors=True)
    return lambda: path.mkdir(parents=True, exist_ok=True)


def _renamed_back(path: Path, to: Path, before: bytes | None) -> Callable[[], None]:
    def back() -> None:
        if to.exists() and path.parent.is_dir():
            to.rename(path)
            if before is not None:
                to.write_bytes(before)

    return back


def _written_again(path: Path, content: bytes | None) -> Callable[[], None]:
    def again() -> None:
        if content is not None and path.parent.is_dir():
            path.write_bytes(content)

    return again
