"""Where two federations' settings differ, said as a federation file names them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.message import Message

from protos.fedshare.v1.federation_pb2 import FederationSpec

NAMED_MAX = 8
IN_FILE = {
    "base.name": "base.model",
    "modules": "base.target_modules",
    "rank": "subspace.rank",
    "tolerance": "subspace.tolerance",
    "directions.first": "subspace.new_directions",
    "directions.tolerance": "subspace.update_tolerance",
    "directions.bits": "subspace.direction_bits",
    "start.kind": "subspace.start",
    "start.columns": "subspace.start_columns",
}
"""Names of settings that are not those of the spec's fields."""


def differences(there: FederationSpec, here: FederationSpec, fields: Iterable[str]) -> str:
    """Of these fields, each setting with both values."""
    found = [
        f"{path} is {one} there and {other} here"
        for field in fields
        for path, one, other in _of_field(there, here, field, field)
    ]
    more = [f"and {len(found) - NAMED_MAX} more differ"] if len(found) > NAMED_MAX else []
    return "; ".join([*found[:NAMED_MAX], *more])


def _of_field(there: Message, here: Message, field: str, path: str) -> Iterator[tuple[str, str, str]]:
    """(setting, value there, value here) of all below."""
    path, (one, other) = IN_FILE.get(path, path), (getattr(message, field) for message in (there, here))
    if isinstance(one, Message):
        yield from _of_message(one, other, path)
    elif there.DESCRIPTOR.fields_by_name[field].message_type is None:
        said, says = _said(there, field), _said(here, field)
        if said != says:
            yield path, said, says
    elif len(one) != len(other):
        yield f"the number of {path}", str(len(one)), str(len(other))
    else:
        for n, pair in enumerate(zip(one, other, strict=True)):
            yield from _of_message(*pair, f"{path}.{n}")


def _of_message(there: Message, here: Message, path: str) -> Iterator[tuple[str, str, str]]:
    for field in there.DESCRIPTOR.fields_by_name:
        yield from _of_field(there, here, field, f"{path}.{field}")


def _said(message: Message, field: str) -> str:
    descriptor, value = message.DESCRIPTOR.fields_by_name[field], getattr(message, field)
    if descriptor.has_presence and not message.HasField(field):
        return "absent"
    if descriptor.enum_type:
        name: Any = descriptor.enum_type.values_by_number[value].name
        return name.rpartition("_")[2].lower()
    return repr(value)
