"""The federation file: what a federation trains and where its tasks are, as its owner writes it in TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedshare.errors import UserError
from protos.fedshare.v1 import federation_pb2 as pb
from protos.names import NAME, no_name
from workers.base_model import MINILM, find_base_model
from workers.base_model import BaseModel as PretrainedModel
from workers.tasks import HUB_PREFIX, tasks_in

START_COLUMNS = 128
NEW_DIRECTIONS = 8
Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Base(Section):
    """The frozen pretrained model, and which of its linear layers receive an adapter."""

    model: str = MINILM
    target_modules: list[str] = Field(default=["query", "value"], min_length=1)


class Subspace(Section):
    """What everybody shares, and how it grows.

    start: where the basis begins: "weights", leading singular vectors of the base model's weights, or "seed", random
    columns: start_columns a side, which everybody derives, so that nobody sends or stores them; or "empty": it is
    learned from the first tasks.
    new_directions: that a task trains per side and module. With an empty start it begins as plain LoRA does, with 8
    unless told otherwise; else inside the basis, with these beside it, 0 unless told otherwise: coefficients only.
    update_tolerance: relative dW error of that cut, for a smaller update: what it loses, the recovery wins back.
    direction_bits: of a number of a new direction as it travels, 4 or 8; lost before it is measured, too.
    tolerance: relative dW error of the coordinator's merge; the default is rounding and no more.
    """

    rank: int = Field(default=8, ge=1, le=1024)
    tolerance: float = Field(default=1e-5, ge=0, lt=1)
    start: Literal["empty", "seed", "weights"] = "weights"
    start_columns: int | None = Field(default=None, ge=1, le=1 << 14)
    new_directions: int | None = Field(default=None, ge=0, le=1024)
    update_tolerance: float = Field(default=0.15, ge=0, lt=1)
    direction_bits: Literal[4, 8] = 4

    @model_validator(mode="after")
    def _start_means_something(self) -> Subspace:
        if self.start == "empty" and self.start_columns is not None:
            raise ValueError("start_columns means nothing to an empty start")
        if self.start == "empty" and self.new_directions == 0:
            raise ValueError("with an empty start a task needs new_directions: 1 or more")
        return self

    def columns(self, modules: list[pb.TargetModule]) -> int:
        """Columns a side that nobody sends. Raises UserError where a module has no room for so many."""
        if self.start == "empty":
            return 0
        narrowest = min(modules, key=_room)
        if self.start_columns is None:
            return min(START_COLUMNS, _room(narrowest))
        if self.start_columns > _room(narrowest):
            raise UserError(
                f"start_columns is {self.start_columns}, but {narrowest.name} has room for {_room(narrowest)}"
            )
        return self.start_columns

    def directions(self) -> pb.Directions:
        usual = NEW_DIRECTIONS if self.start == "empty" else 0
        return pb.Directions(
            first=usual if self.new_directions is None else self.new_directions,
            tolerance=self.update_tolerance,
            bits=self.direction_bits,
        )

    def start_message(self, modules: list[pb.TargetModule]) -> pb.Start:
        return pb.Start(kind=f"START_KIND_{self.start.upper()}", columns=self.columns(modules))


class Recipe(Section):
    """How tasks are fitted. Learning rates are peaks of a one-cycle schedule; tokens_max cuts longer texts.

    learning_rate is that of coefficients, and is divided by the square root of the basis's width; at 0.12 it would move
    a column of lora_B as far as LoRA's own rate of 6e-3 does.
    recovery: share of the steps, the last of the cycle, that come after the cut: in coefficients and head only.
    warm_starts: of the newest tasks, with whose coefficients one that begins inside the basis may begin; the best is
    found by what a fresh head could make of them. 0: every task begins by itself.
    probe_examples: at most so many training examples, on whose features a new task's head is fitted by itself before
    anything else is trained (LP-FT, arXiv:2202.10054), where it is one linear layer. 0: it begins at random.
    """

    epochs: float = Field(default=3, gt=0)
    batch_size: int = Field(default=32, ge=1)
    tokens_max: int = Field(default=64, ge=4)
    learning_rate: float = Field(default=0.08, gt=0)
    learning_rate_directions: float = Field(default=6e-3, gt=0)
    learning_rate_head: float = Field(default=1e-2, gt=0)
    recovery: float = Field(default=0.1, ge=0, lt=1)
    warm_starts: int = Field(default=0, ge=0, le=1000)
    probe_examples: int = Field(default=2000, ge=0, le=1_000_000)
    scaling: float = Field(default=2.0, gt=0)


class Budget(Section):
    """When the basis is compacted by itself: no side of a module stays wider than columns_max; 0: no bound.

    columns_after: what a compaction leaves; 0: three quarters, so that not every merge compacts.
    """

    columns_max: int = Field(default=0, ge=0, lt=2**31)
    columns_after: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _makes_room(self) -> Budget:
        if self.columns_after and self.columns_after >= self.columns_max:
            raise ValueError("columns_after must be smaller than columns_max")
        if self.columns_max == 1:
            raise ValueError("columns_max must be at least 2, so that a compaction can make room")
        return self

    def message(self) -> pb.Budget:
        after = self.columns_after or max(1, self.columns_max * 3 // 4)
        return pb.Budget(columns_max=self.columns_max, columns_after=after) if self.columns_max else pb.Budget()


class Policy(Section):
    """How several updates of one task become one; without `task`: of every task that has no policy of its own.

    kind: the newest update replaces the task, FedAsync (arXiv:1903.03934), or FedBuff (arXiv:2106.06639). mixing:
    FedAsync's alpha (0.6), FedBuff's server rate (1). rule: what an update weighs by its staleness; constant for
    FedAsync, polynomial with a = 0.5 for FedBuff, as the papers have it. a, b: of the rule. staleness_max: what is more
    versions behind is not merged.
    """

    task: Annotated[str, Field(pattern=f"^({NAME.pattern})?$")] = ""
    kind: Literal["replace", "fedasync", "fedbuff"] = "replace"
    mixing: float | None = Field(default=None, gt=0, le=1)
    rule: Literal["constant", "hinge", "polynomial"] | None = None
    a: float = Field(default=0.5, ge=0)
    b: float = Field(default=4.0, ge=0)
    buffer_size: int = Field(default=10, ge=1, le=1000)
    staleness_max: int | None = Field(default=None, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _means_something(self) -> Policy:
        """Nobody believes in a setting that changes nothing."""
        given = self.model_fields_set & {"mixing", "rule", "a", "b", "buffer_size"}
        used = {"replace": set[str](), "fedasync": given - {"buffer_size"}, "fedbuff": given}[self.kind]
        if odd := sorted(given - used):
            raise ValueError(f"{odd[0]} means nothing to {self.kind}")
        rule = self.rule or ("polynomial" if self.kind == "fedbuff" else "constant")
        if odd := sorted(given & {"a", "b"} - {"constant": set(), "polynomial": {"a"}, "hinge": {"a", "b"}}[rule]):
            raise ValueError(f"{odd[0]} means nothing to the rule {rule}")
        return self

    def message(self) -> pb.Policy:
        gathers = self.kind == "fedbuff"
        rule = self.rule or ("polynomial" if gathers else "constant")
        return pb.Policy(
            task=self.task,
            kind=f"POLICY_KIND_{self.kind.upper()}",
            mixing=self.mixing or (1.0 if gathers else 0.6),
            rule=f"STALENESS_RULE_{rule.upper()}",
            a=self.a,
            b=self.b,
            buffer_size=self.buffer_size,
            staleness_max=self.staleness_max,
        )


class Quarantine(Section):
    """What is kept aside for somebody to judge: an update whose ||dW|| is far from those of the federation's others.

    deviations_max: robust deviations of log ||dW|| from the median; the default is a factor of 4.4 where all are
    equally loud, more where they differ; 0: nothing is kept aside. updates_min: merged before anything is judged.
    """

    deviations_max: float = Field(default=10.0, ge=0)
    updates_min: int = Field(default=8, ge=1, lt=2**31)


class Versions(Section):
    """kept: newest versions that stay readable, of older ones the record stays; 0: all."""

    kept: int = Field(default=0, ge=0, lt=2**31)


class Data(Section):
    """folder: holds a sub-folder for each task that names no source. Examples 0: all there are."""

    folder: str = ""
    train_examples_max: int = Field(default=0, ge=0)
    test_examples_max: int = Field(default=0, ge=0)


class Workers(Section):
    """How `fedshare run` leads its workers. at_once 0: as many as this machine has CPUs, at least two.

    evaluate: "every" version, or only the "last" beside the one a task was learned in.
    """

    at_once: int = Field(default=0, ge=0)
    evaluate: Literal["every", "last"] = "every"


class Task(Section):
    """source: a folder with train and test, or hf:DATASET[:CONFIG]; empty: the data folder's one of that name."""

    name: Name
    source: str = ""
    start_seconds: float = Field(default=0, ge=0)  # not before so long after the start
    pause_seconds: float = Field(default=0, ge=0)  # after each step: to be as slow as another machine


class FederationFile(Section):
    name: Name
    seed: int = Field(default=0, ge=0, lt=2**32)  # numpy takes no larger one
    base: Base = Base()
    subspace: Subspace = Subspace()
    recipe: Recipe = Recipe()
    budget: Budget = Budget()
    versions: Versions = Versions()
    policies: list[Policy] = []
    quarantine: Quarantine = Quarantine()
    data: Data = Data()
    workers: Workers = Workers()
    tasks: list[Task] = []

    @model_validator(mode="after")
    def _names_differ(self) -> FederationFile:
        names = [task.name for task in self.tasks]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two tasks are named {min(doubled)!r}")
        governed = [policy.task for policy in self.policies]
        if doubled := {task for task in governed if governed.count(task) > 1}:
            raise ValueError(f"two policies are for {min(doubled) or 'all other tasks'}")
        return self

    def spec(self) -> pb.FederationSpec:
        """What the coordinator is told: needs the base model, to take its fingerprint and shapes."""
        model = find_base_model(self.base.model)
        modules, recipe = self._target_modules(model), self.recipe.model_dump()
        start = self.subspace.start_message(modules)
        if 0 < self.budget.columns_max < start.columns:
            raise UserError(
                f"the start's {start.columns} columns are more than columns_max, {self.budget.columns_max}:"
                " every merge would compact"
            )
        return pb.FederationSpec(
            name=self.name,
            base=pb.BaseModel(name=self.base.model, fingerprint=model.fingerprint),
            modules=modules,
            rank=self.subspace.rank,
            tolerance=self.subspace.tolerance,
            seed=self.seed,
            directions=self.subspace.directions(),
            start=start,
            recipe=pb.Recipe(**recipe),
            budget=self.budget.message(),
            versions_kept=self.versions.kept,
            policies=[policy.message() for policy in self.policies],
            quarantine=pb.Quarantine(**self.quarantine.model_dump()),
        )

    def _target_modules(self, model: PretrainedModel) -> list[pb.TargetModule]:
        found = [
            pb.TargetModule(name=name, out_features=N, in_features=D)
            for name, (N, D) in model.linear_shapes.items()
            if any(name == wanted or name.endswith(f".{wanted}") for wanted in self.base.target_modules)
        ]
        if not found:
            raise UserError(f"{model.name} has no linear layer named {' or '.join(self.base.target_modules)}")
        return found


def _room(module: pb.TargetModule) -> int:
    return min(module.out_features, module.in_features)


def read_federation_file(path: Path) -> FederationFile:
    """Read and check. Raises UserError with the first mistake in words."""
    try:
        return FederationFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"there is no federation file {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        raise UserError(f"{path}: {_first_mistake(error)}") from None


def with_sources(file: FederationFile, beside: Path, data: str = "", names: str = "") -> FederationFile:
    """The same with every task's source absolute: those in the file are relative to the folder `beside`.

    data, names: what the command line says instead of the file: a folder, and tasks separated by commas. A
    file without tasks means every task that the data folder holds.
    """
    folder = Path(data).absolute() if data else (beside / file.data.folder).absolute()
    tasks = {task.name: task for task in file.tasks}
    if names:
        tasks = {n: tasks.get(n) or _task(n) for n in filter(None, map(str.strip, names.split(",")))}
    elif not tasks:
        tasks = {name: Task(name=name) for name in tasks_in(folder)}
    placed = [task.model_copy(update={"source": _source(task, folder, beside)}) for task in tasks.values()]
    return file.model_copy(update={"tasks": placed})


def _task(name: str) -> Task:
    try:
        return Task(name=name)
    except ValidationError:
        raise UserError(f"--tasks: {name!r} is not a name of a task") from None


def _source(task: Task, folder: Path, beside: Path) -> str:
    if task.source.startswith(HUB_PREFIX):
        return task.source
    return str((beside / task.source).absolute() if task.source else folder / task.name)


def _first_mistake(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "string_pattern_mismatch":
        said = no_name(str(first["input"]))
    return f"{where}: {said}" if where else said
