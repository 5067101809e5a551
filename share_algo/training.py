"""Training inside the subspace: a constraint on PEFT's own LoRA layers, put on and taken off again.

While constrained, a LoRA layer's weights are computed:  lora_B = [out, new_out] P,  lora_A = ([in, new_in] Q)^T.
Trainable are P, Q and the new directions (Share's epsilon and phi, arXiv:2602.06043 section on adaptation);
out and in are frozen. Released, the layer is plain LoRA again, bitwise with the same output. All that
PEFT and the Trainer can do stays available.

At the start P = 0 and Q is random, so dW = 0 but the gradient is not (both zero would be a saddle). The
random parts come from the federation's seed and a column's place in the basis: workers that start from the
same version start with the same directions, and later ones never with those that are there already.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from torch.nn.utils import parametrize

from share_algo.errors import AlgebraError
from share_algo.types import Adapter, Basis, Factors

PREFIX = "base_model.model."
COEFFICIENTS = "coefficients"
NEW_DIRECTIONS = "new_directions"


class _InSubspace(nn.Module):
    """weight = [frozen, new_directions] @ coefficients, transposed for the in side."""

    def __init__(self, frozen_NK: Tensor, new_Na: Tensor, coefficients_KR: Tensor, transpose: bool):
        super().__init__()
        self.register_buffer("frozen", frozen_NK, persistent=False)
        self.new_directions = nn.Parameter(new_Na)
        self.coefficients = nn.Parameter(coefficients_KR)
        self.transpose = transpose

    def forward(self, unused: Tensor) -> Tensor:
        weight = torch.cat([self.frozen, self.new_directions], dim=1) @ self.coefficients
        return weight.T if self.transpose else weight


def constrain(
    model: PeftModel, basis: Basis, *, new_directions: int, seed: int, adapter_name: str = "default"
) -> PeftModel:
    """Constrain every LoRA layer of `model` to `basis` and `new_directions` trainable columns a side.

    Where neither the basis nor `new_directions` gives a column, AlgebraError. Returns `model`. A training
    step then costs (N + D)(K + new) R more per module than plain LoRA's.
    """
    for module, layer in lora_layers(model):
        A, B = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
        (N, R), D = B.weight.shape, A.weight.shape[1]
        old = basis.columns(module, N, D)
        if min(old.widths) + new_directions == 0:
            raise AlgebraError(f"{module}: no directions to train in: the basis is empty and none are added")
        key = f"{seed}/{module}"
        out_side = _side(f"{key}/out", old.out_NK, new_directions, R, B.weight, transpose=False)
        in_side = _side(f"{key}/in", old.in_DL, new_directions, R, A.weight, transpose=True)
        for linear, side in ((B, out_side), (A, in_side)):
            linear.weight.requires_grad_(False)
            parametrize.register_parametrization(linear, "weight", side)
    return model


def release(model: PeftModel, adapter_name: str = "default") -> Adapter:
    """Take the constraint off: `model` becomes plain LoRA with the same outputs; returns what it learned."""
    for _, layer in lora_layers(model):
        for linear in (layer.lora_A[adapter_name], layer.lora_B[adapter_name]):
            if parametrize.is_parametrized(linear, "weight"):
                parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)
                linear.weight.grad = None
                linear.weight.requires_grad_(True)
    return read(model, adapter_name)


def read(model: PeftModel, adapter_name: str = "default") -> Adapter:
    """The adapter that a plain (not constrained) PEFT model carries, scaling folded in."""
    factors = {}
    for module, layer in lora_layers(model):
        B, A = layer.lora_B[adapter_name].weight.detach(), layer.lora_A[adapter_name].weight.detach()
        factors[module] = Factors((B * layer.scaling[adapter_name]).float().clone(), A.float().clone())
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    head = {k.removeprefix(PREFIX): v.detach().clone() for k, v in state.items() if ".lora_" not in k}
    return Adapter(factors, head)


def attach(model: PeftModel, adapter: Adapter, adapter_name: str = "default") -> PeftModel:
    """Load `adapter` into `model`'s LoRA layers and head. Ranks may be smaller than the layers' own."""
    layers = dict(lora_layers(model))
    if set(layers) != set(adapter.factors):
        odd = sorted(set(layers) ^ set(adapter.factors))
        raise AlgebraError(f"{odd[0]}: in the model or in the adapter, but not in both")
    state = {PREFIX + k: v for k, v in adapter.head.items()}
    for module, factors in adapter.factors.items():
        R = layers[module].r[adapter_name]
        if factors.rank > R:
            raise AlgebraError(f"{module}: an adapter of rank {factors.rank} does not fit a layer of rank {R}")
        pad = R - factors.rank
        B = nn.functional.pad(factors.B_NR, (0, pad)) / layers[module].scaling[adapter_name]
        state[f"{PREFIX}{module}.lora_B.weight"] = B
        state[f"{PREFIX}{module}.lora_A.weight"] = nn.functional.pad(factors.A_RD, (0, 0, 0, pad))
    set_peft_model_state_dict(model, state, adapter_name=adapter_name)
    return model


def lora_layers(model: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    """(name in the base model, layer) of every LoRA layer."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            yield name.removeprefix(PREFIX), layer


def _side(key: str, frozen_NK: Tensor, new: int, R: int, like: Tensor, *, transpose: bool) -> _InSubspace:
    N, K = frozen_NK.shape
    directions = torch.stack([_normal(f"{key}/{K + j}", N) for j in range(new)], 1) if new else torch.zeros(N, 0)
    # lora_A starts with rows of PEFT's own length, 1/sqrt(3), whatever the number of columns
    start = _normal(f"{key}/coefficients", K + new, R) / math.sqrt(3 * (K + new))
    start = start if transpose else torch.zeros(K + new, R)
    return _InSubspace(frozen_NK.to(like), (directions / math.sqrt(N)).to(like), start.to(like), transpose)


def _normal(key: str, *shape: int) -> Tensor:
    """Random numbers that depend on the key only: the same on every machine, for every column by itself."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) >> 1
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
