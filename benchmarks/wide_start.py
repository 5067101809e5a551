"""From start to serving where the basis begins in a wide model's singular vectors, and where it begins with none.

The model is a BERT of random weights, whose queries and values are the modules. Whole processes are timed, from their
start to their address; a takeover from the other's SIGKILL.

python -m benchmarks.wide_start [--width 4096] [--layers 2] [--folder DIR]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertModel

from benchmarks.receipts import coordinator
from coordinator.home import open_home
from fedshare.federation_file import read_federation_file
from share_algo.cache_folder import CACHE

HEAD = 64
"""Numbers of an attention head."""


def main() -> None:
    options = _options()
    table = Table("start", "s", title=f"{2 * options.layers} modules of {options.width} x {options.width}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for what, seconds in _starts(Path(folder), _model(Path(folder) / "model", options.width, options.layers)):
            table.add_row(what, f"{seconds:.1f}")
    Console().print(table)


def _starts(folder: Path, model: Path) -> Iterator[tuple[str, float]]:
    os.environ[CACHE] = str(folder / "cache")
    yield "no directions at the start", _serving(_home(folder / "empty", model, "empty"))
    home = _home(folder / "weights", model, "weights")
    yield "derived, and kept", _serving(home)
    yield "read from the disk", _serving(home)
    os.environ[CACHE] = ""
    yield "a takeover, nothing on the disk", _takeover(home)


def _model(folder: Path, width: int, layers: int) -> Path:
    config = BertConfig(
        vocab_size=64,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        intermediate_size=width,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def _home(folder: Path, model: Path, start: str) -> Path:
    folder.mkdir()
    file = folder / "federation.toml"
    file.write_text(f'name = "wide"\n[base]\nmodel = "{model}"\n[subspace]\nstart = "{start}"\n')
    with open_home(folder / "home", read_federation_file(file).spec()):
        return folder / "home"


def _serving(home: Path) -> float:
    began = time.perf_counter()
    with coordinator(home):
        return time.perf_counter() - began


def _takeover(home: Path) -> float:
    with coordinator(home) as leads, _standing_by(home) as log:
        while "standing by" not in log.read_text():
            time.sleep(0.05)
        os.kill(leads.pid, 9)
        began = time.perf_counter()
        while "serving federation" not in log.read_text():
            time.sleep(0.05)
        return time.perf_counter() - began


@contextmanager
def _standing_by(home: Path) -> Iterator[Path]:
    """Its log."""
    log = home / "standby.log"
    command = [sys.executable, "-m", "fedshare", "coordinator", "--home", str(home), "--port", "0", "--no-lineage"]
    with log.open("w") as file, subprocess.Popen([*command, "--standby"], stdout=file, stderr=file) as process:
        try:
            yield log
        finally:
            process.kill()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096, help=f"a multiple of {HEAD}")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="on which disk; else where temporary files go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
