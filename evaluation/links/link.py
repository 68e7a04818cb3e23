"""``overread-eval link``: studies over faulty links, through a real edge and a real cloud.

Each study is timed from its start to its report. A report is late if it comes more than
`TOLERANCE_S` after its deadline. Several edges may share the run, and the cloud. With a journal
each study is written as it comes, so that an interrupted run can be continued. Its first line
describes the run, with checksums of the artifacts; the journal of another run is refused.
"""

import hashlib
import itertools
import json
import random
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cloud.settings import load_settings as load_cloud_settings
from edge.findings import SecondReading
from edge.settings.core import load_settings
from evaluation.common.cli import STUDIES, Cache, Deadline, Json, Phantoms, Reserve, counting, show
from evaluation.common.processes import (
    EdgeProcess,
    RestartableCloud,
    edge_process,
    restartable_cloud,
)
from evaluation.common.tables import columns_table
from evaluation.errors import MissingData
from evaluation.links.proxy import proxied
from evaluation.links.trace import Trace, find_trace, shipped_names
from evaluation.result import percentiles_ms
from evaluation.run import this_machine
from models.runtime.artifacts import find

TOLERANCE_S = 0.020

OFF = "off"
"""Instead of a trace: no cloud, the edge alone."""

CAVEAT = (
    "Phantoms are synthetic: they show what the pipeline does, not how it performs on patients. "
    "Studies that are not read from files start from lung boxes in memory; all later stages are "
    "the agent's, except that replayed candidates come from one run of the screening network."
)

KILL_WITHIN_S = 0.5
"""The cloud is killed at most this long after the start of a study."""

Result = dict[str, Any]
"""One study: trace, number, and the answer of `evaluation.links.edge_worker`."""

COLUMNS = {
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


@dataclass(frozen=True)
class Run:
    """The settings of a run over each trace, as the options of the command.

    ``settings`` are those of the edge, apart from the cloud's address. Every Nth study is read from
    DICOM, beginning with the first; the seed is that of jitter and kills.
    """

    studies: int
    settings: dict[str, Any] = field(default_factory=dict)
    deadline_s: float = 10.0
    reserve_s: float = 2.0
    kill_share: float = 0.0
    files_every: int = 50
    seed: int = 0
    replay: bool = False


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
    max_rois: Annotated[
        int | None, typer.Option(min=1, help="Largest number of ROIs sent per study.")
    ] = None,
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
    given = {"deadline_s": deadline, "reserve_s": reserve, "cloud__max_rois": max_rois}
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    edge = load_settings(**settings)
    times_s = (edge.deadline_s, edge.reserve_s)
    run = Run(studies, settings, *times_s, kill_cloud, files_every, seed, replay)
    machine = this_machine()
    weights = checksums(edge.screening_model, load_cloud_settings().model)
    results = Journal(journal, {**asdict(run), "phantoms": phantoms, **machine, **weights})
    done = {(one["trace"], one["number"]) for one in results.entries}
    if parts := parts_of(links, studies, workers, done):
        with ExitStack() as running, counting("studies") as step:
            prefix = "overread-link-"
            folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))
            cloud = running.enter_context(restartable_cloud(folder))
            logs = (folder / f"edge{worker}.log" for worker in range(min(workers, len(parts))))
            edges = [
                running.enter_context(edge_process(phantoms, seed, cache, log)) for log in logs
            ]
            count, total = itertools.count(1), sum(len(numbers) for _, numbers in parts)

            def record(result: Result) -> None:
                results.add(result)
                step(next(count), total)

            read_all(run, parts, edges, cloud, record)
    in_order = sorted(results.entries, key=lambda one: (one["trace"], one["number"]))
    result = as_dict(run, in_order, {**machine, "workers": workers})
    title = (
        f"{result['late']} of {result['studies']} reports late "
        f"({result['late_without_scheduler_delay']} without scheduler delay), "
        f"deadline {result['deadline_s']:g} s; "
        f"{result['from_files']} from files, {result['from_memory']} from memory; "
        f"{result['cpu']}, {result['cores']} cores"
    )
    show(result, as_json, columns_table(COLUMNS, result["traces"], title), CAVEAT)


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
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]  # the last line is incomplete after a kill
        first, *self.entries = _lines(path, whole)
        if first != json.loads(json.dumps(run)):
            raise MissingData(path, f"journal of another run: {first}, expected {run}")
        if whole != text:
            path.write_text(whole)

    def add(self, result: Result) -> None:
        """Add one result; may be called from several threads."""
        with self._lock:
            self.entries.append(result)
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(f"{json.dumps(result)}\n")


def _lines(path: Path, text: str) -> list[dict[str, Any]]:
    """Return the values of each line of ``text``, which is that of the file."""
    try:
        lines = [dict(json.loads(line)) for line in text.splitlines()]
    except ValueError as error:
        raise MissingData(path, f"not a journal: {error}") from error
    if not lines:
        raise MissingData(path, "journal is empty: remove it")
    return lines


Part = tuple[Trace | None, tuple[int, ...]]
"""Numbers of studies, read one after the other, over one trace (None: without a cloud)."""


def parts_of(
    traces: Sequence[Trace | None], studies: int, workers: int, done: set[tuple[str, int]]
) -> list[Part]:
    """Split the studies that are not in ``done`` into a part for each trace and worker.

    ``done`` holds names of traces and numbers of studies. Neighbouring parts differ in trace.
    """
    parts = list[Part]()
    for worker in range(workers):
        for trace in traces:
            name = trace.name if trace else OFF
            numbers = range(studies)[worker::workers]
            if left := tuple(number for number in numbers if (name, number) not in done):
                parts.append((trace, left))
    return parts


def read_all(
    run: Run,
    parts: Sequence[Part],
    edges: Sequence[EdgeProcess],
    cloud: RestartableCloud,
    record: Callable[[Result], None],
) -> None:
    """Read all parts with all ``edges`` in parallel; ``record`` is called with each study.

    Raises:
        Exception: what stopped one edge; the others end after their current study.
    """
    left = iter(parts)  # a list's iterator gives each part to one thread only
    failed = threading.Event()

    def work(edge: EdgeProcess) -> None:
        try:
            for trace, numbers in left:
                for result in read_part(run, trace, edge, cloud, numbers):
                    record(result)
                    if failed.is_set():
                        return
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(len(edges)) as pool:
        list(pool.map(work, edges))


def read_part(
    run: Run,
    trace: Trace | None,
    edge: EdgeProcess,
    cloud: RestartableCloud,
    numbers: Iterable[int],
) -> Iterator[Result]:
    """Read the studies of these numbers over one trace, None being `OFF`.

    Raises:
        ServiceFailed: the cloud ended by itself.
    """
    if trace is None:
        edge.open(replay=run.replay, **run.settings, cloud__address=OFF)
        for number in numbers:
            read = edge.read(number, from_files=number % run.files_every == 0)
            yield {"trace": OFF, "number": number, "bytes": 0, "death": False, **read}
        return
    with proxied(cloud.address, trace, seed=run.seed) as proxy:
        edge.open(replay=run.replay, **run.settings, cloud__address=proxy.address)
        proxy.rewind()
        for number in numbers:
            chance = random.Random(f"{run.seed} {trace.name} {number}")
            kills, delay_s = chance.random() < run.kill_share, chance.uniform(0, KILL_WITHIN_S)
            cloud.require_alive()
            carried, before = proxy.carried.total_bytes, cloud.kills
            timer = threading.Timer(delay_s, cloud.restart)
            if kills:
                timer.start()
            read = edge.read(number, from_files=number % run.files_every == 0)
            if kills:
                timer.cancel()
                timer.join()
            yield {
                "trace": trace.name,
                "number": number,
                "bytes": proxy.carried.total_bytes - carried,
                "death": kills and cloud.kills > before,
                **read,
            }


def row(name: str, results: Sequence[Result], deadline_s: float) -> dict[str, Any]:
    """Return the figures of one trace; ``sensitivity`` is None without a lesion.

    ``late_without_scheduler_delay`` counts the studies that would be late even if the machine had
    never delayed the edge, ``broken_off`` those with a sent ROI that was not answered.
    """
    took_s = np.array([one["took_s"] for one in results])
    delay_s = np.array([one["scheduler_delay_s"] for one in results])
    lesions = sum(one["lesions"] for one in results)
    last_s = deadline_s + TOLERANCE_S
    complete = SecondReading.COMPLETE.value
    return {
        "trace": name,
        "studies": len(results),
        "late": int((took_s > last_s).sum()),
        "late_without_scheduler_delay": int((took_s - delay_s > last_s).sum()),
        **percentiles_ms(took_s),
        "longest_ms": 1000 * float(took_s.max()),
        "scheduler_delay_p95_ms": 1000 * float(np.percentile(delay_s, 95)),
        "sensitivity": sum(one["found"] for one in results) / lesions if lesions else None,
        "false_positives_per_scan": sum(one["false"] for one in results) / len(results),
        "escalated": sum(one["escalated"] for one in results),
        "answered": sum(one["answered"] for one in results),
        "broken_off": sum(one["answered"] < one["escalated"] for one in results),
        "complete": sum(one["second_reading"] == complete for one in results),
        "refused": sum(bool(one["refused"]) for one in results),
        "bytes": sum(one["bytes"] for one in results),
        "deaths": sum(one["death"] for one in results),
    }


def as_dict(run: Run, results: Sequence[Result], machine: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of all studies together, and those of each trace."""
    names = dict.fromkeys(one["trace"] for one in results)
    by_trace = {name: [one for one in results if one["trace"] == name] for name in names}
    from_files = sum(one["number"] % run.files_every == 0 for one in results)
    whole = row("all", results, run.deadline_s)
    del whole["trace"]
    return {
        **machine,
        "deadline_s": run.deadline_s,
        "reserve_s": run.reserve_s,
        "tolerance_s": TOLERANCE_S,
        "seed": run.seed,
        "kill_share": run.kill_share,
        "replay": run.replay,
        **whole,
        "from_files": from_files,
        "from_memory": len(results) - from_files,
        "traces": [row(name, those, run.deadline_s) for name, those in by_trace.items()],
        "caveat": CAVEAT,
    }
