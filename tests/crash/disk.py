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
        undo = self._undo(step, path, to)
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

    def _undo(self, step: str, path: Path, to: Path) -> Callable[[], None]:
        """How what is about to happen is taken back."""
        if step in ("rename", "replace"):
            return _both(lambda: to.exists() and path.parent.is_dir() and to.rename(path), self._as_it_is(to))
        if step == "unlink":
            return self._as_it_is(path)
        if step == "mkdir":
            return lambda: shutil.rmtree(path, ignore_errors=True)
        return lambda: path.mkdir(parents=True, exist_ok=True)

    def _as_it_is(self, file: Path) -> Callable[[], None]:
        """Makes a file again what it is now; one that is synced is so again."""
        if not file.is_file():
            return lambda: None
        content, synced = file.read_bytes(), self._is_synced(file)

        def again() -> None:
            if file.parent.is_dir():
                file.write_bytes(content)
                if synced:
                    self._note_sync(file)

        return again


def _both(first: Callable[[], object], second: Callable[[], None]) -> Callable[[], None]:
    def both() -> None:
        first()
        second()

    return both


def _damage(file: Path, rng: Random) -> None:
    content = file.read_bytes()
    left = rng.choice((0, rng.randint(0, len(content)), len(content)))
    file.write_bytes(rng.choice((content[:left], content[:left].ljust(len(content), b"\0"))))
