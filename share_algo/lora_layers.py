"""PEFT's LoRA layers, seen as pairs of factors: where each kind of layer keeps lora_A and lora_B, and in which shape.

Linear and GPT-2's Conv1D keep two nn.Linear (over quantised base weights too), ConvNd two convolutions, Embedding two
bare parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Embedding, ParamWrapper, _ConvNd
from torch import Tensor, nn
from torch.nn.utils import parametrize

from share_algo.constraint import InSubspace
from share_algo.errors import AlgebraError
from share_algo.peft_read import PREFIX
from share_algo.types import EMBEDDING, LINEAR


@dataclass(frozen=True)
class Side:
    """One factor: the tensor `name` of `owner`, which for a convolution has more than two dimensions."""

    owner: nn.Module
    name: str

    @property
    def weight(self) -> Tensor:
        """The tensor that PEFT computes with."""
        return getattr(self.owner, self.name)

    @property
    def constraint(self) -> InSubspace | None:
        """What computes it, while constrained."""
        if not parametrize.is_parametrized(self.owner, self.name):
            return None
        (constraint,) = self.owner.get_submodule(f"parametrizations.{self.name}").children()
        return constraint if isinstance(constraint, InSubspace) else None

    def matrix(self) -> Tensor:
        """lora_B (N, R) or lora_A (R, D), as exactly as it is known: a constrained layer may round it."""
        constraint = self.constraint
        return (self.weight.flatten(1) if constraint is None else constraint.matrix()).detach().clone()

    def constrain(self, constraint: InSubspace) -> None:
        self.weight.requires_grad_(False)
        parametrize.register_parametrization(self.owner, self.name, constraint)

    def release(self) -> None:
        """Back to a plain parameter with the same value."""
        if self.constraint is not None:
            parametrize.remove_parametrizations(self.owner, self.name, leave_parametrized=True)
            self.weight.grad = None
            self.weight.requires_grad_(True)

    @torch.no_grad()
    def write(self, matrix: Tensor) -> None:
        self.weight.copy_(matrix.reshape(self.weight.shape))


@dataclass(frozen=True)
class LoraPair:
    """One LoRA layer's two factors, its layout as in Factors, and what PEFT multiplies B A with."""

    out: Side
    into: Side
    layout: str
    scaling: float


def lora_pairs(model: PeftModel, adapter_name: str = "default") -> Iterator[tuple[str, LoraPair]]:
    """(name in the base model, factors) of every LoRA layer. AlgebraError for what factors alone do not hold."""
    if adapter_name not in getattr(model, "peft_config", {}):
        raise AlgebraError(f"the model has no LoRA adapter named {adapter_name!r}")
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and adapter_name in layer.scaling:
            yield name.removeprefix(PREFIX), _pair(name.removeprefix(PREFIX), layer, adapter_name)


def _pair(module: str, layer: LoraLayer, adapter_name: str) -> LoraPair:
    scaling = layer.scaling[adapter_name]
    _refuse(module, layer, adapter_name)
    if isinstance(layer, Embedding):
        out, into = (Side(owner, adapter_name) for owner in (layer.lora_embedding_B, layer.lora_embedding_A))
        return LoraPair(out, into, EMBEDDING, scaling)
    out, into = Side(layer.lora_B[adapter_name], "weight"), Side(layer.lora_A[adapter_name], "weight")
    kernel = ",".join(str(size) for size in into.weight.shape[2:])
    return LoraPair(out, into, f"conv:{kernel}" if kernel else LINEAR, scaling)


def _refuse(module: str, layer: LoraLayer, adapter_name: str) -> None:
    if adapter_name in layer.lora_variant:
        variant = type(layer.lora_variant[adapter_name]).__name__.removesuffix("Variant")
        raise AlgebraError(f"{module}: {variant} changes more than B A: only plain LoRA can be constrained or read")
    if layer.lora_bias.get(adapter_name):
        raise AlgebraError(f"{module}: lora_B has a bias, which LoRA factors alone do not hold")
    if isinstance(layer, ParamWrapper):
        raise AlgebraError(f"{module}: LoRA of bare parameters (target_parameters) can not be constrained or read")
    if isinstance(layer, _ConvNd) and getattr(layer.get_base_layer(), "groups", 1) > 1:
        raise AlgebraError(f"{module}: a grouped convolution's update is block-diagonal, which B A is not")
