"""A coordinator that starts may take long, as long as it says what it does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedshare.coordinator_process import CoordinatorProcess
from fedshare.errors import UserError

SECONDS = 1.5
"""Of silence that are allowed here."""

STARTS = """#!{python}
import sys, time
from pathlib import Path
home = Path(sys.argv[sys.argv.index("--home") + 1])
for n in range({lines}):
    time.sleep(0.5)
    print("2026-01-02 03:04:05 INFO coordinator.start", n, "of 6 modules", flush=True)
time.sleep({silence})
(home / "address").write_text("127.0.0.1:1")
time.sleep(60)
"""


def starting(folder: Path, monkeypatch: pytest.MonkeyPatch, **how: float) -> tuple[CoordinatorProcess, list[str]]:
    """In place of the real one, which takes that long for models that are too large for a test."""
    script, told = folder / "python", list[str]()
    script.write_text(STARTS.format(python=sys.executable, **how))
    script.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(script))
    monkeypatch.setattr("fedshare.coordinator_process.SILENT_SECONDS_MAX", SECONDS)
    return CoordinatorProcess(folder / "federation.toml", folder / "home", told.append), told


def test_coordinator_that_tells_how_far_it_is_may_take_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    process, told = starting(tmp_path, monkeypatch, lines=6, silence=0)
    with process:
        assert process.address == "127.0.0.1:1"
    assert [line.split(maxsplit=4)[4] for line in told[:5]] == [f"{n} of 6 modules" for n in range(5)]


def test_coordinator_that_falls_silent_is_given_up_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    process, _ = starting(tmp_path, monkeypatch, lines=2, silence=30)
    with pytest.raises(UserError, match=r"^the coordinator does not start: .* 1 of 6 modules$"), process:
        pass
    assert process._process.poll() is not None


def test_coordinator_that_ends_is_given_up_with_what_it_said(tmp_path: Path):
    (tmp_path / "federation.toml").write_text("nonsense")
    with pytest.raises(UserError, match=r"^the coordinator does not start: .*federation.toml"):
        CoordinatorProcess(tmp_path / "federation.toml", tmp_path / "home").__enter__()
