"""``overread-eval link``: studies over faulty links, through a real edge and a real cloud.

Several edges may share the run, and the cloud. Studies that are not read from files start from lung
boxes in memory; all later stages are the agent's, but for candidates that are replayed from one run
of the screening network.

``--scenario dead-cloud`` reads the same studies with each of `CLOUDS` in turn, so that a machine
that grows slower is slow for all. Each study is compared with the same one without a cloud in the
same round; the second time without a cloud shows how far equal studies differ. The first study
after a start knows nothing of the cloud, as in ``overread-edge screen``. The others follow after
the health monitor has had time to find the cloud down, as in the agent.
"""

import itertools
import math
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from edge.settings.core import load_settings
from evaluation.links.edge_worker import Edge
from evaluation.links.proxy import Trace, proxied, read_trace, shipped_traces
from evaluation.phantoms import whole_chest
from evaluation.run import (
    SHARE,
    Bar,
    Deadline,
    Result,
    Table,
    command,
    counting,
    each,
    percentiles_ms,
)
from evaluation.world import Cloud, apart, running_cloud

TOLERANCE_S = 0.020
"""A report is late if it comes more than this after its deadline."""
LIMIT_MS = 50.0
"""Required of what a dead cloud adds to a study: of its median and of its 95th percentile."""

SCAN_BYTES = 2 * math.prod(whole_chest(0).shape)
"""Of the voxels of each scan, of 16 bits."""

FILES_EVERY = 50
"""One of this number of studies is read from DICOM, beginning with the first."""

KILL_WITHIN_S = 0.5
"""The cloud is killed at most this long after the start of a study."""

OFF, AGAIN, REFUSED, SILENT = CLOUDS = ("off", "off again", "refused", "black hole")
"""Ways to have no cloud: a setting of the edge, twice, and two dead clouds."""
ROUNDS = 4
SETTLE_S = 4.0
"""Time for two health checks after the first study."""

Read = dict[str, Any]
"""What the edge tells of one study, with its number, and its trace or its way to have no cloud."""

Part = tuple[Trace, range]
"""Numbers of studies, read one after the other, over one trace."""


class Scenario(StrEnum):
    """What the links are like: those of traces, or such that lead to no cloud."""

    TRACES = "traces"
    DEAD_CLOUD = "dead-cloud"


@dataclass(frozen=True)
class Run:
    """The settings of a run over each trace; ``edge`` has those of the edge but for the cloud."""

    edge: Mapping[str, Any] = field(default_factory=dict)
    deadline_s: float = 10.0
    reserve_s: float = 2.0
    kill_share: float = 0.0
    replay: bool = False


def parts_of(traces: Sequence[Trace], studies: int, workers: int) -> list[Part]:
    """Split the studies into a part for each trace and worker; neighbours differ in trace."""
    parts = itertools.product(range(min(workers, studies)), traces)
    return [(trace, range(worker, studies, workers)) for worker, trace in parts]


def read_all(
    run: Run,
    parts: Iterable[Part],
    edges: Sequence[Edge],
    cloud: Cloud,
    record: Callable[[Read], None],
) -> None:
    """Read all parts with all ``edges`` in parallel; ``record`` is called with each study."""
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
    run: Run, trace: Trace, edge: Edge, cloud: Cloud, numbers: Iterable[int]
) -> Iterator[Read]:
    """Read the studies of these numbers over one trace."""
    with proxied(cloud.address, trace) as proxy:
        edge.open(replay=run.replay, **run.edge, cloud__address=proxy.address)
        proxy.rewind()
        for number in numbers:
            chance = random.Random(f"0 {trace.name} {number}")
            kills, delay_s = chance.random() < run.kill_share, chance.uniform(0, KILL_WITHIN_S)
            cloud.require_alive()
            carried, before = sum(proxy.carried_bytes.values()), cloud.kills
            timer = threading.Timer(delay_s, cloud.restart)
            if kills:
                timer.start()
            read = edge.read(number, from_files=number % FILES_EVERY == 0)
            if kills:
                timer.cancel()
                timer.join()
            yield {
                "trace": trace.name,
                "number": number,
                "bytes": sum(proxy.carried_bytes.values()) - carried,
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
    return {
        "trace": name,
        "studies": len(reads),
        "late": int((took_s > last_s).sum()),
        "late_without_scheduler_delay": int((took_s - delay_s > last_s).sum()),
        **percentiles_ms(took_s),
        "longest_ms": 1000 * float(took_s.max()),
        "sensitivity": sum(one["found"] for one in reads) / lesions if lesions else None,
        "escalated": sum(one["escalated"] for one in reads),
        "answered": sum(one["answered"] for one in reads),
        "broken_off": sum(one["answered"] < one["escalated"] for one in reads),
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
    from_files = sum(one["number"] % FILES_EVERY == 0 for one in reads)
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
    }


@contextmanager
def dead_clouds() -> Iterator[dict[str, str]]:
    """Yield the address of each of `CLOUDS`, by name."""
    with ExitStack() as held:
        # bound and not listening: a connection is refused, and no other program takes the port
        closed = held.enter_context(socket.socket())
        closed.bind(("127.0.0.1", 0))
        hole = held.enter_context(proxied("127.0.0.1:9", read_trace("black-hole")))
        refusing = f"127.0.0.1:{closed.getsockname()[1]}"
        yield {OFF: OFF, AGAIN: OFF, REFUSED: refusing, SILENT: hole.address}


def compare(
    edges: Mapping[str, Edge],
    settings: Mapping[str, Any],
    rounds: int,
    studies: int,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Read]:
    """Read each study of each round with each of `CLOUDS`; ``edges`` has a process for each.

    The pipelines are opened again for every round.
    """
    with dead_clouds() as addresses:
        for number, study in itertools.product(range(rounds), range(studies + 1)):
            if study == 1:
                sleep(SETTLE_S)
            for cloud in CLOUDS if study % 2 or not study else CLOUDS[::-1]:
                if study == 0:
                    edges[cloud].open(replay=True, **settings, cloud__address=addresses[cloud])
                read = edges[cloud].read(study, from_files=study == 0)
                yield {"round": number, "way": cloud, "study": study, **read}


def ways(reads: Sequence[Read]) -> list[dict[str, Any]]:
    """Return the times with each of `CLOUDS`, and the difference from those without a cloud."""
    alone_s = {(one["round"], one["study"]): one["took_s"] for one in reads if one["way"] == OFF}
    return [_way(cloud, reads, alone_s) for cloud in CLOUDS]


def _way(
    cloud: str, reads: Sequence[Read], alone_s: Mapping[tuple[int, int], float]
) -> dict[str, Any]:
    ours = [one for one in reads if one["way"] == cloud]
    later, first = [one for one in ours if one["study"]], [one for one in ours if not one["study"]]
    more_ms, first_more_ms = (
        [1000 * (one["took_s"] - alone_s[one["round"], one["study"]]) for one in those]
        for those in (later, first)
    )
    return {
        "way": cloud,
        "studies": len(later),
        **_spread("", [1000 * one["took_s"] for one in later]),
        **_spread("escalate_", [1000 * one["stages_s"]["escalate"] for one in later]),
        **_spread("more_", more_ms),
        "more_most_ms": max(more_ms),
        "first_escalate_most_ms": max(1000 * one["stages_s"]["escalate"] for one in first),
        "first_more_median_ms": float(np.median(first_more_ms)),
        "first_more_most_ms": max(first_more_ms),
    }


def _spread(name: str, values_ms: Sequence[float]) -> dict[str, float]:
    median_ms, p95_ms = np.percentile(values_ms, (50, 95))
    return {f"{name}median_ms": float(median_ms), f"{name}p95_ms": float(p95_ms)}


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
    for row in result.get("ways", ()):
        for key, words in {"more_median_ms": "median", "more_p95_ms": "p95"}.items():
            if not row["way"].startswith(OFF):
                what = f"cloud {row['way']}: more than without a cloud, {words}"
                yield Bar(what, row[key], result["bar_ms"], "{:.0f} ms")


TRACES = Table(
    "traces",
    {
        "trace": "link", "studies": "studies", "late": "late",
        **{f"{key}_ms": (f"{key} ms", "{:.0f}") for key in ("p50", "p95", "p99", "longest")},
        "sensitivity": ("found", SHARE), "escalated": "sent", "answered": "read again",
        "broken_off": "broken off", "bytes_per_study": ("bytes a study", "{:,.0f}"),
        "share_of_scans": ("of the scans", "{:.2%}"), "deaths": "cloud killed",
    },
    title="{late} of {studies} reports late ({late_without_scheduler_delay} without scheduler"
    " delay), deadline {deadline_s:g} s; {from_files} from files, {from_memory} from memory; "
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
    title="{rounds} rounds in turn; {cpu}, {cores} cores",
)  # fmt: skip


@command(TRACES, WAYS, bars=bars)
def link(
    scenario: Annotated[Scenario, typer.Option(help="Links that are tried.")] = Scenario.TRACES,
    studies: Annotated[
        int, typer.Option(min=1, help="Studies over each trace, or of a round.")
    ] = 20,
    deadline: Deadline = None,
    reserve: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Seconds reserved after the cloud call.")
    ] = None,
    kill_cloud: Annotated[
        float, typer.Option(min=0, max=1, help="Share of studies in which the cloud is killed.")
    ] = 0.0,
    replay: Annotated[
        bool, typer.Option("--replay", help="Reuse the candidates of one earlier screening.")
    ] = False,
    max_rois: Annotated[
        int | None, typer.Option(min=1, help="Largest number of ROIs sent per study.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Edges in parallel.")] = 1,
) -> dict[str, Any]:
    """Real edge and cloud over faulty links, or without a cloud: deadlines, nodules, bytes."""
    given = {"deadline_s": deadline, "reserve_s": reserve, "cloud__max_rois": max_rois}
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="overread-link-")))

        def opened(name: str) -> Edge:
            make = partial(Edge.of_phantoms, folder / name)
            return held.enter_context(apart(make, folder / f"{name}.log"))

        if scenario is Scenario.DEAD_CLOUD:
            edges = {way: opened(way) for way in CLOUDS}
            total = ROUNDS * len(CLOUDS) * (studies + 1)
            reads = list(each(compare(edges, settings, ROUNDS, studies), "studies", total))
            return {"bar_ms": LIMIT_MS, "rounds": ROUNDS, "ways": ways(reads)}
        edge = load_settings(**settings)
        run = Run(settings, edge.deadline_s, edge.reserve_s, kill_cloud, replay)
        parts, reads = parts_of(shipped_traces(), studies, workers), list[Read]()
        cloud = held.enter_context(running_cloud())
        step = held.enter_context(counting("studies"))
        total = sum(len(numbers) for _, numbers in parts)

        def record(read: Read) -> None:
            reads.append(read)
            step(len(reads), total)

        several = [opened(f"edge{worker}") for worker in range(min(workers, len(parts)))]
        read_all(run, parts, several, cloud, record)
        return figures(run, reads, workers)
