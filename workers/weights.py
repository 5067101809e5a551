"""The base model's weights, for a federation whose first directions are derived from them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from protos.fedshare.v1.federation_pb2 import START_KIND_WEIGHTS, FederationSpec
from share_algo.types import NO_TENSORS
from workers.base_model import BaseModel, find_base_model
from workers.errors import WorkerError


def weights_for(spec: FederationSpec, base: BaseModel | None = None) -> Mapping[str, Tensor]:
    """Of the target modules, where the federation begins in directions of them; else none, and no model is looked for.

    base: else it is found by the federation's name for it. Raises WorkerError where it is not here, or is another.
    """
    if spec.start.kind != START_KIND_WEIGHTS:
        return NO_TENSORS
    base = base or find_base_model(spec.base.name)
    if base.fingerprint != spec.base.fingerprint:
        raise WorkerError(
            f"the base model in {base.folder} is not this federation's {spec.base.name}: their weights differ"
        )
    return base.weights(m.name for m in spec.modules)
