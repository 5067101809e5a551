"""Does a learned basis carry over to tasks it never saw, and would something cheaper do? Controls on real tasks.

    python -m benchmarks.controls --data DIR [--first 4] [--methods learned,random] [--out FILE]

lora         one plain LoRA per task; not asked for, only the first tasks', whose adapters make the basis
Then, for each of the other tasks, at the same number of steps, nothing but coefficients and a head is trained in
learned      the first tasks' directions, appended within 10 %
random       as many random columns                       random64    64 columns, derived from a seed
weights      as many leading singular vectors of the frozen weights
paper        as many columns of the paper's rule (arXiv:2602.06043) on the same adapters: centred SVD of each side
mean         no basis: the mean of the first tasks' dW is added to the weights, only a head is trained
frozen       only a head is trained
and over all tasks one shared LoRA with a head for each:
joint        trained on all tasks' data at once, every step from another task
sequential   trained on one task after another; what it forgets is shown
Every head but those of a shared LoRA begins fitted by itself, as the federation's do.
Bytes are those of an update: compact form (int8) for coefficients and heads, float32 for LoRA as PEFT writes it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table

from benchmarks.real_tasks import FILE, measure, several_of, task_data, trained
from benchmarks.shared_lora import joint, sequential
from fedshare.federation_file import read_federation_file, with_sources
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import (
    Adapter,
    Basis,
    Directions,
    Subspace,
    append,
    compact,
    constrain,
    derived_block,
    merge,
    release,
    weight_block,
)
from share_algo.codec import encode_update
from share_algo.training import read
from workers.base_model import BaseModel, find_base_model
from workers.tasks import TaskData
from workers.train import lora_model

LORA_RATE = 6e-3
BASIS_TOLERANCE = 0.1
WIDE = 64


@dataclass(frozen=True)
class Measured:
    accuracy: float
    nbytes: int
    forgotten: float = 0.0


@dataclass
class Setting:
    """What all methods share. `adapters`: plain LoRA of each task, once trained."""

    base: BaseModel
    spec: pb.FederationSpec
    tasks: Mapping[str, TaskData]
    first: int
    adapters: dict[str, Adapter] = field(default_factory=dict)

    @property
    def early(self) -> list[Adapter]:
        return [self.adapters[name] for name in list(self.tasks)[: self.first]]

    def fresh(self, task: TaskData) -> PeftModel:
        return lora_model(self.base, self.spec, len(task.labels))


def learned(setting: Setting) -> Subspace:
    made = Subspace.empty()
    for number, adapter in enumerate(setting.early):
        made = merge(made, f"t{number}", adapter, tolerance=BASIS_TOLERANCE).subspace
    return made


def random(setting: Setting) -> Basis:
    widths = learned(setting).basis.widths()
    return _cut(derived_block(_shapes(setting), max(map(max, widths.values())), setting.spec.seed), widths)


def random64(setting: Setting) -> Basis:
    return Basis((derived_block(_shapes(setting), WIDE, setting.spec.seed),))


def weights(setting: Setting) -> Basis:
    widths = learned(setting).basis.widths()
    return _cut(weight_block(setting.base.weights(_shapes(setting)), max(map(max, widths.values()))), widths)


def paper(setting: Setting) -> Basis:
    """The rule needs all columns of all adapters first, and then as many of its own as `learned` has."""
    everything = Subspace.empty()
    for number, adapter in enumerate(setting.early):
        everything = merge(everything, f"t{number}", adapter).subspace
    return compact(everything, size=learned(setting).basis.widths(), policy="share").subspace.basis


BASES: dict[str, Callable[[Setting], Basis]] = {
    "learned": lambda setting: learned(setting).basis,
    "random": random,
    "random64": random64,
    "weights": weights,
    "paper": paper,
}


METHODS = ("lora", *BASES, "mean", "frozen", "joint", "sequential")


def _shapes(setting: Setting) -> dict[str, tuple[int, int]]:
    return {m.name: (m.out_features, m.in_features) for m in setting.spec.modules}


def _cut(sides: Mapping[str, Directions], widths: Mapping[str, tuple[int, int]]) -> Basis:
    return Basis(({m: d.first(*widths[m]) for m, d in sides.items()},))


def inside(setting: Setting, basis: Basis, task: TaskData) -> Measured:
    """Coefficients and a head only."""
    model = constrain(setting.fresh(task), basis, new_directions=0, seed=setting.spec.seed)
    adapter = release(trained(model, setting.base, setting.spec, task))
    blob = encode_update(append(basis, adapter).update, compact=True)
    return Measured(measure(model, setting.base, setting.spec, task), len(blob))


def lora(setting: Setting, name: str) -> Measured:
    task = setting.tasks[name]
    model = trained(setting.fresh(task), setting.base, setting.spec, task, learning_rate_directions=LORA_RATE)
    setting.adapters[name] = read(model)
    return Measured(measure(model, setting.base, setting.spec, task), setting.adapters[name].nbytes())


def head_only(setting: Setting, task: TaskData, added: Sequence[Adapter]) -> Measured:
    """The mean of `added` is part of the weights; LoRA stays at dW = 0."""
    model = setting.fresh(task)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and ".lora_" not in name)
    with torch.no_grad():
        for adapter in added:
            for module, factors in adapter.factors.items():
                model.base_model.model.get_submodule(module).get_base_layer().weight.add_(
                    factors.delta_ND() / len(added)
                )
    trained(model, setting.base, setting.spec, task)
    head = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    return Measured(measure(model, setting.base, setting.spec, task), head)


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    setting = _setting(options)
    results: dict[str, dict[str, Measured]] = {}
    console = Console(stderr=True)

    def note(method: str, name: str, act: Callable[[], Measured]) -> None:
        started = time.monotonic()
        found = results.setdefault(method, {})[name] = act()
        seconds = time.monotonic() - started
        console.print(
            f"{method} {name}: {found.accuracy:.4f}, {found.nbytes:,} bytes ({seconds:.0f} s)", highlight=False
        )
        saved = {m: {n: vars(x) for n, x in by_task.items()} for m, by_task in results.items()}
        Path(options.out).write_text(json.dumps(saved, indent=1))

    for name in list(setting.tasks)[: None if "lora" in options.methods else setting.first]:
        note("lora", name, lambda name=name: lora(setting, name))
    later = {name: task for name, task in list(setting.tasks.items())[setting.first :]}
    for method in [m for m in options.methods if m != "lora"]:
        if method in BASES:
            basis = BASES[method](setting)
            for name, task in later.items():
                note(method, name, lambda task=task, basis=basis: inside(setting, basis, task))
        elif method in ("mean", "frozen"):
            for name, task in later.items():
                added = setting.early if method == "mean" else []
                note(method, name, lambda task=task, added=added: head_only(setting, task, added))
        else:
            shared = {"joint": joint, "sequential": sequential}[method]
            for name, found in shared(setting.base, setting.spec, setting.tasks, LORA_RATE).items():
                note(method, name, lambda found=found: Measured(*found))
    console.print(_table(results, list(later)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tasks", default="")
    parser.add_argument("--first", type=int, default=4, help="tasks whose adapters make the basis")
    parser.add_argument("--methods", type=several_of(METHODS), default=",".join(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="controls.json")
    return parser.parse_args()


def _setting(options: argparse.Namespace) -> Setting:
    file = read_federation_file(FILE).model_copy(update={"seed": options.seed})
    file = with_sources(file, FILE.parent, options.data, options.tasks)
    spec, base = file.spec(), find_base_model(file.base.model)
    return Setting(base, spec, {t.name: task_data(file, t.name, t.source) for t in file.tasks}, options.first)


def _table(results: Mapping[str, Mapping[str, Measured]], later: Sequence[str]) -> Table:
    shown = Table(title=f"means over {len(later)} tasks that the basis never saw", title_justify="left")
    for column in ("method", "accuracy, %", "of it forgotten", "bytes a task"):
        shown.add_column(column, justify="left" if column == "method" else "right")
    for method, by_task in results.items():
        found = [by_task[name] for name in later if name in by_task]
        if not found:
            continue
        means = [
            sum(values) / len(found)
            for values in zip(*((m.accuracy, m.forgotten, m.nbytes) for m in found), strict=True)
        ]
        shown.add_row(method, f"{100 * means[0]:.2f}", f"{100 * means[1]:.2f}", f"{means[2]:,.0f}")
    return shown


if __name__ == "__main__":
    main()
