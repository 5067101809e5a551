"""The base model's weights, for a federation whose first directions are derived from them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from protos.fedshare.v1.federation_pb2 import START_KIND_WEIGHTS, FederationSpec
from share_algo import LoadedWeights
from share_algo.types import NO_TENSORS
from workers.base_model import BaseModel, find_base_model
from workers.errors import WorkerError


def weights_for(spec: FederationSpec, base: BaseModel | None = None) -> Mapping[str, Tensor]:
    """Of the target modules, where the federation begins in directions of them; else none. base: else it is found by
    the federation's name, when the first weight is asked for, and loaded then: whoever finds the directions on this
    machine's disk needs no model. WorkerError then, where it is not here, or is another.
    """
    if spec.start.kind != START_KIND_WEIGHTS:
        return NO_TENSORS
    modules = [module.name for module in spec.modules]

    def load() -> Mapping[str, Tensor]:
        found = base or find_base_model(spec.base.name)
        if found.fingerprint != spec.base.fingerprint:
            raise WorkerError(
                f"the base model in {found.folder} is not this federation's {spec.base.name}: their weights differ"
            )
        return found.weights(modules)

    return LoadedWeights(modules, load)
