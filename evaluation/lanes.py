"""Parts of a long run of studies, read side by side by several edges that share one cloud."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from evaluation.link import OFF, Reads, Reaper, Run, read_part
from evaluation.trace import Trace

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
