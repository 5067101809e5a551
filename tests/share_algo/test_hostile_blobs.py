"""A blob from anybody is read or refused in one sentence, and what was read can be written, and read, again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from algebra_samples import adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from share_algo import Adapter, AlgebraError, Basis, TaskEntry, Update, append, derived_block
from share_algo.codec import (
    METADATA,
    decode_block,
    decode_entry,
    decode_update,
    encode_block,
    encode_entry,
    encode_update,
)
from share_algo.writable import HEADS_MAX, NAME_BYTES_MAX, SETTINGS_BYTES_MAX, SETTINGS_DEPTH_MAX

SHAPES = {"m": (6, 5), "n.scale": (4, 3)}
DEEP = "(deep)"
"""Stands for more brackets than a stack can hold."""


def sample() -> Update:
    head = {"score.weight": torch.randn(2, 5), "score.bias": torch.randn(2), "norm.scale": torch.ones(3).half()}
    whole = adapter(1, 2, SHAPES)
    return append(Basis(), Adapter(whole.factors, head, {"modules_to_save": ["score"]})).update


BLOBS = (
    encode_update(sample()),
    *(encode_update(sample(), compact=True, direction_bits=bits) for bits in (4, 8)),
    encode_entry(decode_update(encode_update(sample(), compact=True)).entry, compact_if_exact=True),
    encode_block(derived_block(SHAPES, 2, seed=1)),
)


def taken_apart(blob: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Its header, what its metadata say, and the numbers."""
    size = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + size])
    said = json.loads(header.get("__metadata__", {}).get(METADATA, "{}"))
    return header, said, blob[8 + size :]


def put_together(header: Any, said: Any, numbers: bytes) -> bytes:
    def written(value: Any) -> str:
        return json.dumps(value).replace(f'"{DEEP}"', 100_000 * "[" + 100_000 * "]")

    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        header["__metadata__"][METADATA] = written(said)
    text = written(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers


def with_said(blob: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    header, said, numbers = taken_apart(blob)
    header.setdefault("__metadata__", {})
    change(said)
    return put_together(header, said, numbers)


def with_head(*names: str, shape: tuple[int, ...] = (2, 3)) -> bytes:
    return save({f"head/{name}": torch.ones(shape) for name in names})


def packed_head(name: str, shape: list[Any], **beside: torch.Tensor) -> bytes:
    numbers = save({"steps": torch.arange(6).to(torch.int8), "scales": torch.ones(2), **beside}, {METADATA: "{}"})
    return with_said(numbers, lambda said: said.update(packed={name: {"head": shape}}))


def nested(depth: int) -> list[Any]:
    return [] if depth == 1 else [nested(depth - 1)]


REFUSED = {
    "half of a surrogate pair": (packed_head("x\ud800", [2, 3]), "cannot be called"),
    "control character": (with_head("x\n"), "cannot be called"),
    "no name": (with_head(""), "cannot be called"),
    "long name": (with_head("x" * (NAME_BYTES_MAX + 1)), "cannot be called"),
    "many bytes": (with_head("\N{GREEK SMALL LETTER ALPHA}" * (NAME_BYTES_MAX // 2 + 1)), "cannot be called"),
    "name of a scale": (with_head("x", "x.scale"), "needed for the scale"),
    "packed, and once more": (packed_head("x", [2, 3], **{"head/x": torch.ones(2, 3)}), "once more"),
    "scale of what is packed": (packed_head("x", [2, 3], **{"head/x.scale": torch.ones(2)}), "once more"),
    "many tensors": (with_head(*map(str, range(HEADS_MAX + 1)), shape=()), f"at most {HEADS_MAX}"),
    "size beyond 64 bits": (packed_head("x", [0, 2**70]), "no shape"),
    "size of 63 bits": (packed_head("x", [2**63, 0]), "no shape"),
    "size of 63 bits without numbers": (
        with_said(
            save({"steps": torch.zeros(0).to(torch.int8), "scales": torch.zeros(0)}, {METADATA: "{}"}),
            lambda said: said.update(packed={"m": {"P": [2**63, 0], "Q": [1, 0]}}),
        ),
        "no shape",
    ),
    "plain size of 63 bits without numbers": (
        put_together({"P/m": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}, {}, b""),
        "no shape",
    ),
    "sizes without numbers": (with_head("x", shape=(0, 2**20, 2**20)), "too large"),
    "many dimensions": (with_head("x", shape=(1,) * 70), "no shape"),
    "size that is none": (packed_head("x", [2, True]), "no shape"),
    "deep settings": (with_said(with_head("x"), lambda said: said.update(settings={"a": nested(900)})), "levels deep"),
    "large settings": (
        with_said(with_head("x"), lambda said: said.update(settings={"a": "b" * SETTINGS_BYTES_MAX})),
        "bytes as JSON",
    ),
    "bottomless metadata": (with_said(with_head("x"), lambda said: said.update(settings=DEEP)), "not JSON"),
    "bottomless header": (put_together({"head/x": DEEP}, {}, b""), "not JSON"),
    "no header": (put_together([], {}, b""), "no table"),
    "unknown type": (with_head("x").replace(b'"F32"', b'"F31"'), "safetensors"),
}


@pytest.mark.parametrize(("blob", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_could_not_be_written_again_is_refused_in_one_sentence(blob: bytes, reason: str):
    for decode in (decode_update, decode_entry, decode_block):
        with pytest.raises(AlgebraError, match=reason) as refusal:
            decode(blob)
        said_in_one_sentence(refusal.value)


@pytest.mark.parametrize("name", ["x\n", "x\ud800", "", "x" * (NAME_BYTES_MAX + 1)])
def test_who_writes_is_held_to_the_same_names(name: str):
    for head in ({name: torch.ones(2, 3)}, {"x": torch.ones(2), "x.scale": torch.ones(2)}):
        for write in (lambda e: encode_entry(e, compact_if_exact=True), lambda e: encode_update(Update({}, e))):
            with pytest.raises(AlgebraError, match=r"cannot be called|needed for the scale"):
                write(TaskEntry({}, head))


def test_names_and_settings_at_their_bounds_are_kept():
    head = {name: torch.ones(2, 3) for name in ("x" * NAME_BYTES_MAX, "\U0001f600 /\\\"'", "x.scale", "y/z")}
    entry = TaskEntry({}, head, {"a": nested(SETTINGS_DEPTH_MAX - 1), "\ud800": "\ud800"})
    for blob in (encode_entry(entry), encode_entry(entry, compact_if_exact=True)):
        again = decode_entry(blob)
        assert again.head.keys() == head.keys() and again.settings == entry.settings


hostile = st.one_of(
    st.sampled_from([None, True, -1, 0, 1, 2, 3, 6, 2**20, 2**31, 2**63, 2**64, 10**400, 0.5, float("inf"), DEEP]),
    st.sampled_from(["", "x\ud800", "x\0", "x" * 300, "head/x", "linear", "conv:3,3", "F16", "I8", "U8", "F8_E8M0"]),
    st.sampled_from(
        [[], {}, [0, 0], [0, 2**63], [2, 2, 4], [1] * 70, nested(500), {"P": [1, 1]}, {"a": {"head": [2, 3]}}]
    ),
)
names = st.one_of(
    st.sampled_from(
        ["x\ud800", "x\n", "", "y" * 300, "steps", "scales", "halves", "__metadata__", "settings", "packed"]
    ),
    st.sampled_from(
        ["head/x", "head/x.scale", "P/m", "in/n.scale", "P/n", "out/", "other/x", "m", "head", "layouts", "derived"]
    ),
)


def fresh(value: Any) -> Any:
    return json.loads(json.dumps(value))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container below a value, with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_change_of_names_shapes_and_settings_is_refused_or_can_be_written_again(data: st.DataObject):
    header, said, numbers = taken_apart(data.draw(st.sampled_from(BLOBS)))
    for _ in range(data.draw(st.integers(1, 3))):
        found = list(places({"header": header, "said": said}))
        container, key = found[data.draw(st.integers(0, 999)) % len(found)]
        how = data.draw(st.sampled_from(["value", "name", "more", "less"]))
        if how == "value" or isinstance(container, list):
            container[key] = fresh(data.draw(hostile))
        elif how == "name":
            container[data.draw(names)] = container.pop(key, None)
        elif how == "more":
            container[data.draw(names)] = fresh(data.draw(hostile))
        else:
            container.pop(key, None)
    must_be_read_or_refused(put_together(header, said, numbers))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BLOBS), st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=3)), min_size=1, max_size=3))
def test_any_change_of_bytes_is_refused_or_can_be_written_again(blob: bytes, changes: list[tuple[int, bytes]]):
    for at, other in changes:
        at %= len(blob)
        blob = blob[:at] + other + blob[at + len(other) :]
    must_be_read_or_refused(blob)


head_names = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["x", "x.scale", "x.scale.scale", "\N{SNOWMAN}" * 90]
)
head_shapes = st.lists(st.sampled_from([0, 1, 2, 3]), max_size=4)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(head_names, st.tuples(head_shapes, st.sampled_from(["F32", "F16", "BF16", "F64"])), max_size=4),
    st.dictionaries(head_names, st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=3),
    st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2)),
)
def test_head_of_any_names_and_shapes_is_refused_or_can_be_written_again(
    plain: dict[str, tuple[list[int], str]], packed: dict[str, tuple[int, int]], setting: Any
):
    header, numbers = {}, b""
    for name, (shape, dtype) in plain.items():
        size = {"F32": 4, "F64": 8}.get(dtype, 2) * int(torch.tensor(shape, dtype=torch.int64).prod())
        begin = len(numbers)
        header[f"head/{name}"] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}
        numbers += bytes(size)
    for name, dtype, size in (("steps", "I8", 1), ("scales", "F32", 4)):
        many = sum(n * m if size == 1 else n for n, m in packed.values())
        begin = len(numbers)
        header[name] = {"dtype": dtype, "shape": [many], "data_offsets": [begin, begin + many * size]}
        numbers += many * size * b"\x3c"
    header = header if packed else {name: said for name, said in header.items() if name not in ("steps", "scales")}
    said = {"settings": {"a": setting}, "packed": {name: {"head": list(shape)} for name, shape in packed.items()}}
    must_be_read_or_refused(put_together({**header, "__metadata__": {}}, said, numbers))


def must_be_read_or_refused(blob: bytes) -> None:
    for decode in (decode_block, decode_update):
        try:
            decode(blob)
        except AlgebraError as refusal:
            said_in_one_sentence(refusal)
    try:
        update = decode_update(blob)
    except AlgebraError:
        return
    assert bits(decode_update(encode_update(update))) == bits(update)
    assert bits(Update({}, decode_entry(encode_entry(update.entry, compact_if_exact=True)))) == bits(
        Update({}, update.entry)
    )


def said_in_one_sentence(refusal: AlgebraError) -> None:
    assert len(str(refusal).encode()) < 1000 and str(refusal).isprintable()


def bits(update: Update) -> dict[str, Any]:
    found: dict[str, Any] = {"settings": json.dumps(update.entry.settings, sort_keys=True)}
    tensors = {f"head/{name}": tensor for name, tensor in update.entry.head.items()}
    for module, c in update.entry.coefficients.items():
        tensors |= {f"P/{module}": c.P_KR, f"Q/{module}": c.Q_LR}
        found[module] = c.layout
    for module, d in update.block.items():
        tensors |= {f"out/{module}": d.out_NK, f"in/{module}": d.in_DL}
    return found | {
        n: (t.dtype, t.shape, (t + 0).contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for n, t in tensors.items()
    }
