"""Many small int8 tensors as one, and their scales as another: in a safetensors header the name, shape and place of a
small tensor take more bytes than the tensor. What is where is said once for each module, in the metadata.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from share_algo.errors import AlgebraError
from share_algo.quantise import SCALE, scales_of

STEPS, SCALES = "steps", "scales"
Layout = dict[str, dict[str, list[int]]]
"""By module: kind -> shape, both in alphabetical order, which is that of the numbers."""


def packed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Layout]:
    """The same numbers in few tensors, and what `unpacked` needs to know. Names are KIND/MODULE."""
    small = {name: tensor for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    rest = {n: t for n, t in tensors.items() if n not in small and n.removesuffix(SCALE) not in small}
    layout: Layout = {}
    for module, kind, name in sorted((*reversed(name.split("/", 1)), name) for name in small):
        layout.setdefault(module, {})[kind] = list(small[name].shape)
    order = [f"{kind}/{module}" for module, kinds in layout.items() for kind in kinds]
    if order:
        rest[STEPS] = torch.cat([small[name].flatten() for name in order])
        rest[SCALES] = torch.cat([tensors[name + SCALE] for name in order])
    return rest, layout


def unpacked(tensors: Mapping[str, Tensor], layout: object) -> dict[str, Tensor]:
    """What was packed. AlgebraError (the sender's fault) where layout and numbers do not fit each other."""
    whole = {name: tensor for name, tensor in tensors.items() if name not in (STEPS, SCALES)}
    shapes = _shapes(layout)
    if not shapes:
        return dict(tensors)
    sizes = [rows * columns for rows, columns in shapes.values()]
    counts = [scales_of(name, shape) for name, shape in shapes.items()]
    steps = _split(tensors, STEPS, torch.int8, sizes)
    scales = _split(tensors, SCALES, torch.float32, counts)
    for (name, shape), step, scale in zip(shapes.items(), steps, scales, strict=True):
        whole[name], whole[name + SCALE] = step.view(shape), scale
    return whole


def _shapes(layout: object) -> dict[str, tuple[int, int]]:
    shapes = {}
    for module, kinds in layout.items() if isinstance(layout, dict) else []:
        for kind, shape in kinds.items() if isinstance(kinds, dict) else []:
            if not isinstance(shape, list) or [type(n) for n in shape] != [int, int] or min(shape) < 0:
                raise AlgebraError(f"{module[:80]}: {kind[:20]}: a packed tensor has two sizes")
            shapes[f"{kind}/{module}"] = (shape[0], shape[1])
    return shapes


def _split(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, sizes: list[int]) -> tuple[Tensor, ...]:
    flat = tensors.get(name)
    if flat is None or flat.dtype != dtype or flat.shape != (sum(sizes),):
        raise AlgebraError(f"{name}: the layout says {sum(sizes)} numbers")
    return flat.split(sizes)
