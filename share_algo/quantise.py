"""The compact form of named tensors: fewer bytes, and a meaning of its own that is exact.

    directions, coefficients    int8, one float32 scale a column      NAME -> NAME (int8) and NAME + ".scale"
    directions, where asked     the same in steps of -7 .. 7: pack.py puts two of them in a byte
    weights of heads            int8, one power of two a row          likewise; exact in bfloat16
    all others                  bfloat16

A sender rounds first and measures what is left: restored tensors are what everybody computes with, so nothing is
lost on the way. `reduced` of restored tensors gives the same bytes again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from share_algo.errors import AlgebraError

SCALE = ".scale"
LEVELS = 127
LEVELS_BY_BITS = {4: 7, 8: LEVELS}
DIRECTIONS = ("out/", "in/")
BY_COLUMN = (*DIRECTIONS, "P/", "Q/")
HEAD = "head/"


def reduced(tensors: Mapping[str, Tensor], direction_bits: int = 8) -> dict[str, Tensor]:
    """The compact form of float tensors by name.

    An entry moves by at most max / (2 LEVELS) of its column, twice that of its row in a head. Directions of 4 bits have
    7 levels. AlgebraError where a name is taken by another's scale, or directions cannot have so many bits.
    """
    if direction_bits not in LEVELS_BY_BITS:
        raise AlgebraError(f"directions have 4 or 8 bits a number, not {direction_bits}")
    small: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(BY_COLUMN):
            levels = LEVELS_BY_BITS[direction_bits] if name.startswith(DIRECTIONS) else LEVELS
            small[name], small[name + SCALE] = _quantised(tensor, levels)
        elif tensor.ndim == 2 and tensor.numel():
            steps, scale = _quantised(tensor.T, power_of_two=True)
            small[name], small[name + SCALE] = steps.T.contiguous(), scale
        else:
            small[name] = tensor.to(torch.bfloat16)
    if odd := sorted(
        name for name in tensors if name.endswith(SCALE) and _is_int8(small.get(name.removesuffix(SCALE)))
    ):
        raise AlgebraError(f"{odd[0]}: this name is needed for the scale of {odd[0].removesuffix(SCALE)}")
    return small


def scales_of(name: str, shape: tuple[int, int]) -> int:
    """How many scales an int8 tensor of this name and shape has."""
    return shape[0] if name.startswith(HEAD) else shape[1]


def restored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Directions and coefficients in float32, heads as they came, from either form.

    AlgebraError for a quantised tensor without its scale, or with one that does not fit.
    """
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE) and _is_int8(tensors.get(name.removesuffix(SCALE))):
            continue
        if tensor.dtype == torch.int8:
            scale = tensors.get(name + SCALE)
            by_row = name.startswith(HEAD)
            tensor = _restored(name, tensor.T, scale).T.bfloat16() if by_row else _restored(name, tensor, scale)
        elif tensor.dtype == torch.bfloat16 and not name.startswith(HEAD):
            tensor = tensor.float()
        whole[name] = tensor
    return whole


def _is_int8(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dtype == torch.int8


def _quantised(tensor_NK: Tensor, levels: int = LEVELS, *, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    largest_K = tensor_NK.abs().amax(dim=0) if len(tensor_NK) else tensor_NK.new_zeros(tensor_NK.shape[1])
    scale_K = largest_K.float() / levels
    if power_of_two:
        scale_K = scale_K.clamp_min(torch.finfo(torch.float32).tiny).log2().ceil().exp2()
    steps = tensor_NK / scale_K.clamp_min(torch.finfo(torch.float32).tiny)
    return steps.round().to(torch.int8), scale_K


def _restored(name: str, steps_NK: Tensor, scale_K: Tensor | None) -> Tensor:
    if scale_K is None or steps_NK.ndim != 2 or scale_K.shape != (steps_NK.shape[1],):
        raise AlgebraError(f"{name[:80]!r}: an int8 tensor needs one scale for each column")
    return steps_NK.float() * scale_K.float()
