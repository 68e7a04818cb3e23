"""``overread-eval link``: starts the processes, runs studies over the traces, and shows the rows.

With a journal each study is written as it comes, so that an interrupted run can be continued. The
first line of the journal describes the run, with checksums of the artifacts; the journal of
another run is refused.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cloud.settings import load_settings as load_cloud_settings
from edge.settings import load_settings
from evaluation.common.cli import STUDIES, Cache, Deadline, Json, Phantoms, Reserve, counting, show
from evaluation.common.processes import EdgeProcess, edge_process, restartable_cloud
from evaluation.common.tables import columns_table
from evaluation.errors import MissingData
from evaluation.links.link import CAVEAT, OFF, CloudKiller, Result, Run, as_dict, parts_of, read_all
from evaluation.links.trace import Trace, find_trace, shipped_names
from evaluation.timing.latency import this_machine
from models.markdown import Rows
from models.runtime.artifacts import find

_COLUMNS = {
    "trace": ("trace", "{}"),
    "studies": ("studies", "{}"),
    "late": ("late", "{}"),
    "scheduler_delay_p95_ms": ("delay ms", "{:.0f}"),
    "p50_ms": ("p50 ms", "{:.0f}"),
    "p95_ms": ("p95 ms", "{:.0f}"),
    "p99_ms": ("p99 ms", "{:.0f}"),
    "sensitivity": ("found", "{:.1%}"),
    "escalated": ("sent", "{}"),
    "answered": ("answered", "{}"),
    "broken_off": ("broken off", "{}"),
    "bytes": ("bytes", "{}"),
    "deaths": ("kills", "{}"),
}


def link_command(
    trace: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|CSV|off", help="Link; may be repeated. Default: all shipped."),
    ] = None,
    studies: Annotated[int, typer.Option(min=1, help="Studies over each trace.")] = 20,
    deadline: Deadline = None,
    reserve: Reserve = None,
    kill_cloud: Annotated[
        float, typer.Option(min=0, max=1, help="Share of studies in which the cloud is killed.")
    ] = 0.0,
    phantoms: Phantoms = 4,
    files_every: Annotated[
        int, typer.Option(min=1, help="Read every Nth study from DICOM.", metavar="N")
    ] = 50,
    replay: Annotated[
        bool, typer.Option("--replay", help="Reuse the candidates of one earlier screening.")
    ] = False,
    max_rois: Annotated[int | None, typer.Option(min=1, help="Most ROIs sent per study.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Edges in parallel.")] = 1,
    journal: Annotated[
        Path | None, typer.Option(metavar="JSONL", help="Journal to write and to continue from.")
    ] = None,
    cache: Cache = STUDIES,
    seed: Annotated[int, typer.Option(min=0, help="Seed of phantoms, jitter and kills.")] = 0,
    as_json: Json = False,
) -> None:
    """Real edge and cloud over faulty links: deadlines kept, nodules found, bytes sent."""
    names = trace or shipped_names()
    links = [None if name == OFF else find_trace(name) for name in names]
    given = {"deadline_s": deadline, "reserve_s": reserve, "max_rois": max_rois}
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    edge = load_settings(**settings)
    times_s = (edge.deadline_s, edge.reserve_s)
    run = Run(studies, settings, *times_s, kill_cloud, files_every, seed, replay)
    machine = asdict(this_machine())
    weights = checksums(edge.screening_model, load_cloud_settings().model)
    results = Journal(journal, {**asdict(run), "phantoms": phantoms, **machine, **weights})
    _continue(run, links, results, workers, lambda log: edge_process(phantoms, seed, cache, log))
    in_order = sorted(results.entries, key=lambda one: (one["trace"], one["number"]))
    result = as_dict(run, in_order, {**machine, "workers": workers})
    show(result, as_json, _table(result), CAVEAT)


def checksums(*names: str) -> dict[str, str]:
    """Return a checksum of each artifact by name: of its weights and its settings."""
    found = {}
    for one in map(find, names):
        whole = json.dumps([one.sha256, one.settings], sort_keys=True)
        found[one.name] = hashlib.sha256(whole.encode()).hexdigest()[:16]
    return found


class Journal:
    """The results so far, also in the file ``path`` if that is not None.

    Raises:
        MissingData: the file belongs to another run than ``run``, or cannot be read.
    """

    def __init__(self, path: Path | None, run: dict[str, Any]) -> None:
        self.entries: list[Result] = []
        self._path, self._lock = path, threading.Lock()
        if path is None:
            return
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{json.dumps(run)}\n")
        first, *self.entries = _lines(path)
        if first != json.loads(json.dumps(run)):
            raise MissingData(path, f"journal of another run: {first}, expected {run}")

    def add(self, result: Result) -> None:
        """Add one result; may be called from several threads."""
        with self._lock:
            self.entries.append(result)
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(f"{json.dumps(result)}\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read all whole lines; an incomplete last line is removed from the file."""
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    try:
        lines = [dict(json.loads(line)) for line in whole.splitlines()]
    except ValueError as error:
        raise MissingData(path, f"not a journal: {error}") from error
    if not lines:
        raise MissingData(path, "journal is empty: remove it")
    return lines


def _continue(
    run: Run,
    links: list[Trace | None],
    results: Journal,
    workers: int,
    edge: Callable[[Path], AbstractContextManager[EdgeProcess]],
) -> None:
    """Read the studies that the journal lacks, and add them."""
    done = {(one["trace"], one["number"]) for one in results.entries}
    if not (parts := parts_of(links, run.studies, workers, done)):
        return
    with ExitStack() as running, counting("studies") as step:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="overread-link-")))
        cloud = running.enter_context(restartable_cloud(folder))
        logs = (folder / f"edge{worker}.log" for worker in range(min(workers, len(parts))))
        edges = [running.enter_context(edge(log)) for log in logs]
        count, total = itertools.count(1), sum(len(part.numbers) for part in parts)

        def record(result: Result) -> None:
            results.add(result)
            step(next(count), total)

        read_all(run, parts, edges, CloudKiller(cloud), record)


def _table(result: dict[str, Any]) -> Rows:
    title = (
        f"{result['late']} of {result['studies']} reports late "
        f"({result['late_without_scheduler_delay']} without scheduler delay), "
        f"deadline {result['deadline_s']:g} s; "
        f"{result['from_files']} from files, {result['from_memory']} from memory; "
        f"{result['cpu']}, {result['cores']} cores"
    )
    return columns_table(_COLUMNS, result["traces"], title)
