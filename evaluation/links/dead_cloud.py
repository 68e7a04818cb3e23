"""What a dead cloud costs: the same studies with no cloud, one that refuses, and one that is mute.

The ways take turns, study by study, so that a machine that grows slower is slow for all. Each
study is compared with the same one without a cloud in the same round. The first study after the
edge has started has seen nothing of the cloud yet, as ``overread-edge screen``; the others come
after a pause in which the edge, as the daemon does, has had the time to look.

``overread-eval dead-cloud``: what the edge's answer costs more when the cloud is dead.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from evaluation.common.cli import STUDIES, Cache, Deadline, Json, Phantoms, counting, show
from evaluation.common.processes import edge_process
from evaluation.common.tables import columns_table
from evaluation.links.link import OFF, Reads
from evaluation.links.proxy import proxied
from evaluation.links.trace import find_trace
from evaluation.timing.latency import this_machine
from models.markdown import Rows

BAR_MS = 50.0
"""What a study may take longer for a dead cloud, by the median and by the 95th percentile."""


SETTLE_S = 4.0
"""What the edge has to find out that the cloud is dead: a knock, twice."""

REFUSED, MUTE = "refused", "black hole"


WAYS = (OFF, REFUSED, MUTE)

Result = dict[str, Any]


@contextmanager
def dead_clouds() -> Iterator[dict[str, str]]:
    """By name, the address of each kind of cloud, none of which ever answers."""
    with ExitStack() as held:
        # bound and not listening: whoever connects is refused, and nobody else takes the port
        closed = held.enter_context(socket.socket())
        closed.bind(("127.0.0.1", 0))
        hole = held.enter_context(proxied("127.0.0.1:9", find_trace("black-hole")))
        yield {OFF: OFF, REFUSED: f"127.0.0.1:{closed.getsockname()[1]}", MUTE: hole.address}


def measure(
    edges: Mapping[str, Reads],
    settings: dict[str, Any],
    rounds: int,
    studies: int,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Result]:
    """Each study of each round: its round, way, number, and what became of it.

    ``edges`` holds a process for each way; they are opened anew for every round.
    """
    with dead_clouds() as addresses:
        for number in range(rounds):
            for way in WAYS:
                edges[way].open(replay=True, **settings, cloud=addresses[way])
                yield {"round": number, "way": way, **_one(edges[way], 0)}
            sleep(SETTLE_S)
            for study in range(1, studies + 1):
                for way in WAYS if study % 2 else WAYS[::-1]:
                    yield {"round": number, "way": way, **_one(edges[way], study)}


def as_dict(results: Sequence[Result], machine: dict[str, Any]) -> dict[str, Any]:
    """The times of each way, and what they are more than without a cloud."""
    took_ms = {(one["way"], one["round"], one["study"]): 1000 * one["took_s"] for one in results}
    return {
        **machine,
        "bar_ms": BAR_MS,
        "settle_s": SETTLE_S,
        "rounds": 1 + max(one["round"] for one in results),
        "studies": len(results),
        "ways": [_way(way, took_ms, results) for way in WAYS],
    }


def _way(
    way: str, took_ms: dict[tuple[str, int, int], float], results: Sequence[Result]
) -> dict[str, Any]:
    mine = [key for key in took_ms if key[0] == way]
    more = {key: took_ms[key] - took_ms[(OFF, *key[1:])] for key in mine}
    steady = [key for key in mine if key[2] > 0]
    first = [more[key] for key in mine if key[2] == 0]
    stalled_s = [one["stalled_s"] for one in results if one["way"] == way]
    escalate_ms = [
        1000 * one["stages_s"]["escalate"]
        for one in results
        if one["way"] == way and one["study"] > 0
    ]
    return {
        "way": way,
        "studies": len(steady),
        **_spread("", [took_ms[key] for key in steady]),
        **_spread("escalate_", escalate_ms),
        **(longer := _spread("more_", [more[key] for key in steady])),
        "more_most_ms": max(more[key] for key in steady),
        "first_escalate_most_ms": max(
            1000 * one["stages_s"]["escalate"]
            for one in results
            if one["way"] == way and one["study"] == 0
        ),
        "first_more_median_ms": float(np.median(first)),
        "first_more_most_ms": max(first),
        "stages_ms": _stages_ms(
            [one["stages_s"] for one in results if one["way"] == way and one["study"] > 0]
        ),
        "stalled_p95_ms": 1000 * float(np.percentile(stalled_s, 95)),
        "kept": max(longer.values()) <= BAR_MS,
    }


def _stages_ms(ledgers: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each stage, milliseconds."""
    return {
        stage: 1000 * float(np.median([ledger[stage] for ledger in ledgers]))
        for stage in ledgers[0]
    }


def _spread(name: str, values_ms: Sequence[float]) -> dict[str, float]:
    median_ms, p95_ms = np.percentile(values_ms, (50, 95))
    return {f"{name}median_ms": float(median_ms), f"{name}p95_ms": float(p95_ms)}


def _one(edge: Reads, study: int) -> Result:
    found = edge.read(study, from_files=study == 0)
    return {"study": study, **found}


_COLUMNS = {
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
    "stalled_p95_ms": ("stalled", "{:.0f}"),
}


def dead_cloud_command(
    studies: Annotated[int, typer.Option(min=1, help="Of a round, after its first.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="The edges start so often.")] = 4,
    deadline: Deadline = None,
    phantoms: Phantoms = 4,
    cache: Cache = STUDIES,
    seed: Annotated[int, typer.Option(min=0, help="Of the phantoms.")] = 0,
    as_json: Json = False,
) -> None:
    """A real edge without a cloud, with one that refuses, and with one that never answers."""
    settings: dict[str, Any] = {} if deadline is None else {"deadline_s": deadline}
    results = []
    with ExitStack() as running, counting("studies") as step:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="overread-dead-")))
        edges = {
            way: running.enter_context(edge_process(phantoms, seed, cache, folder / f"{i}.log"))
            for i, way in enumerate(WAYS)
        }
        for one in measure(edges, settings, rounds, studies):
            results.append(one)
            step(len(results), rounds * len(WAYS) * (studies + 1))
    result = as_dict(results, asdict(this_machine()))
    show(result, as_json, _table(result))


def _table(result: dict[str, Any]) -> Rows:
    title = f"{result['rounds']} rounds in turn; {result['cpu']}, {result['cores']} cores"
    return columns_table(_COLUMNS, result["ways"], title)
