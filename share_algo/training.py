"""Training inside the subspace: a constraint on PEFT's own LoRA layers, put on and taken off again.

While constrained, a LoRA layer's weights are computed:  lora_B = out P + new_out,  lora_A = (in Q + new_in)^T.
Trainable are P, Q and the new directions (Share's epsilon and phi, arXiv:2602.06043 section on adaptation);
out and in are frozen. Released, the layer is plain LoRA again, bitwise with the same output. All that
PEFT and the Trainer can do stays available.

At the start lora_B = 0 and lora_A is random, so dW = 0 but the gradient is not (both zero would be a saddle); of an
embedding it is the other way round, as in PEFT: a token reads one entry of each row of lora_A, which would be tiny.
Each new direction begins as a rank of its own, so with an empty basis and R new directions this *is* plain LoRA,
step by step. The random parts come from the federation's seed alone: every task starts from the same lora_A, so that
what the basis holds of it need not be sent again. Or a task starts from what another one learned: `start`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from share_algo.constraint import InSubspace, begin_with, only_ranks, random_side, zero_side
from share_algo.errors import AlgebraError
from share_algo.lora_layers import LoraPair, lora_pairs
from share_algo.peft_read import PREFIX
from share_algo.subspace import Subspace, require_float32
from share_algo.types import EMBEDDING, Adapter, Basis, Coefficients, Factors, TaskEntry


def constrain(
    model: PeftModel,
    subspace: Subspace | Basis,
    *,
    new_directions: int,
    seed: int = 0,
    adapter_name: str = "default",
    inside: bool = False,
    start: TaskEntry | None = None,
    spare: bool = True,
) -> PeftModel:
    """Constrain every LoRA layer of `model` to the subspace's basis and `new_directions` trainable columns a side.

    inside: lora_A begins inside the basis and new directions at zero, so that these are used for what the basis lacks;
    otherwise each new direction begins as a random rank of its own. Modules without a basis always begin so.
    start: begin with the dW of these coefficients (a task's of that subspace) instead of dW = 0; its head is not taken.
    spare: ranks that `start` leaves free are trained too. Otherwise they are zero on both sides, and stay so.
    Where neither the basis nor `new_directions` gives a column, `start` does not fit, or there is neither a start nor
    a spare rank: AlgebraError, the model unchanged. Returns `model`. A training step then costs a few times
    (N K + D L) R more per module than plain LoRA's, whatever the batch: PEFT looks at lora_A's weight twice in a
    forward pass, and the backward pass at both.
    """
    if start is None and not spare:
        raise AlgebraError("without a start every rank is spare: with spare=False nothing would ever be learned")
    if isinstance(subspace, Subspace):
        require_float32(subspace)
    basis = subspace.basis if isinstance(subspace, Subspace) else subspace
    pairs = dict(lora_pairs(model, adapter_name))
    sides = {m: _sides(m, pair, basis, new_directions, f"{seed}/{m}", inside) for m, pair in pairs.items()}
    if start is not None:
        begin(pairs, sides, start)
    for module, (out, into) in sides.items():
        if not spare:
            only_ranks(out, into, _rank_in(start, module))
        pairs[module].out.constrain(out)
        pairs[module].into.constrain(into)
    return model


def release(model: PeftModel, adapter_name: str = "default") -> Adapter:
    """Take the constraint off: `model` becomes plain LoRA with the same outputs; returns what it learned."""
    learned = read(model, adapter_name)
    for _, pair in lora_pairs(model, adapter_name):
        pair.out.release()
        pair.into.release()
    return learned


def read(model: PeftModel, adapter_name: str = "default") -> Adapter:
    """The adapter that a PEFT model carries, scaling folded in; of a constrained one unrounded, in float32."""
    factors = {
        module: Factors((pair.out.matrix() * pair.scaling).float(), pair.into.matrix().float(), pair.layout)
        for module, pair in lora_pairs(model, adapter_name)
    }
    head = {name: tensor.detach().clone() for name, tensor in _head_of(model, adapter_name).items()}
    transposed = getattr(model.peft_config[adapter_name], "fan_in_fan_out", False)
    return Adapter(factors, head, {"fan_in_fan_out": True} if transposed else {})


def coefficients(model: PeftModel, adapter_name: str = "default") -> dict[str, Coefficients]:
    """What a constrained model has learned, by module, in the columns that it is constrained to: nothing is rounded.

    Ranks that are zero are left out, but for one. AlgebraError where it trains new directions: `release` it
    then, and `append` what it learned.
    """
    learned, sides = {}, constraints(model, adapter_name)
    for module, pair in lora_pairs(model, adapter_name):
        out, into = (_inside(module, side) for side in sides[module])
        used = (out.any(dim=0) | into.any(dim=0)).nonzero().flatten()
        used = used if len(used) else used.new_zeros(1)
        learned[module] = Coefficients(out[:, used] * pair.scaling, into[:, used], pair.layout)
    return learned


def _inside(module: str, constraint: InSubspace) -> Tensor:
    if constraint.new_directions.numel():
        raise AlgebraError(f"{module}: new directions are trained, which coefficients alone do not hold")
    return constraint.coefficients.detach()


def attach(model: PeftModel, adapter: Adapter, adapter_name: str = "default") -> PeftModel:
    """Load `adapter` into `model`'s LoRA layers and head. Ranks may be smaller than the layers' own.

    AlgebraError names what does not fit.
    """
    pairs = dict(lora_pairs(model, adapter_name))
    if odd := sorted(pairs.keys() ^ adapter.factors.keys()):
        raise AlgebraError(f"{odd[0]}: in the model or in the adapter, but not in both")
    for module, factors in adapter.factors.items():
        _check_fit(module, pairs[module], factors)
    attach_head(model, adapter.head, adapter_name)
    for module, factors in adapter.factors.items():
        pair = pairs[module]
        pad = len(pair.into.weight) - factors.rank
        pair.out.write(nn.functional.pad(factors.B_NR, (0, pad)) / pair.scaling)
        pair.into.write(nn.functional.pad(factors.A_RD, (0, 0, 0, pad)))
    return model


def attach_head(model: PeftModel, head: Mapping[str, Tensor], adapter_name: str = "default") -> None:
    """Load a task's head into the modules that `model` trains whole. AlgebraError where it has no such part."""
    if not head:
        return
    parts = _head_of(model, adapter_name)
    if unknown := sorted(head.keys() - parts.keys()):
        raise AlgebraError(f"head {unknown[0]}: the model has no such part")
    if missing := sorted(parts.keys() - head.keys()):
        raise AlgebraError(f"head {missing[0]}: the model has this part, the head has not")
    state: dict[str, Any] = {PREFIX + name: tensor for name, tensor in head.items()}
    try:
        set_peft_model_state_dict(model, state, adapter_name=adapter_name)
    except RuntimeError as error:
        raise AlgebraError(f"the head does not fit: {str(error).splitlines()[-1].strip()}") from None


def _head_of(model: PeftModel, adapter_name: str) -> dict[str, Tensor]:
    """What `model` trains whole for its task, by the names that PEFT saves; not copied."""
    rest = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    state = get_peft_model_state_dict(model, rest, adapter_name=adapter_name, save_embedding_layers=False)
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def constraints(model: PeftModel, adapter_name: str = "default") -> dict[str, tuple[InSubspace, InSubspace]]:
    """(out side, in side) by module. AlgebraError where the model is not constrained."""
    found = {}
    for module, pair in lora_pairs(model, adapter_name):
        out, into = pair.out.constraint, pair.into.constraint
        if out is None or into is None:
            raise AlgebraError(f"{module}: not constrained: call share_algo.constrain first")
        found[module] = out, into
    return found


def begin(pairs: Mapping[str, LoraPair], sides: Mapping[str, tuple[InSubspace, InSubspace]], start: TaskEntry) -> None:
    """Let constrained layers compute the dW of `start`. Modules that it has nothing for stay at dW = 0."""
    for module, own in start.coefficients.items():
        if module not in pairs:
            raise AlgebraError(f"{module}: in the start, but not among the model's LoRA layers")
        if own.layout != pairs[module].layout:
            raise AlgebraError(f"{module}: {own.layout} coefficients do not fit a layer of kind {pairs[module].layout}")
        begin_with(module, *sides[module], own, pairs[module].scaling)


def _rank_in(start: TaskEntry | None, module: str) -> int:
    own = start.coefficients.get(module) if start else None
    return own.P_KR.shape[1] if own else 0


def _sides(
    module: str, pair: LoraPair, basis: Basis, new_directions: int, key: str, inside: bool
) -> tuple[InSubspace, InSubspace]:
    B_NR, A_DR = pair.out.weight.flatten(1), pair.into.weight.flatten(1).T
    (N, R), D = B_NR.shape, A_DR.shape[0]
    if pair.out.constraint or pair.into.constraint:
        raise AlgebraError(f"{module}: constrained already: release it first")
    old = basis.columns(module, N, D)
    if min(old.widths) + new_directions == 0:
        raise AlgebraError(f"{module}: no directions to train in: the basis is empty and none are added")
    new = min(new_directions, R)
    if pair.layout == EMBEDDING:  # PEFT's lora_B of standard normal entries
        out = random_side(f"{key}/out", old.out_NK, new, B_NR, transpose=False, shortness=1 / N, inside=inside)
        return out, zero_side(old.in_DL, new, A_DR, transpose=True)
    into = random_side(f"{key}/in", old.in_DL, new, A_DR, transpose=True, shortness=3, inside=inside)
    return zero_side(old.out_NK, new, B_NR, transpose=False), into


def _check_fit(module: str, pair: LoraPair, factors: Factors) -> None:
    R = len(pair.into.weight)
    shape = (pair.out.weight.shape[0], pair.into.weight[0].numel())
    if pair.out.constraint is not None:
        raise AlgebraError(f"{module}: the model is constrained: release it first")
    if factors.rank > R:
        raise AlgebraError(f"{module}: an adapter of rank {factors.rank} does not fit a layer of rank {R}")
    if (factors.layout, factors.shape) != (pair.layout, shape):
        theirs = f"{factors.layout} {factors.shape}"
        raise AlgebraError(f"{module}: an adapter for {theirs} does not fit a layer for {pair.layout} {shape}")
