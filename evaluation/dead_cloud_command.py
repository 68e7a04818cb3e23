"""``overread-eval dead-cloud``: what the edge's answer costs more when the cloud is dead."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from evaluation.dead_cloud import WAYS, measure
from evaluation.dead_cloud import as_json as told
from evaluation.latency import this_machine
from evaluation.options import STUDIES, Cache, Deadline, Json, Phantoms
from evaluation.processes import edge_process
from evaluation.progress import counting
from evaluation.show import show
from evaluation.tables import columns_table

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
    result = told(results, asdict(this_machine()))
    show(result, as_json, _table(result))


def _table(result: dict[str, Any]) -> Table:
    title = f"{result['rounds']} rounds in turn; {result['cpu']}, {result['cores']} cores"
    return columns_table(_COLUMNS, result["ways"], title)
