"""Who may import whom: the contracts in pyproject.toml hold, and each of them notices what it forbids."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
ROOMS = ("share_algo", "protos", "coordinator", "workers", "fedshare")

# Modules that may hold a heavy library, with what they may hold.
ALLOWED = [
    ("share_algo/adapter.py", "import torch"),
    ("share_algo/adapter.py", "import peft"),
    ("protos/generated.py", "import grpc"),
    ("coordinator/lineage.py", "import mlflow"),
    ("coordinator/migrations.py", "import alembic"),
    ("coordinator/service.py", "import grpc"),
    ("coordinator/service.py", "import protos.generated"),
    ("coordinator/merge.py", "import share_algo.adapter"),
    ("coordinator/merge.py", "import torch"),
    ("coordinator/process.py", "import coordinator.lineage"),
    ("workers/client.py", "import grpc"),
    ("workers/client.py", "import protos.generated"),
    ("workers/ray_host.py", "import ray"),
    ("workers/train.py", "import share_algo.adapter"),
    ("workers/train.py", "import transformers"),
    ("fedshare/main.py", "import coordinator.process"),
    ("fedshare/main.py", "import workers.ray_host"),
    ("fedshare/main.py", "import share_algo.adapter"),
]

FORBIDDEN = [
    ("share_algo", "protos"),
    ("share_algo", "coordinator"),
    ("share_algo", "workers"),
    ("share_algo", "fedshare"),
    ("protos", "share_algo"),
    ("protos", "coordinator"),
    ("protos", "workers"),
    ("protos", "fedshare"),
    ("coordinator", "workers"),
    ("coordinator", "fedshare"),
    ("workers", "coordinator"),
    ("workers", "fedshare"),
    *[(room, library) for library in ("mlflow", "ray", "alembic") for room in ROOMS],
    *[(room, "grpc") for room in ROOMS if room != "protos"],
    ("protos", "torch"),
    ("coordinator", "peft"),
    ("coordinator", "transformers"),
]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter in `folder` on the packages that lie there."""
    program = "import sys, importlinter.cli as cli; sys.exit(cli.lint_imports(no_cache=True, no_logo=True))"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """A project with the same contracts and nothing in its rooms but what they allow."""
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").touch()
    for path, line in ALLOWED:
        add(tmp_path / path, line)
    return tmp_path


def add(module: Path, line: str) -> None:
    with module.open("a") as file:
        file.write(f"{line}\n")


def test_this_project_keeps_every_contract():
    result = lint_imports(PROJECT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_contracts_allow_each_heavy_library_behind_its_own_door(skeleton: Path):
    result = lint_imports(skeleton)
    assert result.returncode == 0, result.stdout + result.stderr


def test_contracts_notice_every_import_they_forbid(skeleton: Path):
    for number, (room, target) in enumerate(FORBIDDEN):
        add(skeleton / room / f"offender{number}.py", f"def late():\n    import {target}")
    result = lint_imports(skeleton)
    assert result.returncode != 0
    report = " ".join(result.stdout.split())
    missed = [
        f"{room} -> {target}"
        for number, (room, target) in enumerate(FORBIDDEN)
        if f"{room}.offender{number} -> {target}" not in report
    ]
    assert not missed
