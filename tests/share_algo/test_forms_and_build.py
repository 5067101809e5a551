"""Storage forms, and building from a stream."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from algebra_samples import FULL, adapter, bits, orthonormality, related, relative_error, subspace

from share_algo import Adapter, AlgebraError, Subspace, build, compact, dequantise, merge, quantise

FORMS = ("bfloat16", "int8")


@pytest.mark.parametrize("form", FORMS)
def test_error_of_a_smaller_form_is_measured_counted_and_small(form):
    adapters = [adapter(i, 3, {"m": (200, 150)}) for i in range(4)]
    result = quantise(compact(subspace(adapters), size=6).subspace, form)
    for i, one in enumerate(adapters):
        claimed = result.subspace.certificates[f"t{i}"]
        assert relative_error(one, result.subspace.adapter(f"t{i}")) <= claimed.relative_error + 1e-9
    assert 0 < max(result.report.errors.values()) < {"bfloat16": 0.01, "int8": 0.02}[form]
    assert result.report.nbytes < {"bfloat16": 0.51, "int8": 0.35}[form] * result.report.nbytes_before


@pytest.mark.parametrize("form", FORMS)
def test_quantised_subspace_is_saved_small_and_loaded_bitwise(form, tmp_path):
    made = subspace([adapter(i, 3, {"m": (4000, 3000)}, head=True) for i in range(3)])
    small = quantise(made, form).subspace
    small.save(tmp_path)
    again = Subspace.load(tmp_path)
    assert bits(again) == bits(small) and again.form == form
    on_disk = sum(p.stat().st_size for p in (tmp_path / "blobs").iterdir())
    assert small.nbytes() < on_disk < 1.05 * small.nbytes()


@pytest.mark.parametrize("form", FORMS)
def test_quantised_subspace_is_for_reading_until_dequantised(form):
    small = quantise(subspace([adapter(1), adapter(2, 2)]), form).subspace
    for act in (lambda s: merge(s, "x", adapter(3)), lambda s: compact(s, size=2), lambda s: quantise(s, form)):
        with pytest.raises(AlgebraError, match="dequantise"):
            act(small)
    whole = dequantise(small)
    assert orthonormality(whole) < 1e-6
    for task in small.tasks:
        assert relative_error(small.adapter(task), whole.adapter(task)) < 1e-6
    assert relative_error(adapter(3), merge(whole, "x", adapter(3)).subspace.adapter("x")) < FULL


def test_unknown_form_is_refused():
    with pytest.raises(AlgebraError, match="int3"):
        quantise(subspace([adapter(1)]), "int3")


def test_build_of_a_stream_holds_one_adapter_at_a_time():
    alive: list[weakref.ref] = []
    gc.freeze()  # what other tests have left is not looked through each time

    def source(number: int):
        def load() -> Adapter:
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 1
            one = related(number, 1, 4, 0.1)[0]
            alive.append(weakref.ref(one))
            return one

        return load

    try:
        result = build({f"t{i}": source(i) for i in range(12)}, size=6)
    finally:
        gc.unfreeze()
    assert result.report.tasks == 12 and max(result.subspace.basis.widths()["m"]) <= 6


def test_build_by_compacting_on_the_way_is_within_one_percent_of_one_compaction_at_the_end():
    """Late adapters live in other directions than early ones: without slack the early ones would decide."""
    adapters = [a for seed in (11, 12) for a in related(seed, 15, 6, 0.25, shape=(80, 70))]
    streamed = build({f"t{i}": a for i, a in enumerate(adapters)}, size=6)
    at_once = compact(subspace(adapters), size=6).subspace
    errors = [
        sum(relative_error(a, made.adapter(f"t{i}")) ** 2 for i, a in enumerate(adapters)) ** 0.5
        for made in (streamed.subspace, at_once)
    ]
    assert streamed.report.compactions > 1 and errors[0] <= 1.01 * errors[1]
    for i, one in enumerate(adapters):
        measured = relative_error(one, streamed.subspace.adapter(f"t{i}"))
        assert streamed.subspace.certificates[f"t{i}"].relative_error == pytest.approx(measured, rel=1e-6)


def test_build_reads_folders_and_says_which_were_refused(tmp_path, capsys):
    for i in range(3):
        adapter(i).save(tmp_path / f"a{i}")
    torch.save({}, tmp_path / "not-safetensors.bin")
    bad = tmp_path / "bad"
    bad.mkdir()
    folders = [*(tmp_path / f"a{i}" for i in range(3)), bad]
    with pytest.raises(AlgebraError, match=r"bad: .*adapter_config"):
        build(folders)
    result = build(folders, refuse=False, progress=True)
    assert result.report.tasks == 3 and list(result.report.refused) == ["bad"]
    assert relative_error(adapter(2), result.subspace.adapter("a2")) < FULL
    assert result.report.largest_relative_error <= 2 * FULL
    assert "4/4" in capsys.readouterr().out


def test_two_folders_of_one_name_and_evil_names_are_refused(tmp_path):
    with pytest.raises(AlgebraError, match="same name"):
        build([tmp_path / "x" / "a", tmp_path / "y" / "a"])
    with pytest.raises(AlgebraError, match="task name"):
        build({"../../evil": adapter(1)})
    with pytest.raises(AlgebraError, match=r"t0: .*already"):
        build({"t0": adapter(1)}, start=subspace([adapter(1)]))
