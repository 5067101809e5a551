"""Group commit: what many threads want done at the same time is done once, by one of them, for all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH_MAX = 64


class Together(Generic[Item, Result]):
    """`work` gets the items of all who wait, in order of arrival, and gives back as many results.

    A result that is an exception is raised where its item came from; one that `work` raises, everywhere.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result | Exception]]):
        self._work = work
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()
        self._turn = Lock()

    def __call__(self, item: Item) -> Result:
        """Done when it returns, by this thread or by another."""
        mine: Future[Result] = Future()
        self._waiting.append((item, mine))
        while not mine.done():
            with self._turn:
                if not mine.done():
                    self._do()
        return mine.result()

    def _do(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_MAX))]
        try:
            results = self._work([item for item, _ in batch])
        except Exception as error:
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
