"""From the one writer's thread to all who watch: a slow watcher misses notices, never the newest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from coordinator.integrate import Announcement


class Broadcast:
    """`announce` may be called from any thread; `follow` runs on the event loop."""

    def __init__(self, first: Announcement, loop: asyncio.AbstractEventLoop):
        self._newest, self._loop = first, loop
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def newest(self) -> Announcement:
        return self._newest

    def announce(self, announcement: Announcement) -> None:
        self._loop.call_soon_threadsafe(self._set, announcement)

    async def follow(self) -> AsyncIterator[Announcement]:
        """The newest now, and again whenever it has changed, until `close`."""
        while not self._closed:
            changed = self._changed
            yield self._newest
            await changed.wait()

    def close(self) -> None:
        """On the event loop: nobody who watches keeps a coordinator from stopping."""
        self._closed = True
        self._changed.set()

    def _set(self, announcement: Announcement) -> None:
        self._newest = announcement
        self._changed.set()
        self._changed = asyncio.Event()
