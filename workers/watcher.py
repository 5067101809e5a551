"""The newest version, kept up to date in the background, through coordinators that go and come back."""

from __future__ import annotations

import threading
from collections.abc import Callable

from protos.fedshare.v1.federation_pb2 import VersionNotice
from workers.client import Client
from workers.errors import WorkerError

RECONNECT_SECONDS = 1.0


class Watcher:
    """A daemon thread that reads `Watch`. It ends with the process, or after `stop` with its stream."""

    def __init__(self, client: Client, worker: str, incarnation: int):
        self._client, self._worker, self._incarnation = client, worker, incarnation
        self._newest = VersionNotice()
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    @property
    def newest(self) -> VersionNotice:
        return self._newest

    def wait(self, ready: Callable[[VersionNotice], bool], seconds: float) -> bool:
        """Wait until the newest notice is `ready`, or for so many seconds. Returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: ready(self._newest), seconds)

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                for notice in self._client.watch(self._worker, self._incarnation):
                    with self._changed:
                        self._newest = notice
                        self._changed.notify_all()
            except WorkerError:
                self._stopped.wait(RECONNECT_SECONDS)
            except ValueError:  # the channel was closed: our life is over
                return
