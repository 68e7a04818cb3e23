"""Studies through real edge and cloud processes, with the links of traces between them.

Each study is timed from the moment it is taken up to its report. An answer is late when it comes
more than `TOLERANCE_S` after its deadline.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edge.finding import SecondReading
from evaluation.proxied import Proxied, proxied
from evaluation.trace import Trace

TOLERANCE_S = 0.020
OFF = "off"
"""In place of a trace: no cloud at all, what the edge alone takes."""

CAVEAT = (
    "Phantoms are synthetic: they show what the line does, not how it does on patients. Studies "
    "that are not from files start from lung boxes in memory; everything after is the agent's."
)

PERCENTILES = (50, 95, 99)


class Reads(Protocol):
    """What is needed of the edge's process."""

    def open(self, **settings: Any) -> str:
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

    def wait(self) -> None:
        """Returns when it serves."""


@dataclass(frozen=True)
class Run:
    """What is done over each trace.

    Attributes:
        studies: how many are read.
        settings: of the edge, beside the cloud's address.
        deadline_s: of each study.
        kill_share: part of the studies during which the cloud is killed.
        files_every: every so many-th study starts from files, beginning with the first.
        seed: of the proxy's jitter and of the moments at which the cloud dies.
    """

    studies: int
    settings: dict[str, Any]
    deadline_s: float
    kill_share: float = 0.0
    files_every: int = 50
    seed: int = 0


def run_trace(
    run: Run, trace: Trace | None, edge: Reads, cloud: Dies, numbers: Iterable[int]
) -> dict[str, Any]:
    """The row of one trace, None being `OFF`; ``numbers`` are those of the studies, watched."""
    if trace is None:
        edge.open(**run.settings, cloud=OFF)
        results = [edge.read(n, from_files=n % run.files_every == 0) for n in numbers]
        return row(OFF, results, run.deadline_s)
    cloud.wait()
    with proxied(cloud.address, trace, seed=run.seed) as link:
        edge.open(**run.settings, cloud=link.address)
        link.rewind()
        return _over(run, trace.name, edge, cloud, numbers, link)


def _over(
    run: Run, name: str, edge: Reads, cloud: Dies, numbers: Iterable[int], link: Proxied
) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    rng, owed, deaths = random.Random(f"{run.seed} {name}"), 0, 0
    for number in numbers:
        owed += rng.random() < run.kill_share
        usual_s = float(np.median([one["took_s"] for one in results])) if results else 0.5
        delay_s, dies = rng.uniform(0, usual_s), owed > 0 and cloud.serves
        with _after(delay_s, cloud.kill if dies else None):
            results.append(edge.read(number, from_files=number % run.files_every == 0))
        if dies:
            owed, deaths = owed - 1, deaths + 1
            cloud.start()
    return row(name, results, run.deadline_s, link.carried.total_bytes, deaths)


@contextmanager
def _after(delay_s: float, act: Callable[[], None] | None) -> Iterator[None]:
    """Does it ``delay_s`` after the context is entered; it is done when the context is left."""
    timer = threading.Timer(delay_s, act) if act else None
    if timer is not None:
        timer.start()
    yield
    if timer is not None:
        timer.join()


def row(
    name: str,
    results: Sequence[dict[str, Any]],
    deadline_s: float,
    carried: int = 0,
    deaths: int = 0,
) -> dict[str, Any]:
    """The figures of one trace; ``sensitivity`` is None without a lesion."""
    took_s = np.array([one["took_s"] for one in results])
    lesions = sum(one["lesions"] for one in results)
    complete = [one["second_reading"] == SecondReading.COMPLETE.value for one in results]
    return {
        "trace": name,
        "studies": len(results),
        "late": int((took_s > deadline_s + TOLERANCE_S).sum()),
        **{f"p{q}_ms": 1000 * float(np.percentile(took_s, q)) for q in PERCENTILES},
        "longest_ms": 1000 * float(took_s.max()),
        "sensitivity": sum(one["found"] for one in results) / lesions if lesions else None,
        "false_positives_per_scan": sum(one["false"] for one in results) / len(results),
        "escalated": sum(one["escalated"] for one in results),
        "answered": sum(one["answered"] for one in results),
        "complete": sum(complete),
        "refused": sum(bool(one["refused"]) for one in results),
        "bytes": carried,
        "deaths": deaths,
    }


def as_json(run: Run, rows: Sequence[dict[str, Any]], machine: dict[str, Any]) -> dict[str, Any]:
    """Everything, for machines; what is summed is over all traces."""
    from_files = len(range(0, run.studies, run.files_every))
    return {
        **machine,
        "deadline_s": run.deadline_s,
        "tolerance_s": TOLERANCE_S,
        "seed": run.seed,
        "kill_share": run.kill_share,
        "studies": sum(one["studies"] for one in rows),
        "late": sum(one["late"] for one in rows),
        "deaths": sum(one["deaths"] for one in rows),
        "from_files": from_files * len(rows),
        "from_memory": (run.studies - from_files) * len(rows),
        "traces": list(rows),
        "caveat": CAVEAT,
    }
