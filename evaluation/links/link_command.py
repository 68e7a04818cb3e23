"""``overread-eval link``: starts the processes, goes over the traces, and shows the rows.

Results kept line by line as they come, so that a long run may be cut short and go on.

The first line says what the run is, the checksums of the artifacts that read in it too; a file of
another run is refused.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cloud.settings import load_settings as load_cloud_settings
from edge.settings import load_settings
from evaluation.common.cli import STUDIES, Cache, Deadline, Json, Phantoms, Reserve, counting, show
from evaluation.common.processes import edge_process, restartable_cloud
from evaluation.common.tables import columns_table
from evaluation.errors import MissingData
from evaluation.links import link
from evaluation.links.link import CAVEAT, OFF, Reads, Reaper, Run, parts_of, read_all
from evaluation.links.trace import Trace, find_trace, shipped_names
from evaluation.timing.latency import this_machine
from models.markdown import Rows
from models.runtime.artifacts import find

Entry = dict[str, Any]


class Journal:
    """The results so far; `add` may be called from several threads."""

    def __init__(self, entries: list[Entry], path: Path | None) -> None:
        self.entries, self._path = entries, path
        self._lock = threading.Lock()

    def add(self, entry: Entry) -> None:
        """Keeps one more."""
        with self._lock:
            self.entries.append(entry)
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(f"{json.dumps(entry)}\n")


@contextmanager
def open_journal(path: Path | None, run: Entry) -> Iterator[Journal]:
    """The journal in ``path``, with what an earlier call has left there; None keeps no file.

    Raises:
        MissingData: the file is of another run, or cannot be read.
    """
    if path is None:
        yield Journal([], None)
        return
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{json.dumps(run)}\n")
    first, *entries = _lines(path)
    if first != json.loads(json.dumps(run)):
        raise MissingData(path, f"it is of another run: {first}, not {run}")
    yield Journal(entries, path)


def _lines(path: Path) -> list[Entry]:
    """All whole lines; a last one that was cut is taken off, so that the next is whole again."""
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    try:
        lines = [dict(json.loads(line)) for line in whole.splitlines()]
    except ValueError as error:
        raise MissingData(path, f"it is no journal: {error}") from error
    if not lines:
        raise MissingData(path, "it is empty: remove it")
    return lines


_COLUMNS = {
    "trace": ("trace", "{}"),
    "studies": ("studies", "{}"),
    "late": ("late", "{}"),
    "stalled_p95_ms": ("stalled", "{:.0f}"),
    "p50_ms": ("p50 ms", "{:.0f}"),
    "p95_ms": ("p95 ms", "{:.0f}"),
    "p99_ms": ("p99 ms", "{:.0f}"),
    "sensitivity": ("found", "{:.1%}"),
    "escalated": ("sent", "{}"),
    "answered": ("read again", "{}"),
    "broken_off": ("broken off", "{}"),
    "bytes": ("bytes", "{}"),
    "deaths": ("deaths", "{}"),
}


def link_command(
    trace: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|CSV|off", help="Link; give several. All shipped by default."),
    ] = None,
    studies: Annotated[int, typer.Option(min=1, help="Studies over each trace.")] = 20,
    deadline: Deadline = None,
    reserve: Reserve = None,
    kill_cloud: Annotated[
        float, typer.Option(min=0, max=1, help="Part of the studies in which the cloud is killed.")
    ] = 0.0,
    phantoms: Phantoms = 4,
    files_every: Annotated[
        int, typer.Option(min=1, help="Every so many-th study starts from its files.")
    ] = 50,
    replay: Annotated[
        bool, typer.Option("--replay", help="Screen each study once, beforehand.")
    ] = False,
    max_rois: Annotated[
        int | None, typer.Option(min=1, help="Regions of a study that are sent at most.")
    ] = None,
    lanes: Annotated[int, typer.Option(min=1, help="Edges at work side by side.")] = 1,
    journal: Annotated[
        Path | None, typer.Option(metavar="JSONL", help="Keep each study here; go on from it.")
    ] = None,
    cache: Cache = STUDIES,
    seed: Annotated[int, typer.Option(min=0, help="Of phantoms, jitter and deaths.")] = 0,
    as_json: Json = False,
) -> None:
    """Real edge and cloud over links with faults: deadlines kept, nodules found, bytes sent."""
    names = trace or shipped_names()
    links: list[Trace | None] = [None if name == OFF else find_trace(name) for name in names]
    given = {"deadline_s": deadline, "reserve_s": reserve, "max_rois": max_rois}
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    edge = load_settings(**settings)
    times_s = (edge.deadline_s, edge.reserve_s)
    run = Run(studies, settings, *times_s, kill_cloud, files_every, seed, replay)
    machine = asdict(this_machine())
    weights = checksums(edge.screening_model, load_cloud_settings().model)
    with open_journal(
        journal, {**asdict(run), "phantoms": phantoms, **machine, **weights}
    ) as results:
        _go_on(run, links, results, lanes, lambda log: edge_process(phantoms, seed, cache, log))
        result = link.as_dict(run, _in_order(results.entries), {**machine, "lanes": lanes})
    show(result, as_json, _table(result), CAVEAT)


def checksums(*names: str) -> dict[str, str]:
    """By name a checksum of each artifact: of its weights, and of what it is used with."""
    found = {}
    for one in map(find, names):
        whole = json.dumps([one.sha256, one.settings], sort_keys=True)
        found[one.name] = hashlib.sha256(whole.encode()).hexdigest()[:16]
    return found


def _go_on(
    run: Run,
    links: list[Trace | None],
    results: Journal,
    lanes: int,
    edge: Callable[[Path], AbstractContextManager[Reads]],
) -> None:
    """Reads what the journal lacks, and adds it."""
    done = {(one["trace"], one["number"]) for one in results.entries}
    if not (parts := parts_of(links, run.studies, lanes, done)):
        return
    with ExitStack() as running, counting("studies") as step:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="overread-link-")))
        cloud = running.enter_context(restartable_cloud(folder))
        logs = (folder / f"edge{lane}.log" for lane in range(min(lanes, len(parts))))
        edges = [running.enter_context(edge(log)) for log in logs]
        left = itertools.count(1)

        def tell(result: dict[str, Any]) -> None:
            results.add(result)
            step(next(left), sum(len(part.numbers) for part in parts))

        read_all(run, parts, edges, Reaper(cloud), tell)


def _in_order(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(results, key=lambda one: (one["trace"], one["number"]))


def _table(result: dict[str, Any]) -> Rows:
    counts = f"{result['from_files']} from files, {result['from_memory']} from memory"
    title = (
        f"{result['late']} of {result['studies']} answers late, {result['late_unstalled']} of them "
        f"not by the machine's stalls (deadline {result['deadline_s']:g} s), {counts}; "
        f"{result['cpu']}, {result['cores']} cores"
    )
    return columns_table(_COLUMNS, result["traces"], title)
