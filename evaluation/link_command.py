"""``overread-eval link``: starts the processes, goes over the traces, and shows the rows."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from edge.settings import load_settings
from evaluation import link
from evaluation.edge_process import edge_process
from evaluation.latency import this_machine
from evaluation.link import CAVEAT, OFF, Run, run_trace
from evaluation.mortal_cloud import mortal_cloud
from evaluation.progress import each
from evaluation.trace import Trace, find_trace, shipped_names

CACHE = Path("runs/studies")
_COLUMNS = {
    "trace": ("trace", "{}"),
    "studies": ("studies", "{}"),
    "late": ("late", "{}"),
    "p50_ms": ("p50 ms", "{:.0f}"),
    "p95_ms": ("p95 ms", "{:.0f}"),
    "p99_ms": ("p99 ms", "{:.0f}"),
    "sensitivity": ("found", "{:.1%}"),
    "escalated": ("sent", "{}"),
    "answered": ("read again", "{}"),
    "bytes": ("bytes", "{}"),
    "deaths": ("deaths", "{}"),
}


def link_command(
    trace: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|CSV|off", help="Link; give several. All shipped by default."),
    ] = None,
    studies: Annotated[int, typer.Option(min=1, help="Studies over each trace.")] = 20,
    deadline: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Of each study.")
    ] = None,
    reserve: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Kept back from the escalation.")
    ] = None,
    kill_cloud: Annotated[
        float, typer.Option(min=0, max=1, help="Part of the studies in which the cloud is killed.")
    ] = 0.0,
    phantoms: Annotated[int, typer.Option(min=1, help="Different studies; they take turns.")] = 4,
    files_every: Annotated[
        int, typer.Option(min=1, help="Every so many-th study starts from its files.")
    ] = 50,
    cache: Annotated[Path, typer.Option(metavar="DIR", help="Where the studies are kept.")] = CACHE,
    seed: Annotated[int, typer.Option(min=0, help="Of phantoms, jitter and deaths.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Real edge and cloud over links with faults: deadlines kept, nodules found, bytes sent."""
    names = trace or shipped_names()
    links: list[Trace | None] = [None if name == OFF else find_trace(name) for name in names]
    given = {"deadline_s": deadline, "reserve_s": reserve}
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    deadline_s = load_settings(**settings).deadline_s
    run = Run(studies, settings, deadline_s, kill_cloud, files_every, seed)
    rows = _rows(run, links, phantoms, cache)
    result = link.as_json(run, rows, asdict(this_machine()))
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        Console().print(_table(result), CAVEAT, sep="\n")


def _rows(run: Run, links: list[Trace | None], phantoms: int, cache: Path) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="overread-link-") as folder:
        log = Path(folder, "edge.log")
        with (
            mortal_cloud(Path(folder)) as cloud,
            edge_process(phantoms, run.seed, cache, log) as edge,
        ):
            return [
                run_trace(run, one, edge, cloud, each(range(run.studies), one.name if one else OFF))
                for one in links
            ]


def _table(result: dict[str, Any]) -> Table:
    counts = f"{result['from_files']} from files, {result['from_memory']} from memory"
    title = (
        f"{result['late']} of {result['studies']} answers late "
        f"(deadline {result['deadline_s']:g} s), {counts}; {result['cpu']}, {result['cores']} cores"
    )
    table = Table(*(words for words, _ in _COLUMNS.values()), title=title, box=SIMPLE_HEAD)
    for one in result["traces"]:
        cells = ((form, one[name]) for name, (_, form) in _COLUMNS.items())
        table.add_row(*("-" if value is None else form.format(value) for form, value in cells))
    return table
