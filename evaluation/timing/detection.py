"""``overread-eval detection``: the time from one candidate to its verdict, and of each part of it.

A real edge and a real cloud run as processes. Candidates follow one another over each link.
"""

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from cloud.describe import fetch_description
from evaluation.common.cli import STUDIES, Cache, Json, each, show
from evaluation.common.processes import EdgeProcess, cloud_service, edge_process
from evaluation.errors import ServiceFailed
from evaluation.links.proxy import proxied
from evaluation.links.trace import find_trace
from evaluation.timing.latency import percentiles_ms, this_machine
from models.markdown import Rows

LIMIT_MS = 85.0
"""Required of the 95th percentile."""

LOOPBACK = "loopback"
EDGE = ("evaluation.timing.detection_worker",)

Times = dict[str, Any]
"""The times of one candidate: ``total_s``, and ``parts_s`` by name."""


def escalate_all(edge: EdgeProcess, numbers: Iterable[int], warm_up: int) -> list[Times]:
    """Return the times of these candidates, without the first ``warm_up``.

    Raises:
        ServiceFailed: the cloud did not answer for one of them.
    """
    times = [edge.escalate(number) for number in numbers]
    for one in times:
        if "reason" in one:
            raise ServiceFailed(f"the cloud did not answer: {one['reason']}")
    return times[warm_up:]


def row(link: str, times: Sequence[Times]) -> dict[str, Any]:
    """Return the figures of one link."""
    totals_s = [one["total_s"] for one in times]
    parts_s = {name: [one["parts_s"][name] for one in times] for name in times[0]["parts_s"]}
    spread = percentiles_ms(totals_s)
    return {
        "link": link,
        "candidates": len(times),
        **spread,
        "longest_ms": 1000 * max(totals_s),
        "kept": spread["p95_ms"] <= LIMIT_MS,
        "parts": {name: percentiles_ms(part_s) for name, part_s in parts_s.items()},
    }


def detection_command(
    link: Annotated[
        list[str] | None, typer.Option(metavar="NAME|CSV|loopback", help="Link; may be repeated.")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates over each link.")] = 250,
    warm_up: Annotated[int, typer.Option(min=0, help="Uncounted candidates before them.")] = 20,
    cloud_config: Annotated[
        Path | None, typer.Option(metavar="TOML", help="Settings file of the cloud.")
    ] = None,
    cache: Cache = STUDIES,
    seed: Annotated[int, typer.Option(min=0, help="Seed of phantom and jitter.")] = 0,
    as_json: Json = False,
) -> None:
    """Time of single candidates through a real edge and a real cloud: p50, p95, p99, by part."""
    names = link or [LOOPBACK, "fibre"]
    with tempfile.TemporaryDirectory(prefix="overread-detection-") as folder:
        log = Path(folder, "edge.log")
        with (
            cloud_service(config=cloud_config) as address,
            edge_process(1, seed, cache, log, EDGE) as edge,
        ):
            served = fetch_description(address)
            rows = []
            for name in names:
                with ExitStack() as held:
                    cloud = address
                    if name != LOOPBACK:
                        link_to = proxied(address, find_trace(name), seed=seed)
                        cloud = held.enter_context(link_to).address
                    edge.open(cloud=cloud)
                    numbers = each(range(warm_up + candidates), name)
                    rows.append(row(name, escalate_all(edge, numbers, warm_up)))
    result = {
        **this_machine(),
        "models": served.models,
        "engine": served.engine,
        "bar_ms": LIMIT_MS,
        "warm_up": warm_up,
        "links": rows,
    }
    show(result, as_json, _table(result))


def _table(result: dict[str, Any]) -> Rows:
    title = f"{result['cpu']}, {result['cores']} cores, {result['engine']}"
    links = result["links"]
    times = [
        [key, *(f"{one[key]:.1f}" for one in links)]
        for key in ("candidates", "p50_ms", "p95_ms", "p99_ms", "longest_ms")
    ]
    parts = [
        [part, *("{p50_ms:.1f} ({p95_ms:.1f})".format(**one["parts"][part]) for one in links)]
        for part in links[0]["parts"]
    ]
    return Rows(["", *(one["link"] for one in links)], [*times, *parts], title)
