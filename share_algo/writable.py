"""What may be in a blob: one rule for who writes and who reads, so that whatever was read can be written again.

A blob may come from anybody. What is bounded here is what its sender says (names, sizes, settings), before memory is
asked for it; numbers are bounded by the bytes they take.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from share_algo.errors import AlgebraError
from share_algo.quantise import HEAD, SCALE

HEADER_BYTES_MAX = 1 << 25
"""Three times what 18,000 modules, as of a large mixture of experts, take; read as JSON it is some 300 MB."""
TENSORS_MAX = 100_000
"""More tensors than this in one blob are refused before any is looked at."""
NUMBERS_MAX = 1 << 30
"""In one tensor, sides of no length counted as 1: one of [0, 2^63] takes no bytes, and no memory holds its scales."""
DIMENSIONS_MAX = 8
NAME_BYTES_MAX = 255
"""In UTF-8: what file systems allow a name, and twice what the path of a module in a model takes."""
HEADS_MAX = 1000
"""Tensors of a head: hundreds of layers trained whole. Names and shapes of so many take less than 1 MB."""
SETTINGS_BYTES_MAX = 1 << 20
SETTINGS_DEPTH_MAX = 16
"""Adapter settings are some names in lists; what is nested deeper than the stack could be read but not written."""

UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and halves of surrogate pairs, which JSON can say and UTF-8 cannot."""


def check(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], derived: Iterable[str] = ()) -> None:
    """AlgebraError for what could not be written or read again. Names are KIND/NAME. derived: names of modules."""
    check_count(len(tensors))
    if (heads := sum(name.startswith(HEAD) for name in tensors)) > HEADS_MAX:
        raise AlgebraError(f"a head of {heads} tensors; at most {HEADS_MAX} are kept")
    for name, tensor in tensors.items():
        check_name(name)
        check_shape(name, tensor.shape)
        if name.endswith(SCALE) and name.removesuffix(SCALE) in tensors:
            raise AlgebraError(f"{name}: this name is needed for the scale of {name.removesuffix(SCALE)}")
    for module in derived:
        check_name(f"{HEAD}{module}")
    _check_settings(settings)


def check_header(size: int) -> None:
    if size > HEADER_BYTES_MAX:
        raise AlgebraError(f"not a safetensors blob: a header of {size} bytes; at most {HEADER_BYTES_MAX} are read")


def check_count(tensors: int) -> None:
    if tensors > TENSORS_MAX:
        raise AlgebraError(f"{tensors} tensors in one blob; at most {TENSORS_MAX} are read")


def check_name(full_name: str) -> None:
    """KIND/NAME."""
    name = full_name.partition("/")[2]
    if UNWRITABLE.search(full_name) or not 0 < len(name.encode()) <= NAME_BYTES_MAX:
        raise AlgebraError(
            f"a tensor cannot be called {full_name[:80]!r}: a name has a kind before it, 1 to {NAME_BYTES_MAX} bytes"
            " of UTF-8 and no control characters"
        )


def check_shape(name: str, shape: object) -> None:
    """AlgebraError for what is no list of sizes, or for sizes that no tensor here has."""
    sizes = shape if isinstance(shape, list | tuple) and len(shape) <= DIMENSIONS_MAX else [None]
    if not all(type(n) is int and 0 <= n <= NUMBERS_MAX for n in sizes):
        raise AlgebraError(f"{name[:80]!r}: {shown(shape)} is no shape of a tensor")
    if math.prod(n or 1 for n in sizes) > NUMBERS_MAX:
        raise AlgebraError(f"{name[:80]!r}: {shown(shape)} is too large for a tensor")


def shown(said: object) -> str:
    """For a message: what a sender said may be long, and nothing that can be shown."""
    return "".join(c if c.isprintable() else "?" for c in str(said)[:200])


def _check_settings(settings: Mapping[str, Any]) -> None:
    level: list[Any] = [dict(settings)]
    for _ in range(SETTINGS_DEPTH_MAX):
        level = [
            x for of in level if isinstance(of, dict | list) for x in (of.values() if isinstance(of, dict) else of)
        ]
    if level or len(json.dumps(dict(settings))) > SETTINGS_BYTES_MAX:
        raise AlgebraError(
            f"settings are at most {SETTINGS_DEPTH_MAX} levels deep, and at most {SETTINGS_BYTES_MAX} bytes as JSON"
        )
