"""The delay of reports when the cloud refuses or never answers.

The same studies are read with no cloud, again with none, with one that refuses and with one that
swallows everything, in turn, so that a machine that grows slower is slow for all. Each study is
compared with the same one without a cloud in the same round; the second time without a cloud shows
how far equal studies differ. The first study after a start knows nothing of the cloud, as in
``overread-edge screen``. The others follow after the health monitor has had time to find the cloud
down, as in the agent.
"""

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import Any

import numpy as np

from evaluation.links.edge_worker import OFF, Edge
from evaluation.links.proxy import proxied
from evaluation.links.trace import find_trace

LIMIT_MS = 50.0
"""Required of the additional time of a study: of its median and of its 95th percentile."""

SETTLE_S = 4.0
"""Time for two health checks after the first study."""

AGAIN, REFUSED, SILENT = "off again", "refused", "black hole"
CLOUDS = (OFF, AGAIN, REFUSED, SILENT)

Read = Mapping[str, Any]
"""What the edge told of one study, with ``round``, ``way`` and ``study``."""


@contextmanager
def dead_clouds() -> Iterator[dict[str, str]]:
    """Yield the address of each of `CLOUDS`, by name."""
    with ExitStack() as held:
        # bound and not listening: a connection is refused, and no other program takes the port
        closed = held.enter_context(socket.socket())
        closed.bind(("127.0.0.1", 0))
        hole = held.enter_context(proxied("127.0.0.1:9", find_trace("black-hole")))
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
        for number, study in product(range(rounds), range(studies + 1)):
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
    return [_row(cloud, reads, alone_s) for cloud in CLOUDS]


def _row(
    cloud: str, reads: Sequence[Read], alone_s: Mapping[tuple[int, int], float]
) -> dict[str, Any]:
    ours = [one for one in reads if one["way"] == cloud]
    later, first = [one for one in ours if one["study"]], [one for one in ours if not one["study"]]
    more_ms, first_more_ms = (
        [1000 * (one["took_s"] - alone_s[one["round"], one["study"]]) for one in those]
        for those in (later, first)
    )
    delays_s = [one["scheduler_delay_s"] for one in ours]
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
        "scheduler_delay_p95_ms": 1000 * float(np.percentile(delays_s, 95)),
    }


def _spread(name: str, values_ms: Sequence[float]) -> dict[str, float]:
    median_ms, p95_ms = np.percentile(values_ms, (50, 95))
    return {f"{name}median_ms": float(median_ms), f"{name}p95_ms": float(p95_ms)}
