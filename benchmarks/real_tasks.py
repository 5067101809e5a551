"""A federation on real tasks beside its baselines, on the same data and with the same number of steps:

federation   `fedshare run`: what the README's command does, coordinator, gRPC, Ray and all (seed 0)
local        the same functions in one process (local_federation.py), for further seeds
lora         one plain LoRA per task (each of the learning rates given; the best mean counts)
lora_probed  the same, but that its head begins as the federation's do, fitted by itself

python -m benchmarks.real_tasks --data DIR [--tasks a,b] [--methods lora] [--seed 1] [--out FILE]
    [--start seed] [--columns 64] [--warm-starts 0] [--probe-examples 0] [--epochs 6.6]    of all but `federation`
Other controls are in controls.py.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from benchmarks.local_federation import federate
from fedshare.federation_file import FederationFile, read_federation_file, with_sources
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo.codec import decode_update
from workers.base_model import BaseModel, find_base_model
from workers.begin import probed_head
from workers.evaluate import accuracy, logits_of
from workers.tasks import TaskData, load_task
from workers.train import lora_model, steps_of, train

METHODS = ("federation", "local", "lora", "lora_probed")
FILE = Path(__file__).with_name("real_tasks.toml")
LORA_RATES = (3e-3, 6e-3)
RANK = 8
WIDTHS = (384, 768, 4096)
"""Of hidden layers, for which bytes are worked out; the first is MiniLM's own."""

Method = Callable[[BaseModel, pb.FederationSpec, TaskData], PeftModel]


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    file = with_sources(_changed(read_federation_file(FILE), options), FILE.parent, options.data, options.tasks)
    results: dict[str, dict[str, float]] = {}
    if "federation" in options.methods:
        results["federation"] = _federation(options.data, options.tasks, options.home)
    spec, base = file.spec(), find_base_model(file.base.model)
    if "local" in options.methods:
        results["local"] = _local(base, spec, [task_data(file, t.name, t.source) for t in file.tasks], console)
    for label, method in _methods(options.methods, options.rates):
        results[label] = {}
        for number, task in enumerate(file.tasks, start=1):
            started = time.monotonic()
            data = task_data(file, task.name, task.source)
            results[label][task.name] = measure(method(base, spec, data), base, spec, data)
            shown = f"{label} {number}/{len(file.tasks)} {task.name}: {results[label][task.name]:.4f}"
            console.print(f"{shown} ({time.monotonic() - started:.0f} s)", highlight=False)
    console.print(_table(results))
    Path(options.out).write_text(json.dumps(results, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tasks", default="")
    parser.add_argument("--methods", type=several_of(METHODS), default="federation,lora")
    parser.add_argument("--rates", type=_rates, default=LORA_RATES, help="LoRA's, separated by commas")
    parser.add_argument("--start", default="weights", choices=["weights", "seed", "empty"])
    parser.add_argument("--columns", type=int, help="of a derived start")
    parser.add_argument("--warm-starts", type=int)
    parser.add_argument("--probe-examples", type=int)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--seed", type=int, default=0, help="of all but `federation`, which is the file's")
    parser.add_argument("--home", default="real-home", help="of the federation; must be new")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="real_tasks.json")
    return parser.parse_args()


def _changed(file: FederationFile, options: argparse.Namespace) -> FederationFile:
    """With what the options say instead."""
    said = file.model_dump(exclude_unset=True) | {"seed": options.seed}
    said["subspace"] = {"start": options.start, "start_columns": options.columns, **said.get("subspace", {})}
    changes = {name: getattr(options, name) for name in ("epochs", "warm_starts", "probe_examples")}
    said["recipe"] = {**said.get("recipe", {}), **{k: v for k, v in changes.items() if v is not None}}
    return FederationFile.model_validate(said)


def several_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """An argument's type: some of these names, separated by commas."""

    def read(said: str) -> list[str]:
        names = said.split(",")
        if odd := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{odd[0]!r} is none of {', '.join(known)}")
        return names

    return read


def _rates(said: str) -> tuple[float, ...]:
    return tuple(float(rate) for rate in said.split(","))


def _federation(data: str, tasks: str, home: str) -> dict[str, float]:
    """Runs the README's command; its own results stay in HOME."""
    command = [sys.executable, "-m", "fedshare", "run", str(FILE), "--data", data, "--tasks", tasks, "--home", home]
    answer = subprocess.run([*command, "--json"], check=True, stdout=subprocess.PIPE, text=True).stdout
    (Path(home) / "results.json").write_text(answer)
    with sqlite3.connect(Path(home) / "journal.sqlite") as connection:
        digests = [digest for (digest,) in connection.execute("select digest from journal")]
    _print_bytes([(Path(home) / "blobs" / f"{digest}.safetensors").read_bytes() for digest in digests])
    return {task["task"]: task["accuracy_at_head"] for task in json.loads(answer)["tasks"]}


def _local(base: BaseModel, spec: pb.FederationSpec, tasks: list[TaskData], console: Console) -> dict[str, float]:
    def tell(name: str, accuracy: float) -> None:
        console.print(f"local {name}: {accuracy:.4f}", highlight=False)

    found = federate(base, spec, tasks, tell)
    sent = {name: len(blob) for name, blob in found.sent.items()}
    print(f"sent {sum(sent.values()):,} bytes, kept {found.kept:,}, with the basis {found.kept_with_basis:,}")
    print(f"sent by task: {sent}; most forgotten: {found.forgotten:.4f}")
    _print_bytes(found.sent.values())
    return dict(found.accuracies)


def _print_bytes(blobs: Iterable[bytes]) -> None:
    blobs = list(blobs)
    for width in WIDTHS:
        sent, lora = _bytes_at(blobs, width)
        print(f"the same directions and coefficients at a width of {width}: {sent:,} of {lora:,}, {sent / lora:.1%}")


def _bytes_at(blobs: Iterable[bytes], width: int) -> tuple[int, int]:
    """What the updates and LoRA's (float32) would take in all, were the model that wide."""
    sent = lora = 0
    bits = read_federation_file(FILE).subspace.direction_bits
    for blob in blobs:
        update = decode_update(blob)
        (rows, narrow), *_ = (tensor.shape for tensor in update.entry.head.values() if tensor.ndim == 2)
        columns = sum(sum(d.widths) for d in update.block.values())
        sent += len(blob) + (columns * bits // 8 + rows) * (width - narrow)
        lora += 4 * (len(update.entry.coefficients) * RANK * 2 * width + rows * (width + 1))
    return sent, lora


def _methods(names: Sequence[str], rates: Sequence[float]) -> list[tuple[str, Method]]:
    return [(f"{name} {rate:g}", _lora(rate, probed=name == "lora_probed"))
            for name in names if name.startswith("lora") for rate in rates]  # fmt: skip


def _lora(rate: float, *, probed: bool) -> Method:
    def fit(base: BaseModel, spec: pb.FederationSpec, task: TaskData) -> PeftModel:
        recipe = {} if probed else {"probe_examples": 0}
        return trained(
            lora_model(base, spec, len(task.labels)), base, spec, task, learning_rate_directions=rate, **recipe
        )

    return fit


def trained(model: PeftModel, base: BaseModel, spec: pb.FederationSpec, task: TaskData, **recipe: float) -> PeftModel:
    """With the federation's recipe, but for what is said of it; its head begins as a federation's task's does."""
    changed = pb.FederationSpec()
    changed.CopyFrom(spec)
    for name, value in recipe.items():
        setattr(changed.recipe, name, value)
    probed_head(model, base, changed, task)
    steps = steps_of(changed.recipe, len(task.train))
    train(model, base, changed.recipe, task.train, spec.seed, steps, TrainerCallback())
    return model


def task_data(file: FederationFile, name: str, source: str) -> TaskData:
    limits = file.data
    return load_task(
        name,
        source,
        train_examples_max=limits.train_examples_max,
        test_examples_max=limits.test_examples_max,
        seed=file.seed,
    )


def measure(model: PeftModel, base: BaseModel, spec: pb.FederationSpec, task: TaskData) -> float:
    return accuracy(logits_of(model, base.tokenizer, task.test, spec.recipe.tokens_max), task.test)


def _table(results: dict[str, dict[str, float]]) -> Table:
    shown = Table(title="accuracy, %", title_justify="left")
    shown.add_column("task")
    for label in results:
        shown.add_column(label, justify="right")
    names = list(dict.fromkeys(name for accuracies in results.values() for name in accuracies))
    for name in names:
        shown.add_row(name, *(f"{100 * accuracies[name]:.1f}" for accuracies in results.values()))
    shown.add_section()
    shown.add_row("mean", *(f"{100 * sum(a.values()) / len(a):.2f}" for a in results.values()))
    return shown


if __name__ == "__main__":
    main()
