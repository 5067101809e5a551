"""A coordinator as a process of its own, kept running: for `run` and `demo`."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from fedshare.errors import UserError

START_SECONDS_MAX = 180.0
STOP_SECONDS_MAX = 60.0
RESTARTS_MAX = 5


class CoordinatorProcess:
    """Use as a context manager. Its log is HOME/coordinator.log; a crash is followed by a restart on the same port."""

    def __init__(self, file: Path, home: Path):
        self._file, self.home = file, home
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
        deadline = time.monotonic() + START_SECONDS_MAX
        while not address_file.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"the coordinator does not start: {self._last_words()}")
            time.sleep(0.1)
        self.address = address_file.read_text()

    def _last_words(self) -> str:
        lines = Path(self._log.name).read_text().splitlines()
        return (lines[-1] if lines else "it said nothing").removeprefix("error: ")
