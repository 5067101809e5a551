"""What workers have learned."""

from __future__ import annotations

from dataclasses import dataclass

from share_algo import Adapter

from .formulas import Dense


@dataclass(frozen=True)
class Made:
    """What one worker has learned once. began: what the task was in the base version, where that counts."""

    worker: str
    task: str
    adapter: Adapter
    base_version: int = 0
    began: Dense | None = None
