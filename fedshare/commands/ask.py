"""Commands that ask a running coordinator: status, versions, show, diff, story."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fedshare import options
from fedshare.table import print_table

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from protos.fedshare.v1 import federation_pb2 as pb

HEADINGS = (
    *("version", "task", "worker", "base", "stale", "weight", "error", "largest", "basis", "generation"),
    *("bytes", "made", "gone"),
)
"""Of the table of versions; a column that has nothing to tell is left out, so that names have room."""

SPARE = ("made", "stale", "weight", "generation", "bytes", "base", "gone", "largest", "basis", "error")
"""Those of them that a narrow terminal has no room for, what matters least first."""


def add_to(app: typer.Typer) -> None:
    for command in (status, versions, show, diff, story):
        app.command(rich_help_panel="Ask a coordinator")(command)


def status(coordinator: options.Coordinator = options.DEFAULT_COORDINATOR, as_json: options.Json = False) -> None:
    """Who is a member, how many updates are queued and merged, how much is kept."""
    with _client(coordinator) as client:
        reply = client.status()
    if as_json:
        _print_json(reply)
        return
    console = Console()
    behind = f", {reply.lineage_behind} versions behind" if reply.lineage_behind else ""
    for name, value in (
        (
            "federation",
            f"{reply.spec.name} ({reply.spec.federation_id[:8]}), base model {reply.spec.base.name}",
        ),
        ("head", f"version {reply.head}, generation {reply.generation}"),
        ("updates", _counts(reply)),
        ("kept", f"{reply.bytes_basis:,} bytes of basis, {reply.bytes_tasks:,} of coefficients and heads"),
        ("lineage", f"{reply.lineage or 'off'}{behind}"),
    ):
        console.print(f"{name:<11} {value}", highlight=False, soft_wrap=True)
    if reply.waiting:
        console.print(f"{'waiting':<11} {reply.waiting}", highlight=False, soft_wrap=True)
    rows = (
        (m.worker, m.task, m.incarnation, time(m.joined_at), time(m.left_at) if m.left_at else "member")
        for m in reply.members
    )
    headings = ("worker", "task", "incarnation", "joined", "left")
    print_table(console, headings, rows, spare=("joined", "incarnation", "left"))


def versions(coordinator: options.Coordinator = options.DEFAULT_COORDINATOR, as_json: options.Json = False) -> None:
    """Every version: which task, from whom, on which base, at what error and size."""
    with _client(coordinator) as client:
        records = client.versions()
    if as_json:
        print(json.dumps([as_dict(r) for r in records]))
        return
    made = [record for record in records if record.version]
    tells = {  # of columns that mostly say the same: whether any row says something
        "weight": any(_cells(r)["weight"] for r in made),
        "largest": any(_cells(r)["largest"] != _cells(r)["error"] for r in made),
        "generation": any(r.generation for r in made),
        "gone": any(r.gone for r in made),
    }
    shown = [heading for heading in HEADINGS if tells.get(heading, True)]
    print_table(Console(), shown, ([_cells(record)[heading] for heading in shown] for record in made), spare=SPARE)


def show(
    version: Annotated[int, typer.Argument(min=0, max=options.VERSION_MAX, help="Number of a version.")],
    coordinator: options.Coordinator = options.DEFAULT_COORDINATOR,
    as_json: options.Json = False,
) -> None:
    """One version: what it is made of, and where it came from."""
    with _client(coordinator) as client:
        manifest, _ = client.fetch(version, every_task=True, manifest_only=True)
        records = [r for r in client.versions(first=version) if r.version == version]
    if as_json:
        dicts = [as_dict(r) for r in records]
        print(json.dumps({**dicts[-1], "manifest": as_dict(manifest), "records": dicts}))
        return
    console = Console()
    for name, value in ((name, value) for record in records for name, value in _in_words(record).items()):
        console.print(f"{name:<20} {value}", highlight=False, soft_wrap=True)
    basis = sum(b.nbytes for b in manifest.blocks)
    console.print(f"\nbasis: {len(manifest.blocks)} blocks, {basis:,} bytes; tasks:", highlight=False)
    rows = (
        (t.task, t.version, len(t.labels), _error(t), f"{t.entry.nbytes:,}", t.entry.digest[:12])
        for t in manifest.tasks
    )
    headings = ("task", "since version", "labels", "error", "bytes", "digest")
    print_table(console, headings, rows, spare=("digest", "bytes", "labels", "since version"))


def diff(
    before: Annotated[int, typer.Argument(min=0, max=options.VERSION_MAX, help="Number of a version.")],
    after: Annotated[int, typer.Argument(min=0, max=options.VERSION_MAX, help="Number of another.")],
    coordinator: options.Coordinator = options.DEFAULT_COORDINATOR,
    as_json: options.Json = False,
) -> None:
    """What differs between two versions: tasks that came, went or changed (by how much of dW), and the basis."""
    from workers.compare import compare

    with _client(coordinator) as client:
        found = compare(client, before, after)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    say = Console(highlight=False, soft_wrap=True).print
    for name, tasks in (("came", found.came), ("went", found.went)):
        say(f"{name:<10} {', '.join(tasks) or 'none'}")
    changed = (f"{task} ({difference:.1e} of dW)" for task, difference in found.changed.items())
    say(f"{'changed':<10} {', '.join(changed) or 'none'}")
    say(f"{'the same':<10} {found.same} tasks")
    alone = f"{found.blocks_before} and {found.blocks_after} in one only"
    say(f"{'basis':<10} {found.blocks_shared} blocks in both, {alone}")


def story(
    update_id: Annotated[str, typer.Argument(help="Id of an update, or its first 6 or more digits.", metavar="ID")],
    coordinator: options.Coordinator = options.DEFAULT_COORDINATOR,
    as_json: options.Json = False,
) -> None:
    """Everything that happened to one update."""
    with _client(coordinator) as client:
        reply = client.story(update_id)
    if as_json:
        _print_json(reply)
        return
    console = Console()
    console.print(f"update {reply.update_id}", highlight=False)
    for event in reply.events:
        console.print(f"{time(event.at)}  {event.what:<9} {event.detail}", highlight=False, soft_wrap=True)


def _in_words(record: pb.VersionRecord) -> dict[str, object]:
    metrics = (f"{name} {value:.6g}" for name, value in sorted(record.metrics.items()))
    words = {"kind": _kind(record), "created_at": time(record.created_at), "metrics": ", ".join(metrics)}
    return {**as_dict(record), **words}


def _kind(record: pb.VersionRecord) -> str:
    from protos.fedshare.v1 import federation_pb2 as pb

    if record.kind == pb.VERSION_KIND_UNSPECIFIED:
        return "start"
    return pb.VersionKind.Name(record.kind).removeprefix("VERSION_KIND_").lower()


def _instead(record: pb.VersionRecord) -> str:
    """What the table shows where a version learned no task that is still known."""
    kind = _kind(record)
    return "(erased)" if kind == "merge" else f"({kind})"


def _cells(r: pb.VersionRecord) -> dict[str, object]:
    """By heading. Base, staleness, weight and error are those of a merge; other versions have none."""
    from protos.fedshare.v1 import federation_pb2 as pb

    merge = r.kind == pb.VERSION_KIND_MERGE
    cells = (
        *(r.version, r.task or _instead(r), r.worker),
        *((r.base_version, r.staleness) if merge else ("", "")),
        "" if r.weight == 1 or not merge else f"{r.weight:.3g}",
        f"{r.relative_error:.0e}" if merge else "",
        *(f"{r.largest_error:.0e}", f"{r.basis_out}+{r.basis_in}", r.generation),
        *(f"{r.bytes_sent:,}", time(r.created_at)[5:16], r.gone),
    )
    return dict(zip(HEADINGS, cells, strict=True))


def _error(task: pb.TaskRef) -> str:
    """Of dW against what was merged."""
    return f"{'<= ' if task.is_bound else ''}{task.relative_error:.1e}"


def _counts(reply: pb.StatusReply) -> str:
    always = f"{reply.merged} merged, {reply.queued} queued, {reply.skipped} skipped"
    seldom = (
        *((reply.reverted, "reverted"), (reply.erased, "erased")),
        *((reply.buffered, "buffered"), (reply.quarantined, "quarantined"), (reply.rejected, "rejected")),
        *((reply.superseded, "superseded"), (reply.too_stale, "too stale")),
    )
    commands = f"; commands: {reply.commands_queued} queued" if reply.commands_queued else ""
    return ", ".join([always, *(f"{count} {name}" for count, name in seldom if count)]) + commands


def _client(address: str):
    from workers.client import Client

    return Client(address)


def as_dict(message: Message) -> dict[str, Any]:
    """With numbers as numbers and in the message's own order: protobuf's own JSON writes 64-bit ones as text, and what
    has no value last."""
    from google.protobuf import json_format

    plain = json_format.MessageToDict(
        message, always_print_fields_with_no_presence=True, preserving_proto_field_name=True
    )
    return _numbers(plain, message)


def _numbers(value: dict[str, Any], message: Message) -> dict[str, Any]:
    wide = {f.name for f in message.DESCRIPTOR.fields if f.cpp_type in (f.CPPTYPE_INT64, f.CPPTYPE_UINT64)}
    fields = (f for f in message.DESCRIPTOR.fields if f.message_type)
    nested = [f.name for f in fields if not f.message_type.GetOptions().map_entry]
    in_order = [(f.name, value[f.name]) for f in message.DESCRIPTOR.fields if f.name in value]
    out: dict[str, Any] = {k: int(v) if k in wide and isinstance(v, str) else v for k, v in in_order}
    for name in nested:
        inner = getattr(message, name)
        if not hasattr(inner, "DESCRIPTOR"):  # many: their container has none
            out[name] = [_numbers(v, m) for v, m in zip(out.get(name, []), inner, strict=True)]
        elif name in out:
            out[name] = _numbers(out[name], inner)
    return out


def _print_json(message: Message) -> None:
    print(json.dumps(as_dict(message)))


def time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
