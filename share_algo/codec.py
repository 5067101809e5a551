"""Tensors to safetensors bytes and back, for the three things that are kept or sent: block, entry, update.

One flat naming for all:  out/MODULE  in/MODULE  (directions)   P/MODULE  Q/MODULE  (coefficients)   head/NAME.
What is not a tensor (settings of an entry, layouts that are not linear, recipes of derived directions) is JSON
in the one metadata field. Of derived directions only what was learned inside them is there as tensors.
The bytes of equal content are equal, so that a digest names a content. Nothing here can execute anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from share_algo.derived import Derivation, DerivedDirections, Recipe
from share_algo.errors import AlgebraError
from share_algo.pack import packed, unpacked
from share_algo.quantise import reduced, restored
from share_algo.types import LAYOUT, LINEAR, NO_TENSORS, Basis, Block, Coefficients, Directions, TaskEntry, Update
from share_algo.weights import WeightRecipe, basis_with_weights
from share_algo.writable import check, check_count, check_header, check_shape, shown

METADATA = "share_algo"
SAID = ("layouts", "settings", "derived", "packed")
SUBSPACE_TYPES = (torch.float32,)
HEAD_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def encode_block(block: Block) -> bytes:
    derived = {m: d.recipe.said for m, d in block.items() if isinstance(d, DerivedDirections)}
    flat = _flat_block(block)
    check(flat, {}, derived)
    return _saved(flat, {"derived": derived})


def encode_entry(entry: TaskEntry, *, compact_if_exact: bool = False) -> bytes:
    """compact_if_exact: in the compact form where that loses nothing, as when it came in that form: the same bytes."""
    flat = _flat_entry(entry)
    if compact_if_exact and _is_exact(flat):
        return encode_update(Update({}, entry), compact=True)
    check(flat, entry.settings)
    return _saved(flat, _about(entry))


def encode_update(update: Update, *, compact: bool = False, direction_bits: int = 8) -> bytes:
    """compact: rounded (see quantise.py), directions to 4 or 8 bits a number; `decode_update` of it is then what is
    sent, so measure that."""
    flat = {**_flat_block(update.block), **_flat_entry(update.entry)}
    check(flat, update.entry.settings)
    flat, layout = packed(reduced(flat, direction_bits)) if compact else (flat, {})
    return _saved(flat, {**_about(update.entry), "packed": layout})


def decode_block(blob: bytes) -> Block:
    """As `decode_update`; directions may be derived, which costs nothing before they are looked at."""
    by_kind, said = _by_kind(blob)
    inside = _block(by_kind)
    derived = {m: _recipe(m, numbers) for m, numbers in said.get("derived", {}).items()}
    return {**inside, **{m: DerivedDirections(recipe, inside.get(m)) for m, recipe in derived.items()}}


def decode_basis(blobs: Iterable[bytes], weights: Mapping[str, Tensor] = NO_TENSORS) -> Basis:
    """Blocks side by side. weights: of the base model, by module, where directions are derived from them."""
    return basis_with_weights(map(decode_block, blobs), weights)


def decode_entry(blob: bytes) -> TaskEntry:
    return decode_update(blob).entry


def decode_update(blob: bytes) -> Update:
    """Raises AlgebraError (the sender's fault) for anything that is not one of ours, whole and finite."""
    by_kind, said = _by_kind(blob)
    layouts = said.get("layouts", {})
    if "derived" in said:
        raise AlgebraError("an update must bring its directions, not derive them")
    pairs = _pairs(by_kind["P"], by_kind["Q"], "P", "Q")
    coefficients = {m: _coefficients(m, p, q, layouts.get(m, LINEAR)) for m, (p, q) in pairs.items()}
    return Update(_block(by_kind), TaskEntry(coefficients, by_kind["head"], said.get("settings", {})))


def _is_exact(flat: Mapping[str, Tensor]) -> bool:
    """Whether the compact form says the same numbers of the same types. Ends at the first that it does not."""
    for name, tensor in flat.items():
        again = restored(reduced({name: tensor}))[name]
        if again.dtype != tensor.dtype or not torch.equal(again, tensor):
            return False
    return True


def _flat_block(block: Block) -> dict[str, Tensor]:
    return {
        f"{kind}/{module}": tensor.contiguous()
        for module, d in block.items()
        if d.stored
        for kind, tensor in (("out", d.stored.out_NK), ("in", d.stored.in_DL))
    }


def _block(by_kind: Mapping[str, Mapping[str, Tensor]]) -> Block:
    return {m: Directions(out, inn) for m, (out, inn) in _pairs(by_kind["out"], by_kind["in"], "out", "in").items()}


def _recipe(module: str, said: object) -> Derivation:
    if not isinstance(said, list) or [type(x) for x in said] not in ([str, int, int, int], [int, int, int, int]):
        raise AlgebraError(f"{module}: a recipe of derived directions is a seed or a fingerprint, columns, N and D")
    return WeightRecipe(module, *said) if isinstance(said[0], str) else Recipe(module, *said)


def _flat_entry(entry: TaskEntry) -> dict[str, Tensor]:
    flat = {
        f"{kind}/{module}": tensor.contiguous()
        for module, c in entry.coefficients.items()
        for kind, tensor in (("P", c.P_KR), ("Q", c.Q_LR))
    }
    return {**flat, **{f"head/{name}": tensor.contiguous() for name, tensor in entry.head.items()}}


def _about(entry: TaskEntry) -> dict[str, Any]:
    layouts = {m: c.layout for m, c in entry.coefficients.items() if c.layout != LINEAR}
    return {"layouts": layouts, "settings": dict(entry.settings)}


def _metadata(said: Mapping[str, Any]) -> dict[str, str] | None:
    """One field only: safetensors writes several in no fixed order."""
    said = {key: value for key, value in said.items() if value}
    return {METADATA: json.dumps(said, sort_keys=True)} if said else None


def _saved(flat: dict[str, Tensor], said: Mapping[str, Any]) -> bytes:
    blob = save(flat, _metadata(said))
    check_header(int.from_bytes(blob[:8], "little"))
    return blob


def metadata_of(blob: bytes) -> dict[str, str]:
    """The metadata of a blob that is known to be whole safetensors."""
    return _header(blob).get("__metadata__") or {}


def _header(blob: bytes) -> dict[str, Any]:
    """What a blob says of its tensors, before safetensors or torch are asked to make room for them."""
    size = int.from_bytes(blob[:8], "little")
    check_header(size)
    try:
        header = json.loads(blob[8 : 8 + size])
    except (ValueError, RecursionError):
        raise AlgebraError("not a safetensors blob: its header is not JSON") from None
    if not isinstance(header, dict):
        raise AlgebraError("not a safetensors blob: its header is no table of tensors")
    return header


def _loaded(blob: bytes) -> dict[str, Tensor]:
    about = {name: said for name, said in _header(blob).items() if name != "__metadata__"}
    check_count(len(about))
    for name, said in about.items():
        check_shape(name, said.get("shape") if isinstance(said, dict) else None)
    try:
        return load(blob)
    except (SafetensorError, ValueError, KeyError) as error:
        raise AlgebraError(f"not a safetensors blob: {shown(error)}") from None


def _said(blob: bytes) -> dict[str, dict[str, Any]]:
    """What _metadata wrote. `blob` is known to be whole safetensors."""
    try:
        said = json.loads(metadata_of(blob).get(METADATA, "{}"))
    except (ValueError, RecursionError):
        raise AlgebraError(f"the metadata field {METADATA!r} is not JSON") from None
    if not isinstance(said, dict) or not all(isinstance(said.get(key, {}), dict) for key in SAID):
        raise AlgebraError(f"the metadata field {METADATA!r} must hold nothing but {', '.join(SAID)}")
    return said


def _by_kind(blob: bytes) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Any]]]:
    """What is in it, and what its metadata say."""
    loaded, said = _loaded(blob), _said(blob)
    tensors = restored(unpacked(loaded, said.get("packed", {})))
    check(tensors, said.get("settings", {}), said.get("derived", {}))
    by_kind: dict[str, dict[str, Tensor]] = {"out": {}, "in": {}, "P": {}, "Q": {}, "head": {}}
    for full_name, tensor in tensors.items():
        kind, _, name = full_name.partition("/")
        if kind not in by_kind:
            raise AlgebraError(f"unknown tensor {full_name[:80]!r}")
        if tensor.dtype not in (HEAD_TYPES if kind == "head" else SUBSPACE_TYPES) or not _is_finite(tensor):
            raise AlgebraError(f"{name}: {kind} must hold finite float32 numbers (a head: any float of 16 to 64 bits)")
        if kind != "head" and tensor.ndim != 2:
            raise AlgebraError(f"{name}: {kind} must have two dimensions, not {tensor.ndim}")
        by_kind[kind][name] = tensor
    return by_kind, said


def _is_finite(tensor: Tensor) -> bool:
    """A sum that is finite is of finite numbers; one that is not may be of huge ones."""
    return math.isfinite(tensor.sum()) or bool(tensor.isfinite().all())


def _pairs(
    left: Mapping[str, Tensor], right: Mapping[str, Tensor], left_kind: str, right_kind: str
) -> dict[str, tuple[Tensor, Tensor]]:
    if odd := sorted(left.keys() ^ right.keys()):
        raise AlgebraError(f"{odd[0]}: has only one of {left_kind} and {right_kind}")
    return {name: (left[name], right[name]) for name in sorted(left)}


def _coefficients(module: str, P_KR: Tensor, Q_LR: Tensor, layout: object) -> Coefficients:
    if P_KR.shape[1] != Q_LR.shape[1]:
        raise AlgebraError(f"{module}: P has rank {P_KR.shape[1]}, Q has rank {Q_LR.shape[1]}")
    if not isinstance(layout, str) or not LAYOUT.fullmatch(layout):
        raise AlgebraError(f"{module}: unknown layout {str(layout)[:40]!r}")
    return Coefficients(P_KR, Q_LR, layout)
