"""What version 0 holds, and a forget begins with again: nothing, or columns that everybody derives.

Such a block is stored and sent as a recipe. The columns that two machines derive agree to rounding, and nobody needs
more: what a worker learned is read as dW, in the coordinator's columns.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from coordinator.errors import CoordinatorError
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Block, derived_block, weight_block


def start_block(spec: pb.FederationSpec, weights: Mapping[str, Tensor]) -> Block:
    """Derived here and now, where the spec asks for it. weights: of the base model, by module.

    Raises CoordinatorError where weights are not there, AlgebraError where their singular vectors cannot be told apart.
    """
    block = _recipes(spec, weights)
    for directions in block.values():
        _ = directions.out_NK  # so that no merge has to wait for it
    return block


def _recipes(spec: pb.FederationSpec, weights: Mapping[str, Tensor]) -> Block:
    start = spec.start
    if start.kind == pb.START_KIND_WEIGHTS:
        return weight_block(_of_modules(spec, weights), start.columns)
    if start.kind == pb.START_KIND_SEED:
        shapes = {m.name: (m.out_features, m.in_features) for m in spec.modules}
        return derived_block(shapes, start.columns, spec.seed)
    return {}


def _of_modules(spec: pb.FederationSpec, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if lacking := [m.name for m in spec.modules if m.name not in weights]:
        raise CoordinatorError(
            f"{spec.name!r} begins in directions of {spec.base.name}'s weights, and those of {lacking[0]} are not here"
        )
    return {m.name: weights[m.name] for m in spec.modules}
