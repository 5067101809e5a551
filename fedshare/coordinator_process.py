"""A coordinator as a process of its own, kept running: for `run` and `demo`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fedshare.errors import UserError

SILENT_SECONDS_MAX = 180.0
"""A coordinator that starts tells of whatever takes longer, as deriving a wide model's directions: minutes."""
LINE_BYTES_MAX = 4096
STOP_SECONDS_MAX = 60.0
RESTARTS_MAX = 5


class CoordinatorProcess:
    """Use as a context manager. Its log is HOME/coordinator.log; a crash is followed by a restart on the same port.

    told: called with each line that it logs while it starts.
    """

    def __init__(self, file: Path, home: Path, told: Callable[[str], None] = lambda line: None):
        self._file, self.home, self._told = file, home, told
        self.address = ""
        self.restarts = 0

    def __enter__(self) -> CoordinatorProcess:
        self.home.mkdir(parents=True, exist_ok=True)
        self._log = (self.home / "coordinator.log").open("a")
        try:
            self._start(port=0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def keep_running(self) -> bool:
        """Start it again if it died. Returns whether it had. Raises UserError when it keeps dying."""
        if self._process.poll() is None:
            return False
        self.restarts += 1
        if self.restarts > RESTARTS_MAX:
            raise UserError(f"the coordinator died {self.restarts} times: see {self._log.name}")
        self._start(port=int(self.address.rpartition(":")[2]))
        return True

    def _start(self, port: int) -> None:
        address_file = self.home / "address"
        address_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "fedshare", "coordinator", str(self._file)]
        self._process = subprocess.Popen(
            [*command, "--home", str(self.home), "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for us; we stop it in order
        )
        said, deadline = self._last_line(), time.monotonic() + SILENT_SECONDS_MAX
        while not address_file.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = self._last_line().removeprefix("error: ") or "it said nothing"
                raise UserError(f"the coordinator does not start: {words}")
            if (line := self._last_line()) != said:
                said, deadline = line, time.monotonic() + SILENT_SECONDS_MAX
                self._told(line)
            time.sleep(0.1)
        self.address = address_file.read_text()

    def _last_line(self) -> str:
        with open(self._log.name, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LINE_BYTES_MAX))
            lines = log.read().decode(errors="replace").splitlines()
        return lines[-1] if lines else ""
