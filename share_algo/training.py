"""Training inside the subspace: a constraint on PEFT's own LoRA layers, put on and taken off again.

While constrained, a LoRA layer's weights are computed:  lora_B = out P + new_out,  lora_A = (in Q + new_in)^T.
Trainable are P, Q and the new directions (Share's epsilon and phi, arXiv:2602.06043 section on adaptation);
out and in are frozen. Released, the layer is plain LoRA again, bitwise with the same output. All that
PEFT and the Trainer can do stays available.

At the start lora_B = 0 and lora_A is random, so dW = 0 but the gradient is not (both zero would be a saddle).
Each new direction begins as a rank of its own, so with an empty basis and R new directions this *is* plain LoRA,
step by step. The random parts come from the federation's seed alone: every task starts from the same lora_A, so that
what the basis holds of it need not be sent again.
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
from share_algo.peft_read import PREFIX
from share_algo.types import Adapter, Basis, Factors

COEFFICIENTS = "coefficients"
NEW_DIRECTIONS = "new_directions"


class _InSubspace(nn.Module):
    """weight = frozen @ coefficients + [new_directions, 0], transposed for the in side.

    A new direction belongs to one rank; its own coefficient is 1 and stays so, as its length is free.
    """

    def __init__(self, frozen_NK: Tensor, new_Na: Tensor, coefficients_KR: Tensor, transpose: bool):
        super().__init__()
        self.register_buffer("frozen", frozen_NK, persistent=False)
        self.new_directions = nn.Parameter(new_Na)
        self.coefficients = nn.Parameter(coefficients_KR)
        self.transpose = transpose

    def forward(self, unused: Tensor) -> Tensor:
        free = self.coefficients.shape[1] - self.new_directions.shape[1]
        weight = self.frozen @ self.coefficients + nn.functional.pad(self.new_directions, (0, free))
        return weight.T if self.transpose else weight


def constrain(
    model: PeftModel,
    basis: Basis,
    *,
    new_directions: int,
    seed: int,
    adapter_name: str = "default",
) -> PeftModel:
    """Constrain every LoRA layer of `model` to `basis` and `new_directions` trainable columns a side.

    Where neither the basis nor `new_directions` gives a column, AlgebraError. Returns `model`. A training
    step then costs (N K + D L) R more per module than plain LoRA's.
    """
    for module, layer in lora_layers(model):
        A, B = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
        (N, R), D = B.weight.shape, A.weight.shape[1]
        old = basis.columns(module, N, D)
        if min(old.widths) + new_directions == 0:
            raise AlgebraError(f"{module}: no directions to train in: the basis is empty and none are added")
        key = f"{seed}/{module}"
        new = min(new_directions, R)
        out_side = _out_side(old.out_NK, new, B.weight)
        in_side = _in_side(f"{key}/in", old.in_DL, new, A.weight)
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
    """(name in the base model, layer) of every LoRA layer. AlgebraError for other layers than linear ones."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            module = name.removeprefix(PREFIX)
            if not all(isinstance(linear, nn.Linear) for linear in layer.lora_A.values()) or not layer.lora_A:
                raise AlgebraError(f"{module}: only LoRA of linear layers can be constrained or read from a model")
            yield module, layer


def _out_side(frozen_NK: Tensor, new: int, like_NR: Tensor) -> _InSubspace:
    """lora_B = 0. As in LoRA, the first `new` ranks have a column of their own, which starts at zero."""
    (N, K), R = frozen_NK.shape, like_NR.shape[1]
    return _InSubspace(
        frozen_NK.to(like_NR), torch.zeros(N, new).to(like_NR), torch.zeros(K, R).to(like_NR), transpose=False
    )


def _in_side(key: str, frozen_DL: Tensor, new: int, like_RD: Tensor) -> _InSubspace:
    """lora_A: rows of PEFT's own length 1/sqrt(3); the first `new` in random directions, the rest inside the basis."""
    (D, L), R = frozen_DL.shape, like_RD.shape[0]
    directions = torch.stack([_normal(f"{key}/{j}", D) for j in range(new)], 1) if new else torch.zeros(D, 0)
    inside = _normal(f"{key}/coefficients", L, R) / math.sqrt(3 * max(1, L))
    inside[:, :new] = 0.0
    directions = directions / math.sqrt(3 * D)
    return _InSubspace(frozen_DL.to(like_RD), directions.to(like_RD), inside.to(like_RD), transpose=True)


def _normal(key: str, *shape: int) -> Tensor:
    """Random numbers that depend on the key only: the same on every machine, for every column by itself."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) >> 1
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
