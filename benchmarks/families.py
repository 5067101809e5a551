"""Ten families of tests for libraries of shared LoRA subspaces: lorashare and vlora, where installed, and share_algo.

    python -m benchmarks.families [--only 7,9] [--full] [--json FILE]

Every cell is what the library did in this run. Each probe runs in a process of its own, on one thread, within a limit
of CPU seconds; what it raises is its result. --full: families 5 and 10 at d = 768 and d = 4096 (half an hour more).
Prints one line for each probe, the table of families in Markdown, and the versions.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import psutil  # noqa: E402

from benchmarks.family_probes import cost, errors, files, peft_trips, uploads  # noqa: E402
from benchmarks.family_probes.ours import ShareAlgo  # noqa: E402
from benchmarks.family_probes.peers import PEERS  # noqa: E402
from benchmarks.family_probes.probe import (  # noqa: E402
    FAILS,
    HOLDS,
    NOT_APPLICABLE,
    Library,
    Outcome,
    Place,
    Probe,
    compared,
    first_line,
)

FAMILIES = {
    1: "bad uploads are refused, nobody else changes",
    2: "claimed error is measured error",
    3: "common-A start, K = 32; the joint optimum",
    4: "two plants at equal bytes",
    5: "add one: flat in the number of tasks",
    6: "40 adds under drift, every task within 5 %",
    7: "gauge, scaling, types, patterns",
    8: "PEFT round trip; identical adapters",
    9: "names and files",
    10: "streamed build under 1 GB",
}
PROBES: list[Probe] = sorted(
    (p for module in (uploads, errors, cost, peft_trips, files) for p in module.PROBES), key=lambda p: p.family
)
WAIT = 20
"""Times its limit of CPU seconds that a probe may take by the clock: the machine may be busy."""
FORK = multiprocessing.get_context("fork")


def measured(
    libraries: Collection[type[Library]], only: Collection[int] = FAMILIES, full: bool = False
) -> dict[Probe, dict[str, Outcome]]:
    """Outcomes by probe and library, in order; a line is printed for each as it comes."""
    found = {}
    for probe in PROBES:
        if probe.family in only:
            outcomes = [alone(probe, library, full) for library in libraries]
            outcomes = compared(outcomes) if probe.compare else outcomes
            found[probe] = {lib.name: o for lib, o in zip(libraries, outcomes, strict=True)}
            for name, outcome in found[probe].items():
                said = f"  ({outcome.said})" if outcome.said else ""
                print(
                    f"{probe.family:2}  {probe.name:26}  {name:9}  {outcome.verdict:5}  {outcome.cell}{said}",
                    flush=True,
                )
    return found


def alone(probe: Probe, library: type[Library], full: bool) -> Outcome:
    """The probe in a forked process with its own process group, which is ended when the time is up."""
    limit = probe.seconds_full if full else probe.seconds
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = FORK.Pipe()
        process = FORK.Process(target=_child, args=(probe, library, Place(Path(folder), full), ours))
        process.start()
        ours.close()
        try:
            return theirs.recv() if _answers(theirs, process.pid, limit) else Outcome(f"cut off at {limit} s", FAILS)
        except EOFError:
            process.join()
            return Outcome(f"its process died ({process.exitcode})", FAILS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()


def _answers(results, pid: int, limit: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether an answer comes before the process and its children have used so many CPU seconds, or waited for long."""
    until = time.monotonic() + WAIT * limit
    while not results.poll(0.2):
        if time.monotonic() > until or _cpu_seconds(pid) > limit:
            return False
    return True


def _cpu_seconds(pid: int) -> float:
    try:
        each = psutil.Process(pid)
        times = [p.cpu_times() for p in (each, *each.children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(t.user + t.system for t in times)


def _child(probe: Probe, library: type[Library], place: Place, results) -> None:  # type: ignore[no-untyped-def]
    os.setpgid(0, 0)
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        results.send(run(probe, library, place))


def run(probe: Probe, library: type[Library], place: Place) -> Outcome:
    """The probe's outcome here and now; what it raises is one."""
    try:
        return probe.run(library, place)
    except Exception as error:
        said = first_line(error, place.folder)
        return Outcome(f"raised {said.partition(':')[0]}", FAILS, said=said)


def table(found: dict[Probe, dict[str, Outcome]]) -> str:
    """A line for each family: how many of its probes hold, and the first that does not."""
    names = list(next(iter(found.values())))
    lines = [f"| | {' | '.join(['test', *names])} |", "|---" * (len(names) + 2) + "|"]
    for family in dict.fromkeys(probe.family for probe in found):
        cells = [_cell([(p, o[name]) for p, o in found.items() if p.family == family]) for name in names]
        lines.append(f"| {family} | {' | '.join([FAMILIES[family], *cells])} |")
    return "\n".join(lines)


def _cell(outcomes: list[tuple[Probe, Outcome]]) -> str:
    judged = [(p, o) for p, o in outcomes if o.verdict != NOT_APPLICABLE]
    held = sum(o.verdict == HOLDS for _, o in judged)
    shown = next(((p, o) for p, o in judged if o.verdict == FAILS), outcomes[0])
    return f"{held} of {len(judged)}; {shown[0].name}: {shown[1].cell}"


def versions(libraries: Collection[type[Library]]) -> str:
    packages = ["torch", "peft", "transformers", *(lib.package for lib in libraries if lib is not ShareAlgo)]
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: [int(n) for n in text.split(",")], default=list(FAMILIES))
    parser.add_argument("--full", action="store_true", help="families 5 and 10 at their full sizes")
    parser.add_argument("--json", type=Path, help="write every outcome here")
    given = parser.parse_args()
    libraries = [*PEERS, ShareAlgo]
    found = measured(libraries, given.only, given.full)
    print(f"\n{table(found)}\n\n{versions(libraries)}; families 5 and 10 {'in full' if given.full else 'small'}")
    if given.json:
        rows = [
            {"family": p.family, "probe": p.name, **{n: asdict(o) for n, o in outcomes.items()}}
            for p, outcomes in found.items()
        ]
        given.json.write_text(json.dumps({"versions": versions(libraries), "full": given.full, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
