"""Runs of studies over faulty links, through a real edge and a real cloud.

Each study is timed from its start to its report. A report is late if it comes more than
`TOLERANCE_S` after its deadline. Several edges may share the run, and the cloud.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge.findings import SecondReading
from evaluation.common.processes import EdgeProcess, RestartableCloud
from evaluation.errors import ServiceFailed
from evaluation.links.proxy import Proxy, proxied
from evaluation.links.trace import Trace
from evaluation.timing.latency import percentiles_ms

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


@dataclass(frozen=True)
class Run:
    """The settings of a run.

    Attributes:
        studies: number of studies over each trace.
        settings: of the edge, apart from the cloud's address.
        deadline_s: of each study.
        reserve_s: time before the deadline at which the wait for the cloud ends.
        kill_share: share of the studies during which the cloud is killed.
        files_every: every Nth study is read from DICOM, beginning with the first.
        seed: of the jitter and of the moments of kills.
        replay: reuse the candidates of one earlier run of the screening network.
    """

    studies: int
    settings: dict[str, Any] = field(default_factory=dict)
    deadline_s: float = 10.0
    reserve_s: float = 2.0
    kill_share: float = 0.0
    files_every: int = 50
    seed: int = 0
    replay: bool = False


class CloudKiller:
    """Kills and restarts a cloud that several edges use; ``kills`` counts it."""

    def __init__(self, cloud: RestartableCloud) -> None:
        self._cloud, self._lock = cloud, threading.Lock()
        self.kills = 0

    @property
    def address(self) -> str:
        """``HOST:PORT`` of the cloud."""
        return self._cloud.address

    def require_alive(self) -> None:
        """Do nothing as long as the cloud runs or restarts.

        Raises:
            ServiceFailed: it ended by itself.
        """
        with self._lock:
            self._cloud.serves  # noqa: B018 - it raises

    def kill(self) -> None:
        """Kill the cloud if it serves, and start it again without waiting."""
        with self._lock, suppress(ServiceFailed):  # the next `require_alive` raises it
            if self._cloud.serves:
                self._cloud.kill()
                self._cloud.start()
                self.kills += 1


@dataclass(frozen=True)
class Part:
    """Studies of these numbers, one after the other, over one trace (None: without a cloud)."""

    trace: Trace | None
    numbers: tuple[int, ...]


def parts_of(
    traces: Sequence[Trace | None], studies: int, workers: int, done: set[tuple[str, int]]
) -> list[Part]:
    """Split the studies that are not in ``done`` into a part for each trace and worker.

    ``done`` holds names of traces and numbers of studies. Neighbouring parts differ in trace.
    """
    parts = []
    for worker in range(workers):
        for trace in traces:
            name = trace.name if trace else OFF
            numbers = range(studies)[worker::workers]
            if left := tuple(number for number in numbers if (name, number) not in done):
                parts.append(Part(trace, left))
    return parts


def read_all(
    run: Run,
    parts: Sequence[Part],
    edges: Sequence[EdgeProcess],
    killer: CloudKiller,
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
            for part in left:
                for result in read_part(run, part.trace, edge, killer, part.numbers):
                    record(result)
                    if failed.is_set():
                        return
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(len(edges)) as pool:
        list(pool.map(work, edges))


def read_part(
    run: Run, trace: Trace | None, edge: EdgeProcess, killer: CloudKiller, numbers: Iterable[int]
) -> Iterator[Result]:
    """Read the studies of these numbers over one trace, None being `OFF`.

    Raises:
        ServiceFailed: the cloud ended by itself.
    """
    link = proxied(killer.address, trace, seed=run.seed) if trace else nullcontext()
    with link as proxy:
        edge.open(replay=run.replay, **run.settings, cloud=proxy.address if proxy else OFF)
        if proxy is not None:
            proxy.rewind()
        for number in numbers:
            yield _read(run, trace.name if trace else OFF, number, edge, killer, proxy)


def _read(
    run: Run, name: str, number: int, edge: EdgeProcess, killer: CloudKiller, proxy: Proxy | None
) -> Result:
    from_files = _from_files(run, number)
    result: Result = {"trace": name, "number": number, "bytes": 0, "death": False}
    if proxy is None:
        return result | edge.read(number, from_files=from_files)
    chance = random.Random(f"{run.seed} {name} {number}")
    kills, delay_s = chance.random() < run.kill_share, chance.uniform(0, KILL_WITHIN_S)
    killer.require_alive()
    carried, before = proxy.carried.total_bytes, killer.kills
    timer = threading.Timer(delay_s, killer.kill)
    if kills:
        timer.start()
    result |= edge.read(number, from_files=from_files)
    if kills:
        timer.cancel()
        timer.join()
    return result | {
        "bytes": proxy.carried.total_bytes - carried,
        "death": kills and killer.kills > before,
    }


def _from_files(run: Run, number: int) -> bool:
    return number % run.files_every == 0


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
    from_files = sum(_from_files(run, one["number"]) for one in results)
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
