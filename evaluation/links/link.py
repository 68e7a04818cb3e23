"""``overread-eval link``: studies over faulty links, through a real edge and a real cloud.

Each study is timed from its start to its report. A report is late if it comes more than
`TOLERANCE_S` after its deadline. Several edges may share the run, and the cloud. With a journal
each study is written as it comes, so that an interrupted run can be continued; it belongs to one
run, with checksums of the artifacts. For ``--scenario dead-cloud`` see
`evaluation.links.dead_cloud`.
"""

import hashlib
import itertools
import json
import math
import random
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cloud.settings import load_settings as load_cloud_settings
from edge.findings import SecondReading
from edge.settings.core import load_settings
from evaluation.links.dead_cloud import CLOUDS, LIMIT_MS, compare, ways
from evaluation.links.edge_worker import OFF, Edge
from evaluation.links.proxy import proxied
from evaluation.links.trace import Trace, find_trace, shipped_names
from evaluation.phantoms import whole_chest
from evaluation.result import SHARE, Bar, Result, Table, percentiles_ms
from evaluation.run import (
    STUDIES,
    Cache,
    Deadline,
    Journal,
    Phantoms,
    Reserve,
    Seed,
    command,
    counting,
    each,
    this_machine,
)
from evaluation.world import Cloud, apart, running_cloud
from models.runtime.artifacts import find

TOLERANCE_S = 0.020

CAVEAT = (
    "Phantoms are synthetic: they show what the pipeline does, not how it performs on patients. "
    "Studies that are not read from files start from lung boxes in memory; all later stages are "
    "the agent's, except that replayed candidates come from one run of the screening network."
)

SCAN_BYTES = 2 * math.prod(whole_chest(0).shape)
"""Of the voxels of each scan, of 16 bits."""

KILL_WITHIN_S = 0.5
"""The cloud is killed at most this long after the start of a study."""

Read = dict[str, Any]
"""One study: trace, number, and what the edge tells."""

Part = tuple[Trace | None, tuple[int, ...]]
"""Numbers of studies, read one after the other, over one trace (None: without a cloud)."""


class Scenario(StrEnum):
    """What the links are like: those of traces, or such that lead to no cloud."""

    TRACES = "traces"
    DEAD_CLOUD = "dead-cloud"


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


def checksums(*names: str) -> dict[str, str]:
    """Return a checksum of each artifact by name: of its weights and its settings."""
    found = {}
    for one in map(find, names):
        whole = json.dumps([one.sha256, one.settings], sort_keys=True)
        found[one.name] = hashlib.sha256(whole.encode()).hexdigest()[:16]
    return found


def parts_of(
    traces: Sequence[Trace | None], studies: int, workers: int, done: set[tuple[str, int]]
) -> list[Part]:
    """Split the studies that are not in ``done`` into a part for each trace and worker.

    ``done`` holds names of traces and numbers of studies. Neighbouring parts differ in trace.
    """
    parts = list[Part]()
    for worker, trace in itertools.product(range(workers), traces):
        name = trace.name if trace else OFF
        numbers = range(studies)[worker::workers]
        if left := tuple(number for number in numbers if (name, number) not in done):
            parts.append((trace, left))
    return parts


def read_all(
    run: Run,
    parts: Sequence[Part],
    edges: Sequence[Edge],
    cloud: Cloud,
    record: Callable[[Read], None],
) -> None:
    """Read all parts with all ``edges`` in parallel; ``record`` is called with each study.

    Raises:
        Exception: what stopped one edge; the others end after their current study.
    """
    left = iter(parts)  # a list's iterator gives each part to one thread only
    failed = threading.Event()

    def work(edge: Edge) -> None:
        try:
            for trace, numbers in left:
                for read in read_part(run, trace, edge, cloud, numbers):
                    record(read)
                    if failed.is_set():
                        return
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(len(edges)) as pool:
        list(pool.map(work, edges))


def read_part(
    run: Run, trace: Trace | None, edge: Edge, cloud: Cloud, numbers: Iterable[int]
) -> Iterator[Read]:
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


def row(name: str, reads: Sequence[Read], deadline_s: float) -> dict[str, Any]:
    """Return the figures of one trace; ``sensitivity`` is None without a lesion.

    ``late_without_scheduler_delay`` counts the studies that would be late even if the machine had
    never delayed the edge, ``broken_off`` those with a sent ROI that was not answered.
    ``share_of_scans`` is what was carried, as a share of whole scans.
    """
    took_s = np.array([one["took_s"] for one in reads])
    delay_s = np.array([one["scheduler_delay_s"] for one in reads])
    lesions, carried = sum(one["lesions"] for one in reads), sum(one["bytes"] for one in reads)
    last_s = deadline_s + TOLERANCE_S
    complete = SecondReading.COMPLETE.value
    return {
        "trace": name,
        "studies": len(reads),
        "late": int((took_s > last_s).sum()),
        "late_without_scheduler_delay": int((took_s - delay_s > last_s).sum()),
        **percentiles_ms(took_s),
        "longest_ms": 1000 * float(took_s.max()),
        "scheduler_delay_p95_ms": 1000 * float(np.percentile(delay_s, 95)),
        "sensitivity": sum(one["found"] for one in reads) / lesions if lesions else None,
        "false_positives_per_scan": sum(one["false"] for one in reads) / len(reads),
        "escalated": sum(one["escalated"] for one in reads),
        "answered": sum(one["answered"] for one in reads),
        "broken_off": sum(one["answered"] < one["escalated"] for one in reads),
        "complete": sum(one["second_reading"] == complete for one in reads),
        "refused": sum(bool(one["refused"]) for one in reads),
        "bytes": carried,
        "bytes_per_study": carried / len(reads),
        "share_of_scans": carried / len(reads) / SCAN_BYTES,
        "deaths": sum(one["death"] for one in reads),
    }


def figures(run: Run, reads: Sequence[Read], workers: int = 1) -> dict[str, Any]:
    """Return the figures of all studies together, and those of each trace."""
    by_trace = dict[str, list[Read]]()
    for one in sorted(reads, key=lambda one: (one["trace"], one["number"])):
        by_trace.setdefault(one["trace"], []).append(one)
    from_files = sum(one["number"] % run.files_every == 0 for one in reads)
    whole = row("all", reads, run.deadline_s)
    del whole["trace"]
    return {
        "workers": workers,
        "deadline_s": run.deadline_s,
        "reserve_s": run.reserve_s,
        "tolerance_s": TOLERANCE_S,
        "kill_share": run.kill_share,
        "replay": run.replay,
        **whole,
        "from_files": from_files,
        "from_memory": len(reads) - from_files,
        "traces": [row(name, those, run.deadline_s) for name, those in by_trace.items()],
        "caveat": CAVEAT,
    }


def bars(result: Result) -> Iterator[Bar]:
    """Yield what is required: no late answer, or no delay by a dead cloud."""
    if "traces" in result:
        tolerance_s, deadline_s = result["tolerance_s"], result["deadline_s"]
        what = f"answers later than {1000 * tolerance_s:.0f} ms after the deadline of"
        what = f"{what} {deadline_s:g} s, {len(result['traces'])} links"
        late, studies = result["late"], result["studies"]
        yield Bar(what, late, 0, shown=f"{late} of {studies}")
        last_ms = 1000 * (deadline_s + tolerance_s)
        yield Bar("longest answer", result["longest_ms"], last_ms, "{:.0f} ms")
    for one in result.get("ways", ()):
        for key, words in {"more_median_ms": "median", "more_p95_ms": "p95"}.items():
            if not one["way"].startswith(OFF):
                what = f"cloud {one['way']}: more than without a cloud, {words}"
                yield Bar(what, one[key], result["bar_ms"], "{:.0f} ms")


TRACES = Table(
    "traces",
    {
        "trace": "link", "studies": "studies", "late": "late",
        **{f"{key}_ms": (f"{key} ms", "{:.0f}") for key in ("p50", "p95", "p99", "longest")},
        "sensitivity": ("found", SHARE), "escalated": "sent", "answered": "read again",
        "broken_off": "broken off", "bytes_per_study": ("bytes a study", "{:,.0f}"),
        "share_of_scans": ("of the scans", "{:.2%}"), "deaths": "cloud killed",
    },
    lambda result: result.get("traces", ()),
    "{late} of {studies} reports late ({late_without_scheduler_delay} without scheduler delay), "
    "deadline {deadline_s:g} s; {from_files} from files, {from_memory} from memory; "
    "{cpu}, {cores} cores",
)  # fmt: skip
WAYS = Table(
    "ways",
    {
        "way": "cloud", "studies": "studies", "median_ms": ("median ms", "{:.1f}"),
        "p95_ms": ("p95 ms", "{:.1f}"), "more_median_ms": ("more: median", "{:.1f}"),
        "more_p95_ms": ("more: p95", "{:.1f}"), "more_most_ms": ("more: most", "{:.1f}"),
        "escalate_p95_ms": ("escalation p95", "{:.1f}"),
        "first_more_median_ms": ("first study, more: median", "{:.1f}"),
        "first_more_most_ms": ("first study, more: most", "{:.1f}"),
        "first_escalate_most_ms": ("first study, escalation, most", "{:.1f}"),
    },
    lambda result: result.get("ways", ()),
    "{rounds} rounds in turn; {cpu}, {cores} cores",
)  # fmt: skip


def notes(result: Result) -> Iterator[str]:
    """Yield the caveat of phantoms."""
    if "caveat" in result:
        yield result["caveat"]


@command(TRACES, WAYS, notes, bars=bars)
def link(
    scenario: Annotated[Scenario, typer.Option(help="Links that are tried.")] = Scenario.TRACES,
    trace: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|CSV|off", help="Link; may be repeated. Default: all shipped."),
    ] = None,
    studies: Annotated[
        int, typer.Option(min=1, help="Studies over each trace, or of a round.")
    ] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of dead-cloud.")] = 4,
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
    seed: Seed = 0,
) -> dict[str, Any]:
    """Real edge and cloud over faulty links, or without a cloud: deadlines, nodules, bytes."""
    given = {"deadline_s": deadline, "reserve_s": reserve, "cloud__max_rois": max_rois}
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="overread-link-")))

        def opened(name: str) -> Edge:
            make = partial(Edge.of_phantoms, phantoms, seed, cache, folder / name)
            return held.enter_context(apart(make, folder / f"{name}.log"))

        if scenario is Scenario.DEAD_CLOUD:
            edges = {way: opened(way) for way in CLOUDS}
            total = rounds * len(CLOUDS) * (studies + 1)
            reads = list(each(compare(edges, settings, rounds, studies), "studies", total))
            return {"bar_ms": LIMIT_MS, "rounds": rounds, "ways": ways(reads)}
        links = [None if name == OFF else find_trace(name) for name in trace or shipped_names()]
        edge = load_settings(**settings)
        times_s = (edge.deadline_s, edge.reserve_s)
        run = Run(studies, settings, *times_s, kill_cloud, files_every, seed, replay)
        weights = checksums(edge.screening_model, load_cloud_settings().model)
        about = {**asdict(run), "phantoms": phantoms, **this_machine(), **weights}
        results = Journal(journal, about)
        done = {(one["trace"], one["number"]) for one in results.entries}
        if parts := parts_of(links, studies, workers, done):
            cloud = held.enter_context(running_cloud())
            step = held.enter_context(counting("studies"))
            count, total = itertools.count(1), sum(len(numbers) for _, numbers in parts)

            def record(read: Read) -> None:
                results.add(read)
                step(next(count), total)

            several = [opened(f"edge{worker}") for worker in range(min(workers, len(parts)))]
            read_all(run, parts, several, cloud, record)
        return figures(run, results.entries, workers)
