"""The compact form: what is rounded once is exact from then on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from share_algo import Adapter, AlgebraError, Basis, Factors, Update, append, lift
from share_algo.canonical import difference_norm, norm
from share_algo.codec import decode_entry, decode_update, encode_entry, encode_update
from share_algo.pack import packed, unpacked
from share_algo.quantise import LEVELS, LEVELS_BY_BITS, reduced, restored


def factors(g: torch.Generator, N: int = 300, D: int = 300) -> Factors:
    return Factors(torch.randn(N, 4, generator=g), torch.randn(4, D, generator=g))


def sample(seed: int) -> Adapter:
    g = torch.Generator().manual_seed(seed)
    return Adapter({"m": factors(g, 400)}, {"classifier.weight": torch.randn(3, 40, generator=g)})


@given(st.integers(0, 2**31), st.sampled_from([4, 8]), st.integers(5, 12))
def test_rounding_twice_gives_the_same_bytes(seed: int, bits: int, N: int) -> None:
    g = torch.Generator().manual_seed(seed)
    adapter = Adapter({"a": factors(g, N, 7), "b": factors(g, 5, N)}, sample(seed).head)
    blob = encode_update(append(Basis(), adapter).update, compact=True, direction_bits=bits)
    assert encode_update(decode_update(blob), compact=True, direction_bits=bits) == blob


@given(st.integers(0, 2**31), st.sampled_from([4, 8]))
def test_every_entry_moves_by_at_most_half_a_step_of_its_column(seed: int, bits: int) -> None:
    tensor = torch.randn(50, 6, generator=torch.Generator().manual_seed(seed))
    for name, levels in (("out/m", LEVELS_BY_BITS[bits]), ("P/m", LEVELS)):
        moved = (restored(reduced({name: tensor}, bits))[name] - tensor).abs()
        assert (moved <= 0.5001 * tensor.abs().amax(dim=0) / levels).all()


@pytest.mark.parametrize("shapes", [(5, 3), (4, 3), (1, 1), (3, 0)])
def test_directions_in_halves_come_back_bitwise_whatever_their_number(shapes: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(1)
    tensors = {"out/m": torch.randn(*shapes, generator=g), "P/m": torch.randn(4, 3, generator=g)}
    flat = reduced(tensors, 4)
    numbers, layout = packed(flat)
    again = unpacked(numbers, layout)
    assert again.keys() == flat.keys() and all(torch.equal(again[name], flat[name]) for name in flat)
    assert sum(t.numel() for n, t in numbers.items() if n == "halves") == math.ceil(shapes[0] * shapes[1] / 2)


def test_a_layout_with_halves_of_other_bits_is_refused() -> None:
    numbers, layout = packed(reduced({"out/m": torch.ones(4, 2)}, 4))
    assert layout == {"m": {"out": [4, 2, 4]}}
    for shape in ([4, 2, 5], [4, 2, 4, 4]):
        with pytest.raises(AlgebraError, match="in halves"):
            unpacked(numbers, {"m": {"out": shape}})


def test_directions_of_four_bits_take_half_the_bytes_of_eight() -> None:
    update = append(Basis(), Adapter({"m": factors(torch.Generator().manual_seed(0), 2000, 2000)})).update
    eight, four = (len(encode_update(update, compact=True, direction_bits=bits)) for bits in (8, 4))
    assert four < 0.55 * eight


@pytest.mark.parametrize("bits", [0, 3, 16])
def test_directions_of_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(AlgebraError, match="4 or 8 bits"):
        reduced({"out/m": torch.ones(3, 1)}, bits)


@given(st.integers(0, 2**31), st.floats(1e-6, 1e6))
def test_a_rounded_head_is_exact_in_bfloat16_and_no_entry_moves_by_more_than_a_step(seed: int, size: float) -> None:
    head = size * torch.randn(3, 40, generator=torch.Generator().manual_seed(seed))
    kept = restored(reduced({"head/score.weight": head}))["head/score.weight"]
    assert kept.dtype == torch.bfloat16
    assert ((kept.float() - head).abs() <= 1.0001 * head.abs().amax(dim=1, keepdim=True) / LEVELS).all()
    assert torch.equal(restored(reduced({"head/score.weight": kept}))["head/score.weight"], kept)


def test_a_rounded_update_is_within_two_percent_at_a_third_of_the_bytes() -> None:
    update = append(Basis(), sample(0)).update
    blob = encode_update(update, compact=True)
    before, after = (lift(u, Basis()).factors["m"] for u in (update, decode_update(blob)))
    assert difference_norm(before, after) / norm(before) < 0.02
    assert len(blob) < len(encode_update(update)) / 3
    merged = append(Basis(), lift(decode_update(blob), Basis()), tolerance=1e-5)
    assert math.isclose(merged.relative_error, 0, abs_tol=1e-5)


def test_a_column_of_zeros_stays_zero() -> None:
    assert torch.equal(restored(reduced({"in/m": torch.zeros(5, 2)}))["in/m"], torch.zeros(5, 2))


@pytest.mark.parametrize("scale", [None, torch.ones(3), torch.ones(2, 2)])
def test_an_int8_tensor_without_its_scale_is_refused_by_name(scale: torch.Tensor | None) -> None:
    tensors = {"out/m": torch.ones(5, 2, dtype=torch.int8)}
    if scale is not None:
        tensors["out/m.scale"] = scale
    with pytest.raises(AlgebraError, match="out/m"):
        restored(tensors)


def test_many_small_tensors_take_hardly_more_than_their_numbers() -> None:
    g = torch.Generator().manual_seed(0)
    modules = [f"encoder.layer.{i}.attention.self.query" for i in range(24)]
    blob = encode_update(append(Basis(), Adapter({m: factors(g) for m in modules})).update, compact=True)
    assert len(blob) < 1.25 * 24 * (2 * 300 * 4 + 2 * 4 * 4 + 4 * 4 * 4)


LAYOUTS = [
    {"m": {"P": [4]}},
    {"m": {"P": [4, -1]}},
    {"m": {"P": [4, True]}},
    {"m": {"P": [10**12, 10**12]}},
    {"m": {"P": [1, 1]}},
    {"m": {"P": [4, 4, 5]}},
    {"m": {"P": [4, 4, 4]}},
    {"m": {"P": []}},
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_that_does_not_fit_its_numbers_is_refused(layout: dict) -> None:
    tensors = {"steps": torch.zeros(16, dtype=torch.int8), "scales": torch.zeros(4)}
    assert unpacked(tensors, {"m": {"P": [4, 4]}}).keys() == {"P/m", "P/m.scale"}
    with pytest.raises(AlgebraError, match=r"layout says|two sizes|no shape"):
        unpacked(tensors, layout)


def test_names_that_end_like_a_scale_are_kept_and_a_clash_is_refused() -> None:
    g = torch.Generator().manual_seed(0)
    factors = Factors(torch.randn(40, 2, generator=g), torch.randn(2, 30, generator=g))
    update = append(Basis(), Adapter({"m.scale": factors}, {"norm.scale": torch.ones(3)})).update
    again = decode_update(encode_update(update, compact=True))
    assert torch.equal(again.entry.head["norm.scale"].float(), torch.ones(3))
    assert list(again.entry.coefficients) == list(again.block) == ["m.scale"]
    with pytest.raises(AlgebraError, match=r"m\.scale"):
        reduced({"out/m": torch.ones(3, 1), "out/m.scale": torch.ones(3, 1)})


def test_an_entry_that_came_in_the_compact_form_is_stored_in_the_same_bytes_and_any_other_in_its_own_numbers() -> None:
    update = append(Basis(), sample(0)).update
    sent = Update({}, update.entry)
    blob = encode_update(sent, compact=True)
    assert encode_entry(decode_update(blob).entry, compact_if_exact=True) == blob
    kept = encode_entry(update.entry, compact_if_exact=True)
    assert kept == encode_entry(update.entry) and len(kept) > len(blob)
    assert torch.equal(decode_entry(kept).coefficients["m"].P_KR, update.entry.coefficients["m"].P_KR)


@pytest.mark.parametrize("compact", [True, False])
def test_a_module_that_is_zero_has_no_columns_and_travels_and_is_stored_all_the_same(compact: bool) -> None:
    nothing = Factors(torch.zeros(6, 2), torch.randn(2, 5))
    update = append(Basis(), Adapter({**sample(0).factors, "zero": nothing}, sample(0).head)).update
    sent = decode_update(encode_update(update, compact=compact))
    assert sent.entry.coefficients["zero"].widths == (0, 0)
    kept = decode_entry(encode_entry(sent.entry, compact_if_exact=True))
    assert torch.equal(kept.coefficients["m"].P_KR, sent.entry.coefficients["m"].P_KR)
    assert kept.coefficients["zero"].P_KR.shape == sent.entry.coefficients["zero"].P_KR.shape
