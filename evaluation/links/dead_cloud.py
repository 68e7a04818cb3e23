"""``overread-eval dead-cloud``: the delay of reports when the cloud refuses or never answers.

The same studies are read with no cloud, again with none, with one that refuses and with one that
swallows everything, in turn, so that a machine that grows slower is slow for all. Each study is
compared with the same one without a cloud in the same round; the second time without a cloud shows
how far equal studies differ. The first study after a start knows nothing
of the cloud, as in ``overread-edge screen``. The others follow after the health monitor has had
time to find the cloud down, as in the agent.
"""

import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from evaluation.common.cli import STUDIES, Cache, Deadline, Json, Phantoms, each, show
from evaluation.common.processes import EdgeProcess, edge_process
from evaluation.common.tables import columns_table
from evaluation.links.link import OFF
from evaluation.links.proxy import proxied
from evaluation.links.trace import find_trace
from evaluation.run import this_machine

LIMIT_MS = 50.0
"""Required of the additional time of a study: of its median and of its 95th percentile."""

SETTLE_S = 4.0
"""Time for two health checks after the first study."""

AGAIN, REFUSED, SILENT = "off again", "refused", "black hole"
CLOUDS = (OFF, AGAIN, REFUSED, SILENT)

Result = dict[str, Any]

COLUMNS = {
    "way": ("cloud", "{}"),
    "studies": ("studies", "{}"),
    "median_ms": ("median ms", "{:.0f}"),
    "p95_ms": ("p95 ms", "{:.0f}"),
    "more_median_ms": ("more than off, median", "{:.1f}"),
    "more_p95_ms": ("p95", "{:.1f}"),
    "more_most_ms": ("most", "{:.1f}"),
    "escalate_p95_ms": ("escalation, p95", "{:.1f}"),
    "first_more_median_ms": ("first study, more", "{:.0f}"),
    "first_escalate_most_ms": ("its escalation", "{:.0f}"),
    "scheduler_delay_p95_ms": ("scheduler delay, p95", "{:.0f}"),
}


def dead_cloud_command(
    studies: Annotated[
        int, typer.Option(min=1, help="Studies per round, not counting the warm-up.")
    ] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each with fresh edges.")] = 4,
    deadline: Deadline = None,
    phantoms: Phantoms = 4,
    cache: Cache = STUDIES,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the phantoms.")] = 0,
    as_json: Json = False,
) -> None:
    """Report times of a real edge without a cloud, and with clouds that refuse or never answer."""
    settings: dict[str, Any] = {} if deadline is None else {"deadline_s": deadline}
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="overread-dead-")))
        edges = {
            cloud: running.enter_context(edge_process(phantoms, seed, cache, folder / f"{i}.log"))
            for i, cloud in enumerate(CLOUDS)
        }
        total = rounds * len(CLOUDS) * (studies + 1)
        results = list(each(measure(edges, settings, rounds, studies), "studies", total))
    result = as_dict(results, this_machine())
    title = f"{rounds} rounds in turn; {result['cpu']}, {result['cores']} cores"
    show(result, as_json, columns_table(COLUMNS, result["ways"], title))


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


def measure(
    edges: Mapping[str, EdgeProcess],
    settings: dict[str, Any],
    rounds: int,
    studies: int,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Result]:
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


def as_dict(results: Sequence[Result], machine: dict[str, Any]) -> dict[str, Any]:
    """Return the times with each of `CLOUDS`, and the difference from those without a cloud."""
    return {
        **machine,
        "bar_ms": LIMIT_MS,
        "settle_s": SETTLE_S,
        "rounds": 1 + max(one["round"] for one in results),
        "studies": len(results),
        "ways": [_row(cloud, results) for cloud in CLOUDS],
    }


def _row(cloud: str, results: Sequence[Result]) -> dict[str, Any]:
    alone_s = {(one["round"], one["study"]): one["took_s"] for one in results if one["way"] == OFF}
    ours = [one for one in results if one["way"] == cloud]
    later, first = [one for one in ours if one["study"]], [one for one in ours if not one["study"]]

    more_ms, first_more_ms = (
        [1000 * (one["took_s"] - alone_s[one["round"], one["study"]]) for one in those]
        for those in (later, first)
    )
    longer = _spread("more_", more_ms)
    delays_s = [one["scheduler_delay_s"] for one in ours]
    return {
        "way": cloud,
        "studies": len(later),
        **_spread("", [1000 * one["took_s"] for one in later]),
        **_spread("escalate_", [1000 * one["stages_s"]["escalate"] for one in later]),
        **longer,
        "more_most_ms": max(more_ms),
        "first_escalate_most_ms": max(1000 * one["stages_s"]["escalate"] for one in first),
        "first_more_median_ms": float(np.median(first_more_ms)),
        "first_more_most_ms": max(first_more_ms),
        "stages_ms": {
            stage: 1000 * float(np.median([one["stages_s"][stage] for one in later]))
            for stage in later[0]["stages_s"]
        },
        "scheduler_delay_p95_ms": 1000 * float(np.percentile(delays_s, 95)),
        "kept": max(longer.values()) <= LIMIT_MS,
    }


def _spread(name: str, values_ms: Sequence[float]) -> dict[str, float]:
    median_ms, p95_ms = np.percentile(values_ms, (50, 95))
    return {f"{name}median_ms": float(median_ms), f"{name}p95_ms": float(p95_ms)}
