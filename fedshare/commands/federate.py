"""Commands that lead a federation: coordinator, worker, run, demo."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedshare import options

if TYPE_CHECKING:
    from fedshare.federation_file import FederationFile
    from fedshare.run import Accident

HOMES = Path("fedshare-home")
OF_COORDINATOR = re.compile(r"\S+ \S+ INFO coordinator\.\S+ (.*)")
"""A line of its log; others' lines are not for a person."""

Data = Annotated[str, typer.Option(help="Folder that holds a sub-folder (train.csv, test.csv) for each task.")]
Tasks = Annotated[str, typer.Option(help="Names of tasks, separated by commas; else those of FILE, or all there are.")]


def add_to(app: typer.Typer) -> None:
    for command in (demo, coordinator, worker, run):
        app.command(rich_help_panel="Lead a federation")(command)


def coordinator(
    file: Annotated[
        Path | None, typer.Argument(help="Federation file; only needed for a new home.", metavar="FILE")
    ] = None,
    home: options.Home = None,
    host: Annotated[str, typer.Option(help="Loopback only: the connection is not encrypted.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0: any free one, written to HOME/address.")
    ] = options.DEFAULT_PORT,
    tracking_uri: Annotated[str, typer.Option(help="MLflow tracking server; else a store in HOME/lineage.")] = "",
    lineage: Annotated[bool, typer.Option(help="Show versions in MLflow.")] = True,
    store: options.Store = "",
    blobs: options.Blobs = "",
    standby: Annotated[
        bool, typer.Option("--standby", help="Wait until no other coordinator leads this federation, then do.")
    ] = False,
) -> None:
    """Take updates in, merge them, tell of new versions. Stop it with Ctrl-C; started again it goes on."""
    from coordinator.process import serve
    from fedshare.federation_file import read_federation_file
    from workers.weights import weights_for

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("alembic", "mlflow", "httpx", "botocore", "aiobotocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    parsed = read_federation_file(file) if file else None
    folder = home or (HOMES / parsed.name if parsed else _only_home())
    wanted = parsed.spec() if parsed else None
    serve(
        folder, wanted, host=host, port=port, lineage=lineage, tracking_uri=tracking_uri,
        store=store, blobs=blobs, standby=standby, find_weights=weights_for,
    )  # fmt: skip


def _only_home() -> Path:
    """The coordinator's home that is there, where no file names one."""
    from coordinator.home import has_journal
    from fedshare.errors import UserError

    found = sorted(folder for folder in HOMES.glob("*") if has_journal(folder))
    if len(found) == 1:
        return found[0]
    which = ", ".join(map(str, found[:5])) or f"there is none in {HOMES} yet"
    raise UserError(f"say which home, with --home, or name a federation FILE: {which}")


def worker(
    task: Annotated[str, typer.Option(help="Name of the task in the federation.")],
    data: Annotated[str, typer.Option(help="Folder with train.csv and test.csv, or hf:DATASET[:CONFIG].")],
    coordinator: options.Coordinator = options.DEFAULT_COORDINATOR,
    name: Annotated[str, typer.Option(help="Name of this worker; else made from the task.")] = "",
    home: options.Home = None,
    base_model: Annotated[str, typer.Option(help="Folder of the base model, if it is not found by its name.")] = "",
    train_examples_max: Annotated[int, typer.Option(min=0, help="0: all.")] = 0,
    test_examples_max: Annotated[int, typer.Option(min=0, help="0: all.")] = 0,
    stay: Annotated[bool, typer.Option("--stay", help="Go on measuring new versions until Ctrl-C.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Learn a task again that this worker has learned.")] = False,
    patience_seconds: Annotated[
        float, typer.Option(min=0, help="How long to wait for a coordinator that is away.")
    ] = 600,
    as_json: options.Json = False,
) -> None:
    """Fit one task beside the shared basis, send the update, measure it in the version that holds it, and leave."""
    from fedshare.errors import UserError
    from protos.names import NAME, no_name
    from workers.life import Plan
    from workers.process_host import lead_here

    who = name or f"{task}-worker"
    for what, said in (("--task", task), ("--name", who)):
        if not NAME.fullmatch(said):
            raise UserError(f"{what} {no_name(said)}")
    if not math.isfinite(patience_seconds):
        raise UserError(f"--patience-seconds must be a number of seconds, not {patience_seconds:g}")
    plan = Plan(
        worker=who,
        task=task,
        source=data,
        address=coordinator,
        home=home or HOMES / "workers" / who,
        base_model=base_model,
        train_examples_max=train_examples_max,
        test_examples_max=test_examples_max,
        patience_seconds=patience_seconds,
        learn_again=again,
    )
    end = lead_here(plan, stay=stay, console=Console(stderr=True))
    if as_json:
        print(json.dumps({"worker": who, "task": task, **end}))


def run(
    file: options.File,
    home: options.Home = None,
    data: Data = "",
    tasks: Tasks = "",
    ray_address: Annotated[str, typer.Option(help="Ray cluster; else RAY_ADDRESS, else one on this machine.")] = "",
    as_json: options.Json = False,
) -> None:
    """Lead a whole federation on Ray: a coordinator, a worker for each task, a table at the end."""
    from fedshare.federation_file import read_federation_file, with_sources

    parsed = with_sources(read_federation_file(file), file.parent, data, tasks)
    _run(file, parsed, home or HOMES / parsed.name, [], ray_address, as_json)


def demo(
    home: options.Home = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the tasks that are made.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Seven tasks, seven workers on this machine: one is killed and comes back, one joins late. About two minutes."""
    from fedshare.demo.plan import prepare
    from fedshare.federation_file import read_federation_file, with_sources

    file, accidents = prepare(home, seed)
    _run(file, with_sources(read_federation_file(file), file.parent), file.parent, accidents, "", as_json)


def _run(
    path: Path, file: FederationFile, home: Path, accidents: list[Accident], ray_address: str, as_json: bool
) -> None:
    from fedshare.coordinator_process import CoordinatorProcess
    from fedshare.errors import UserError
    from fedshare.results import collect, draw, show
    from fedshare.run import Run
    from fedshare.screen import Screen
    from workers.client import Client
    from workers.tasks import must_be_there

    if not file.tasks:
        raise UserError(f"{path} names no tasks: add [[tasks]], or give --data")
    for task in file.tasks:
        must_be_there(task.source)
    console = Console(stderr=as_json)
    console.print(f"coordinator: starting in {home}")

    def told(line: str) -> None:
        if words := OF_COORDINATOR.match(line):
            console.print(f"coordinator: {words[1]}", highlight=False)

    with CoordinatorProcess(path, home, told) as process:
        console.print(f"coordinator: at {process.address}; Ray: starting {len(file.tasks)} workers", highlight=False)
        with Screen(console, len(file.tasks)) as screen:
            ends = Run(file, home, screen.show, accidents, ray_address or None).go(process)
        with Client(process.address) as client:
            results = collect(client)
        console.print("coordinator: stopping, MLflow is brought up to date")
    picture = draw(results, home / "accuracy.png")
    if as_json:
        print(json.dumps({**results.as_json(), "failed": {g.worker: g.error for g in ends if g.error}}))
    show(results, console)
    console.print(f"accuracy over versions: {picture}")
    console.print(f"lineage:  {mlflow_command(home)}", soft_wrap=True, highlight=False)
    console.print(f"ask more: fedshare coordinator --home {home}   and then   fedshare versions", soft_wrap=True)
    failed = [g for g in ends if g.error]
    for g in failed:
        console.print(f"error: {g.worker}: {g.error}", style="red")
    if failed:
        raise typer.Exit(1)


def mlflow_command(home: Path) -> str:
    """Opens MLflow on a home's own store. Its default view hides training runs, hence the query."""
    database = (home / "lineage" / "mlflow.db").absolute()
    server = f"{Path(sys.executable).with_name('mlflow')} server --workers 1 --backend-store-uri sqlite:///{database}"
    return f"{server}\n  and then open http://127.0.0.1:5000/?workflowType=machine_learning"
