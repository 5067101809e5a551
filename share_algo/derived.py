"""A derived block: directions that everybody computes from the federation's seed, so that nobody sends or stores them.

Random orthonormal columns, independent for each module and side. The stream of numpy's RandomState is frozen
for good (NEP 19), so old seeds keep their meaning; QR may differ in the last bits between machines, which is
far below any tolerance used here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from share_algo.types import Block, Directions


def derived_block(shapes: Mapping[str, tuple[int, int]], columns: int, seed: int) -> Block:
    """`columns` directions a side for each module; shapes: (N, D) by name. Cost: (N + D) columns^2 a module.

    No more columns than the side is high. Zero columns give an empty block.
    """
    if not columns:
        return {}
    return {
        module: Directions(
            _orthonormal(f"{seed}/{module}/out", N, min(columns, N)),
            _orthonormal(f"{seed}/{module}/in", D, min(columns, D)),
        )
        for module, (N, D) in shapes.items()
    }


def _orthonormal(key: str, height: int, columns: int) -> Tensor:
    seed = np.frombuffer(hashlib.sha256(key.encode()).digest(), dtype=np.uint32)
    normal = np.random.RandomState(seed).standard_normal((height, columns))
    return torch.from_numpy(np.linalg.qr(normal).Q).float()
