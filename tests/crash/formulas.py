"""What the papers and the protocol say, in numpy and by hand: no copy of the code that is checked with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from parts import dense, dense_adapter
from safetensors.numpy import load

from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter

Dense = dict[str, np.ndarray]
"""dW by module, and the head's tensors as head/NAME."""
HEAD = "head/"


def of_adapter(adapter: Adapter) -> Dense:
    heads = {f"{HEAD}{name}": tensor.numpy().astype(np.float64) for name, tensor in adapter.head.items()}
    return dense_adapter(adapter) | heads


def of_task(manifest: pb.Manifest, blobs: Mapping[str, bytes], task: str) -> Dense:
    """What a version holds of it."""
    [entry] = [load(blobs[ref.entry.digest]) for ref in manifest.tasks if ref.task == task]
    return dense(manifest, blobs, task) | {n: x.astype(np.float64) for n, x in entry.items() if n.startswith(HEAD)}


def total(*parts: tuple[float, Dense]) -> Dense:
    return {name: sum(weight * each[name] for weight, each in parts) for name in parts[0][1]}  # type: ignore[misc]


def norm(value: Dense, heads: bool = False) -> float:
    return math.sqrt(sum(float(np.square(x).sum()) for name, x in value.items() if name.startswith(HEAD) == heads))


def off(value: Dense, other: Dense, heads: bool = False) -> float:
    return norm(total((1.0, value), (-1.0, other)), heads)


def weight(policy: pb.Policy, staleness: int) -> float:
    """alpha s(tau) of arXiv:1903.03934; with a polynomial of 1/2 that of arXiv:2106.06639."""
    late = max(0.0, staleness - policy.b)
    s = {
        pb.STALENESS_RULE_CONSTANT: 1.0,
        pb.STALENESS_RULE_HINGE: 1.0 / (1.0 + policy.a * late),
        pb.STALENESS_RULE_POLYNOMIAL: math.exp(-policy.a * math.log1p(staleness)),
    }[policy.rule]
    return policy.mixing * s


def deviations(of: float, norms: Sequence[float]) -> float:
    """Robust standard deviations of log `of` from the median of the others' logs."""
    logs = np.log(norms)
    spread = 1.4826 * max(0.1, float(np.median(np.abs(logs - np.median(logs)))))
    return abs(math.log(of) - float(np.median(logs))) / spread
