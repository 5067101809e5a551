"""Columns that took long to derive are derived once on a machine, whatever happens to the files."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from share_algo import AlgebraError, weight_block
from share_algo.cache_folder import CACHE
from share_algo.codec import decode_block, encode_block

W = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
COLUMNS = 8
BYTES = 4 * COLUMNS * sum(W.shape)


class Cache:
    """A folder of this test's own, and how often something was decomposed since."""

    def __init__(self, folder: Path):
        self.folder, self.derived = folder, 0

    def columns(self, weight: torch.Tensor = W, columns: int = COLUMNS) -> tuple[torch.Tensor, torch.Tensor]:
        """As the next process has them: nobody holds them in memory."""
        directions = weight_block({"m": weight}, columns)["m"]
        return directions.out_NK, directions.in_DL

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir(), key=lambda file: file.stat().st_mtime)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    from share_algo import weights

    cache, leading = Cache(tmp_path / "cache"), weights._leading

    def counted(weight: torch.Tensor, k: int):
        cache.derived += 1
        return leading(weight, k)

    monkeypatch.setattr(weights, "_leading", counted)
    monkeypatch.setenv(CACHE, str(cache.folder))
    return cache


def test_what_was_derived_once_is_read_bitwise_alike(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    made, read = cache.columns(), cache.columns()
    assert cache.derived == 1 and [file.suffix for file in cache.files()] == [".safetensors"]
    monkeypatch.setenv(CACHE, "")
    plain = cache.columns()
    assert cache.derived == 2
    for sides in zip(made, read, plain, strict=True):
        assert all(torch.equal(side, sides[0]) and side.T.is_contiguous() for side in sides)


def test_other_weights_and_other_numbers_of_columns_are_others(cache: Cache):
    for weight, columns in ((W, COLUMNS), (W, COLUMNS - 1), (W + 1e-3, COLUMNS), (W.double(), COLUMNS), (W.T, COLUMNS)):
        out_NK, _ = cache.columns(weight, columns)
        assert out_NK.shape == (len(weight), columns)
    assert cache.derived == len(cache.files()) == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b"",
        lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:],
        lambda b: b.replace(b"in_", b"on_"),
    ],
    ids=["cut", "empty", "a bit", "a name"],
)
def test_damaged_file_is_derived_anew_and_mended(cache: Cache, damage: Callable[[bytes], bytes]):
    made = cache.columns()
    [file] = cache.files()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    assert all(torch.equal(a, b) for a, b in zip(made, cache.columns(), strict=True))
    assert cache.derived == 2 and len(file.read_bytes()) == len(whole)
    cache.columns()
    assert cache.derived == 2


def test_what_was_derived_before_needs_no_weight(cache: Cache):
    blob = encode_block(weight_block({"m": W}, COLUMNS))
    with pytest.raises(AlgebraError, match=r"^m: .*with_weights"):
        _ = decode_block(blob)["m"].out_NK
    out_NK, in_DL = cache.columns()
    bare = decode_block(blob)["m"]
    assert torch.equal(bare.out_NK, out_NK) and torch.equal(bare.in_DL, in_DL)
    assert cache.derived == 1


def test_folder_that_cannot_be_used_keeps_nothing_and_stops_nobody(cache: Cache):
    cache.folder.write_text("a file")
    assert all(torch.equal(a, b) for a, b in zip(cache.columns(), cache.columns(), strict=True))
    assert cache.derived == 2 and cache.folder.read_text() == "a file"


def test_disk_that_is_full_keeps_nothing_half(cache: Cache, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(CACHE, str(tiny_disk / "cache"))
    (tiny_disk / "rest").write_bytes(bytes(shutil.disk_usage(tiny_disk).free - (1 << 20)))
    for derived in (1, 2):
        cache.columns(torch.randn(600, 600, generator=torch.Generator().manual_seed(0)), 500)
        assert cache.derived == derived and not list((tiny_disk / "cache").iterdir())
    (tiny_disk / "rest").unlink()
    cache.columns(torch.randn(600, 600, generator=torch.Generator().manual_seed(0)), 500)
    assert len(list((tiny_disk / "cache").iterdir())) == 1


def test_what_was_not_read_for_longest_goes_first(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("share_algo.derived_cache.CACHE_BYTES_MAX", 3 * BYTES)  # of which each takes a little more
    first, second, third = W, 2 * W, 3 * W
    for weight in (first, second, first, third):
        cache.columns(weight)
        time.sleep(0.02)
    assert cache.derived == 3 and len(cache.files()) == 2
    cache.columns(first)
    assert cache.derived == 3
    cache.columns(second)
    assert cache.derived == 4


def test_what_a_killed_process_left_half_written_counts_and_goes(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("share_algo.derived_cache.CACHE_BYTES_MAX", 3 * BYTES)
    cache.folder.mkdir()
    (cache.folder / "torn.part").write_bytes(bytes(2 * BYTES))
    cache.columns()
    assert [file.suffix for file in cache.files()] == [".safetensors"]


def test_whoever_cannot_wait_any_longer_derives_and_keeps_nothing(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    cache.columns()
    [file] = cache.files()
    file.unlink()
    monkeypatch.setattr("share_algo.derived_cache.WAIT_SECONDS_MAX", 0.1)
    with FileLock(file.with_suffix(".lock")):
        cache.columns()
        assert cache.derived == 2 and not file.exists()
    cache.columns()
    assert cache.derived == 3 and file.exists()


def test_folder_that_others_fill_is_read(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    made = cache.columns()

    def may_not(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.utime", may_not)
    assert all(torch.equal(a, b) for a, b in zip(made, cache.columns(), strict=True))
    assert cache.derived == 1


def test_refused_weight_is_not_kept_and_holds_nobody_up(cache: Cache):
    for _ in range(2):
        with pytest.raises(AlgebraError, match=r"m: singular values"):
            cache.columns(torch.eye(20))
    assert cache.derived == 2 and cache.files() == []


def test_without_a_word_it_is_the_users_own_cache_folder(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cache.columns()
    assert len(list((tmp_path / "xdg" / "fedshare").glob("*.safetensors"))) == 1


PROCESS = """
import sys, time, torch
from share_algo import weight_block, weights
leading, derived = weights._leading, 0
def slow(weight, k):
    global derived
    derived += 1
    time.sleep(3)
    return leading(weight, k)
weights._leading = slow
print("ready", flush=True)
sys.stdin.readline()
weight_block({"m": torch.arange(1.0, 13).reshape(4, 3) ** 2}, 2)["m"].out_NK
print(derived)
"""


def test_of_processes_that_want_the_same_at_once_one_derives_it(cache: Cache):
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sorted(process.communicate(timeout=60)[0] for process in processes) == ["0\n", "0\n", "1\n"]
    assert [file.suffix for file in cache.files()] == [".safetensors"]
