"""One candidate from its place to its final verdict: how long, and which part takes how much.

``overread-eval detection``: from a candidate's place to its final verdict, by real processes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from cloud.describe import describe
from evaluation.common.cli import STUDIES, Cache, Json, each, show
from evaluation.common.processes import cloud_service, edge_process
from evaluation.errors import ServiceFailed
from evaluation.links.proxy import proxied
from evaluation.links.trace import find_trace
from evaluation.timing.latency import this_machine

BAR_MS = 85.0


LOOPBACK = "loopback"


PERCENTILES = (50, 95, 99)

Took = dict[str, Any]
"""What one candidate took: ``total_ms``, and ``parts_ms`` by name."""


class Asks(Protocol):
    """What is needed of the edge's process."""

    def ask(self, number: int) -> Took:
        """One candidate, read again."""


def ask_all(edge: Asks, numbers: Iterable[int], warm_up: int) -> list[Took]:
    """What each candidate of these numbers took, without the first ``warm_up``.

    Raises:
        ServiceFailed: one was not answered.
    """
    took = [edge.ask(number) for number in numbers]
    for one in took:
        if "reason" in one:
            raise ServiceFailed(f"the cloud did not answer: {one['reason']}")
    return took[warm_up:]


def row(link: str, took: Sequence[Took]) -> dict[str, Any]:
    """The figures of one link."""
    totals = [one["total_ms"] for one in took]
    parts = {name: [one["parts_ms"][name] for one in took] for name in took[0]["parts_ms"]}
    spread = _percentiles(totals)
    return {
        "link": link,
        "candidates": len(took),
        **spread,
        "longest_ms": max(totals),
        "kept": spread["p95_ms"] <= BAR_MS,
        "parts": {name: _percentiles(values) for name, values in parts.items()},
    }


def _percentiles(values_ms: Sequence[float]) -> dict[str, float]:
    return {f"p{q}_ms": float(np.percentile(values_ms, q)) for q in PERCENTILES}


EDGE = ("evaluation.timing.detection_edge",)


def detection_command(
    link: Annotated[
        list[str] | None, typer.Option(metavar="NAME|CSV|loopback", help="Give several.")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Over each link.")] = 250,
    warm_up: Annotated[int, typer.Option(min=0, help="Candidates before that.")] = 20,
    cloud_config: Annotated[
        Path | None, typer.Option(metavar="TOML", help="Settings of the cloud.")
    ] = None,
    cache: Cache = STUDIES,
    seed: Annotated[int, typer.Option(min=0, help="Of phantom and jitter.")] = 0,
    as_json: Json = False,
) -> None:
    """Single candidates through a real edge and a real cloud: median, p95, p99, and the parts."""
    names = link or [LOOPBACK, "fibre"]
    with tempfile.TemporaryDirectory(prefix="overread-detection-") as folder:
        log = Path(folder, "edge.log")
        with (
            cloud_service(config=cloud_config) as address,
            edge_process(1, seed, cache, log, EDGE) as edge,
        ):
            served = describe(address)
            rows = []
            for name in names:
                with _way(name, address, seed) as way:
                    edge.open(cloud=way)
                    numbers = each(range(warm_up + candidates), name)
                    rows.append(row(name, ask_all(edge, numbers, warm_up)))
    result = {
        **asdict(this_machine()),
        "models": served.models,
        "engine": served.engine,
        "bar_ms": BAR_MS,
        "warm_up": warm_up,
        "links": rows,
    }
    show(result, as_json, _table(result))


@contextmanager
def _way(name: str, address: str, seed: int) -> Iterator[str]:
    """The address by which the cloud is reached over that link."""
    if name == LOOPBACK:
        yield address
        return
    with proxied(address, find_trace(name), seed=seed) as through:
        yield through.address


def _table(result: dict[str, Any]) -> Table:
    title = f"{result['cpu']}, {result['cores']} cores, {result['engine']}"
    table = Table("", *(one["link"] for one in result["links"]), title=title, box=SIMPLE_HEAD)
    for key in ("candidates", "p50_ms", "p95_ms", "p99_ms", "longest_ms"):
        table.add_row(key, *(f"{one[key]:.1f}" for one in result["links"]))
    for part in result["links"][0]["parts"]:
        cells = (one["parts"][part] for one in result["links"])
        table.add_row(part, *(f"{one['p50_ms']:.1f} ({one['p95_ms']:.1f})" for one in cells))
    return table
