"""What version 0 holds, and a forget begins with again: nothing, or columns that everybody derives.

Such a block is stored and sent as a recipe. The columns that two machines derive agree to rounding, and nobody needs
more: what a worker learned is read as dW, in the coordinator's columns.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping

from torch import Tensor

from coordinator.errors import CoordinatorError
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Block, derive, derived_block, weight_block

log = logging.getLogger(__name__)

THREADS_MAX = 8
"""Each holds a weight in float64."""
TOLD_SECONDS = 2.0
"""Between two lines that say how far it has come."""

FindWeights = Callable[[pb.FederationSpec], Mapping[str, Tensor]]
"""Of the base model, by module, where the federation's directions are derived from them; else none are looked for."""


def start_block(
    spec: pb.FederationSpec,
    weights: Mapping[str, Tensor],
    stored: Block | None = None,
    must_go_on: Callable[[], None] = lambda: None,
) -> Block:
    """Derived here and now, where the spec asks for it. weights: of the base model, by module; not looked at where the
    block is stored and this machine has derived its columns before. must_go_on: called after each module; raises where
    nobody wants the rest.

    Raises CoordinatorError where weights are not there, AlgebraError where their singular vectors cannot be told apart.
    """
    block, last = stored or _recipes(spec, weights), time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal last
        must_go_on()
        if time.monotonic() - last > TOLD_SECONDS:
            log.info("the first directions of %d of %d modules are derived", done, total)
            last = time.monotonic()

    derive([block], told, threads=min(THREADS_MAX, os.cpu_count() or 1))  # so that no merge has to wait for it
    return block


def _recipes(spec: pb.FederationSpec, weights: Mapping[str, Tensor]) -> Block:
    start = spec.start
    if start.kind == pb.START_KIND_WEIGHTS:
        return _of_weights(spec, weights)
    if start.kind == pb.START_KIND_SEED:
        shapes = {m.name: (m.out_features, m.in_features) for m in spec.modules}
        return derived_block(shapes, start.columns, spec.seed)
    return {}


def _of_weights(spec: pb.FederationSpec, weights: Mapping[str, Tensor]) -> Block:
    if lacking := [m.name for m in spec.modules if m.name not in weights]:
        raise CoordinatorError(
            f"{spec.name!r} begins in directions of {spec.base.name}'s weights, and those of {lacking[0]} are not here"
        )
    block = weight_block(weights, spec.start.columns)
    return {m.name: block[m.name] for m in spec.modules}
