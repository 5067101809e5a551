"""What the sections of benchmarks.algebra share: the sets S and L, and one thread for everybody."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import torch  # noqa: E402

from benchmarks.algebra_samples import Sample  # noqa: E402
from share_algo import Adapter, Factors  # noqa: E402

torch.set_num_threads(1)
S = {"d": 768, "modules": 24, "r": 8, "shared": 48, "noise": 0.01}
L = {"d": 4096, "r": 16, "shared": 48, "noise": 0.01}
K = 64
TOLERANCE = 0.05
"""Above the noise of the samples: once the shared directions are found, nothing is added."""


def adapter(sample: Sample) -> Adapter:
    return Adapter({m: Factors(torch.from_numpy(B), torch.from_numpy(A)) for m, (B, A) in sample.items()})


def sample_of(one: Adapter) -> Sample:
    return {m: (f.B_NR.numpy(), f.A_RD.numpy()) for m, f in one.factors.items()}


def cpu_seconds(act: Callable[[], object]) -> float:
    started = time.process_time()
    act()
    return time.process_time() - started
