"""The base model's weights, for a federation whose first directions are derived from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from torch import Tensor

from protos.fedshare.v1.federation_pb2 import START_KIND_WEIGHTS, FederationSpec
from share_algo.types import NO_TENSORS
from workers.base_model import BaseModel, find_base_model
from workers.errors import WorkerError


class BaseWeights(Mapping[str, Tensor]):
    """Of the target modules, by name. The model is looked for, and loaded, when the first one is asked for: whoever
    finds the directions on this machine's disk needs none.

    Raises WorkerError where it is not here, or is another.
    """

    def __init__(self, spec: FederationSpec, base: BaseModel | None):
        self._spec, self._base = spec, base

    @cached_property
    def _loaded(self) -> Mapping[str, Tensor]:
        base = self._base or find_base_model(self._spec.base.name)
        if base.fingerprint != self._spec.base.fingerprint:
            raise WorkerError(
                f"the base model in {base.folder} is not this federation's {self._spec.base.name}: their weights differ"
            )
        return base.weights(self)

    def __getitem__(self, module: str) -> Tensor:
        return self._loaded[module]

    def __contains__(self, module: object) -> bool:
        return module in list(self)

    def __iter__(self) -> Iterator[str]:
        return (module.name for module in self._spec.modules)

    def __len__(self) -> int:
        return len(self._spec.modules)


def weights_for(spec: FederationSpec, base: BaseModel | None = None) -> Mapping[str, Tensor]:
    """Where the federation begins in directions of them; else none. base: else it is found by the federation's name."""
    return BaseWeights(spec, base) if spec.start.kind == START_KIND_WEIGHTS else NO_TENSORS
