"""Many small int8 tensors as one, and their scales as another: in a safetensors header the name, shape and place of a
small tensor take more bytes than the tensor. What is where is said once for each module, in the metadata. Directions
whose steps are all in -7 .. 7 take half a byte each (`HALVES`); that loses nothing, so it needs no asking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from share_algo.errors import AlgebraError
from share_algo.quantise import DIRECTIONS, LEVELS_BY_BITS, SCALE, scales_of
from share_algo.writable import check_count, check_name, check_shape

STEPS, SCALES, HALVES = "steps", "scales", "halves"
HALF_BITS = 4
HALF_MAX = LEVELS_BY_BITS[HALF_BITS]
Layout = dict[str, dict[str, list[int]]]
"""By module: kind -> shape, and 4 as a third number for what is in halves; both in alphabetical order, which is that
of the numbers."""


def packed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Layout]:
    """The same numbers in few tensors, and what `unpacked` needs to know. Names are KIND/MODULE."""
    small = {name: tensor for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    rest = {n: t for n, t in tensors.items() if n not in small and n.removesuffix(SCALE) not in small}
    layout: Layout = {}
    parts: dict[str, list[Tensor]] = {STEPS: [], HALVES: []}
    for module, kind, name in sorted((*reversed(name.split("/", 1)), name) for name in small):
        is_half = _fits_half(name, small[name])
        layout.setdefault(module, {})[kind] = [*small[name].shape, *([HALF_BITS] if is_half else [])]
        parts[HALVES if is_half else STEPS].append(small[name].flatten())
    if small:
        rest[STEPS] = torch.cat([*parts[STEPS], torch.zeros(0, dtype=torch.int8)])
        rest[SCALES] = torch.cat([tensors[f"{kind}/{module}{SCALE}"] for module in layout for kind in layout[module]])
    if parts[HALVES]:
        rest[HALVES] = _halved(torch.cat(parts[HALVES]))
    return rest, layout


def unpacked(tensors: Mapping[str, Tensor], layout: object) -> dict[str, Tensor]:
    """What was packed. AlgebraError (the sender's fault) where layout and numbers do not fit each other."""
    whole = {name: tensor for name, tensor in tensors.items() if name not in (STEPS, SCALES, HALVES)}
    shapes = _shapes(layout)
    if not shapes:
        return dict(tensors)
    if odd := sorted(whole.keys() & {full for name in shapes for full in (name, name + SCALE)}):
        raise AlgebraError(f"{odd[0][:80]!r}: is packed, and is there once more")
    counts = [scales_of(name, shape) for name, (shape, _) in shapes.items()]
    scales = _split(tensors, SCALES, torch.float32, counts)
    steps = _split(tensors, STEPS, torch.int8, [_size(s) for s, is_half in shapes.values() if not is_half])
    halves = _unhalved(tensors, [_size(s) for s, is_half in shapes.values() if is_half])
    for (name, (shape, is_half)), scale in zip(shapes.items(), scales, strict=True):
        whole[name], whole[name + SCALE] = next(halves if is_half else steps).view(shape), scale
    return whole


def _fits_half(name: str, steps: Tensor) -> bool:
    return name.startswith(DIRECTIONS) and steps.numel() > 0 and int(steps.abs().amax()) <= HALF_MAX


def _halved(steps: Tensor) -> Tensor:
    """Two numbers in a byte, the first in the low bits; an odd last one has a zero beside it."""
    low, high = torch.nn.functional.pad(steps + 8, (0, len(steps) % 2), value=8).view(-1, 2).to(torch.uint8).unbind(1)
    return low | (high << 4)


def _unhalved(tensors: Mapping[str, Tensor], sizes: list[int]) -> Iterator[Tensor]:
    if not sizes:
        return iter(())
    (halves,) = _split(tensors, HALVES, torch.uint8, [-(-sum(sizes) // 2)])
    steps = torch.stack([halves & 15, halves >> 4], 1).flatten()[: sum(sizes)].to(torch.int8) - 8
    return iter(steps.split(sizes))


def _size(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]


def _shapes(layout: object) -> dict[str, tuple[tuple[int, int], bool]]:
    """Shape, and whether it is in halves, by name."""
    shapes = {}
    for module, kinds in layout.items() if isinstance(layout, dict) else []:
        for kind, shape in kinds.items() if isinstance(kinds, dict) else []:
            name = f"{kind}/{module}"
            check_name(name)
            check_shape(name, shape)
            if len(shape) != 2 and shape[2:] != [HALF_BITS]:
                raise AlgebraError(f"{name[:80]!r}: a packed tensor has two sizes, and 4 if it is in halves")
            shapes[name] = (shape[0], shape[1]), len(shape) == 3
            check_count(len(shapes))
    return shapes


def _split(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, sizes: list[int]) -> Iterator[Tensor]:
    flat = tensors.get(name)
    if flat is None or flat.dtype != dtype or flat.shape != (sum(sizes),):
        raise AlgebraError(f"{name}: the layout says {sum(sizes)} numbers")
    return iter(flat.split(sizes))
