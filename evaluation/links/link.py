"""Studies through real edge and cloud processes, with the links of traces between them.

Each study is timed from the moment it is taken up to its report. An answer is late when it comes
more than `TOLERANCE_S` after its deadline.

Parts of a long run of studies, read side by side by several edges that share one cloud.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edge.findings import SecondReading
from evaluation.errors import ServiceFailed
from evaluation.links.proxy import Proxied, proxied
from evaluation.links.trace import Trace

TOLERANCE_S = 0.020


OFF = "off"
"""In place of a trace: no cloud at all, what the edge alone takes."""

CAVEAT = (
    "Phantoms are synthetic: they show what the line does, not how it does on patients. Studies "
    "that are not from files start from lung boxes in memory; everything after is the agent's, but "
    "where candidates are replayed the screening network is run once a study, beforehand."
)

DEATH_S = 0.5
"""The cloud is killed within so long of a study's beginning, if that lasts so long."""

PERCENTILES = (50, 95, 99)

Result = dict[str, Any]
"""What became of one study: its trace and number, and what `evaluation.links.edge_worker` tells."""


class Reads(Protocol):
    """What is needed of the edge's process."""

    def open(self, *, replay: bool = False, **settings: Any) -> str:
        """Opens the line of these settings."""

    def read(self, number: int, *, from_files: bool) -> dict[str, Any]:
        """What became of one study."""


class Dies(Protocol):
    """What is needed of a cloud that may be killed."""

    @property
    def address(self) -> str:
        """``HOST:PORT``."""

    @property
    def serves(self) -> bool:
        """Whether it can be asked now."""

    def kill(self) -> None:
        """Ends it at once."""

    def start(self) -> None:
        """Begins to start it."""


@dataclass(frozen=True)
class Run:
    """What is done over each trace.

    Attributes:
        studies: how many are read.
        settings: of the edge, beside the cloud's address.
        deadline_s: of each study; ``reserve_s`` before it the wait for the cloud ends.
        kill_share: part of the studies during which the cloud is killed, if it is there.
        files_every: every so many-th study starts from files, beginning with the first.
        seed: of the proxy's jitter and of the moments at which the cloud dies.
        replay: the screening network's candidates are those of one pass beforehand.
    """

    studies: int
    settings: dict[str, Any] = field(default_factory=dict)
    deadline_s: float = 10.0
    reserve_s: float = 2.0
    kill_share: float = 0.0
    files_every: int = 50
    seed: int = 0
    replay: bool = False


class Reaper:
    """Kills a cloud that others use too, and has it started again."""

    def __init__(self, cloud: Dies) -> None:
        self._cloud, self._lock = cloud, threading.Lock()
        self.deaths = 0

    @property
    def address(self) -> str:
        """Of the cloud."""
        return self._cloud.address

    def require(self) -> None:
        """Nothing, as long as the cloud has not ended by itself.

        Raises:
            ServiceFailed: it has.
        """
        with self._lock:
            self._cloud.serves  # noqa: B018 - it raises

    def strike(self) -> None:
        """Kills the cloud if it serves."""
        with self._lock, suppress(ServiceFailed):  # whoever reads next is told
            if self._cloud.serves:
                self._cloud.kill()
                self._cloud.start()
                self.deaths += 1


def read_part(
    run: Run, trace: Trace | None, edge: Reads, reaper: Reaper, numbers: Iterable[int]
) -> Iterator[Result]:
    """What becomes of the studies of these numbers over one trace, None being `OFF`.

    Raises:
        ServiceFailed: the cloud has ended by itself.
    """
    if trace is None:
        edge.open(replay=run.replay, **run.settings, cloud=OFF)
        for number in numbers:
            yield _named(OFF, number, edge.read(number, from_files=_from_files(run, number)))
        return
    with proxied(reaper.address, trace, seed=run.seed) as link:
        edge.open(replay=run.replay, **run.settings, cloud=link.address)
        link.rewind()
        for number in numbers:
            yield _named(trace.name, number, _read(run, trace.name, number, edge, reaper, link))


def _read(
    run: Run, name: str, number: int, edge: Reads, reaper: Reaper, link: Proxied
) -> dict[str, Any]:
    chance = random.Random(f"{run.seed} {name} {number}")
    dies, delay_s = chance.random() < run.kill_share, chance.uniform(0, DEATH_S)
    reaper.require()
    carried, deaths = link.carried.total_bytes, reaper.deaths
    with _after(delay_s, reaper.strike if dies else None):
        found = edge.read(number, from_files=_from_files(run, number))
    return {
        **found,
        "bytes": link.carried.total_bytes - carried,
        "death": dies and reaper.deaths > deaths,
    }


def _from_files(run: Run, number: int) -> bool:
    return number % run.files_every == 0


def _named(trace: str, number: int, found: dict[str, Any]) -> Result:
    return {"trace": trace, "number": number, "bytes": 0, "death": False, **found}


@contextmanager
def _after(delay_s: float, act: Callable[[], None] | None) -> Iterator[None]:
    """Does it ``delay_s`` after the context is entered, or not if the context is left before."""
    timer = threading.Timer(delay_s, act) if act else None
    if timer is not None:
        timer.start()
    yield
    if timer is not None:
        timer.cancel()
        timer.join()


def row(name: str, results: Sequence[Result], deadline_s: float) -> dict[str, Any]:
    """The figures of one trace; ``sensitivity`` is None without a lesion.

    ``late_unstalled`` are those that would be late without the time in which the machine did not
    let the edge run, ``broken_off`` those that sent regions and had not all of them answered.
    """
    took_s = np.array([one["took_s"] for one in results])
    stalled_s = np.array([one["stalled_s"] for one in results])
    lesions = sum(one["lesions"] for one in results)
    complete = [one["second_reading"] == SecondReading.COMPLETE.value for one in results]
    last_s = deadline_s + TOLERANCE_S
    return {
        "trace": name,
        "studies": len(results),
        "late": int((took_s > last_s).sum()),
        "late_unstalled": int((took_s - stalled_s > last_s).sum()),
        **{f"p{q}_ms": 1000 * float(np.percentile(took_s, q)) for q in PERCENTILES},
        "longest_ms": 1000 * float(took_s.max()),
        "stalled_p95_ms": 1000 * float(np.percentile(stalled_s, 95)),
        "sensitivity": sum(one["found"] for one in results) / lesions if lesions else None,
        "false_positives_per_scan": sum(one["false"] for one in results) / len(results),
        "escalated": sum(one["escalated"] for one in results),
        "answered": sum(one["answered"] for one in results),
        "broken_off": sum(one["answered"] < one["escalated"] for one in results),
        "complete": sum(complete),
        "refused": sum(bool(one["refused"]) for one in results),
        "bytes": sum(one["bytes"] for one in results),
        "deaths": sum(one["death"] for one in results),
    }


def as_dict(run: Run, results: Sequence[Result], machine: dict[str, Any]) -> dict[str, Any]:
    """Everything, for machines: the figures of all studies together, then those of each trace."""
    names = dict.fromkeys(one["trace"] for one in results)
    of = {name: [one for one in results if one["trace"] == name] for name in names}
    rows = [row(name, those, run.deadline_s) for name, those in of.items()]
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
        "traces": rows,
        "caveat": CAVEAT,
    }


Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Part:
    """Studies of these numbers, one after the other, over one trace (None: without a cloud)."""

    trace: Trace | None
    numbers: tuple[int, ...]


def parts_of(
    traces: Sequence[Trace | None], studies: int, lanes: int, done: set[tuple[str, int]]
) -> list[Part]:
    """What is left to read: a part a trace and lane, so that no two neighbours share a trace.

    ``done`` holds traces by name and numbers of the studies that were read before.
    """
    return [
        Part(trace, left)
        for lane in range(lanes)
        for trace in traces
        if (left := _left(trace, range(studies)[lane::lanes], done))
    ]


def read_all(
    run: Run, parts: Sequence[Part], edges: Sequence[Reads], reaper: Reaper, tell: Tell
) -> None:
    """Reads all parts, as many at once as there are ``edges``, and tells of each study.

    Raises:
        Exception: what stopped the first lane that failed; the others end with their study.
    """
    waiting: queue.SimpleQueue[Part] = queue.SimpleQueue()
    for part in parts:
        waiting.put(part)
    failed: list[BaseException] = []

    def lane(edge: Reads) -> None:
        try:
            for part in _taken(waiting):
                for result in read_part(run, part.trace, edge, reaper, part.numbers):
                    tell(result)
                    if failed:
                        return
        except BaseException as error:
            failed.append(error)
            raise

    with ThreadPoolExecutor(len(edges)) as pool:
        futures = [pool.submit(lane, edge) for edge in edges]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            future.result()


def _left(
    trace: Trace | None, numbers: Sequence[int], done: set[tuple[str, int]]
) -> tuple[int, ...]:
    name = OFF if trace is None else trace.name
    return tuple(number for number in numbers if (name, number) not in done)


def _taken(waiting: queue.SimpleQueue[Part]) -> Iterator[Part]:
    while True:
        try:
            yield waiting.get_nowait()
        except queue.Empty:
            return
