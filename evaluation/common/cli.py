"""What more than one command can be told: each option under one name, with one help.

The result of a command on stdout, as tables or as JSON, and remarks on stderr.

Progress on stderr while something takes its time; stdout stays for the result.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from evaluation.accuracy.bootstrap import OnStep
from evaluation.accuracy.data import scan_name
from models.extra import require
from models.markdown import Rows


def _drawn(path: Path | None) -> Path | None:
    """A chart that cannot be drawn is refused before anything is measured."""
    if path is not None:
        require("matplotlib")
    return path


Csv = Annotated[Path, typer.Option(metavar="CSV", exists=True, dir_okay=False)]


Data = Annotated[Path, typer.Option(metavar="DIR", help="NAME.npz and index.csv.")]


Split = Annotated[str, typer.Option(metavar="NAME[,NAME]", help="Which cubes.")]


Scans = Annotated[list[Path], typer.Option(metavar="DIR", help="Whole scans; DIR DIR ...")]


MoreScans = Annotated[list[Path] | None, typer.Argument(metavar="[DIR]...")]

Model = Annotated[str | None, typer.Option(help="Screening model; the edge's own by default.")]


CloudModel = Annotated[str | None, typer.Option(help="Second reader; the cloud's by default.")]


Deadline = Annotated[float | None, typer.Option(metavar="SECONDS", help="Of each study.")]


Reserve = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Kept back from the escalation.")
]

STUDIES = Path("runs/studies")


Cache = Annotated[Path, typer.Option(metavar="DIR", help="Where the studies are kept.")]


Phantoms = Annotated[int, typer.Option(min=1, help="Different studies; they take turns.")]

Resamples = Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")]


Seed = Annotated[int, typer.Option(min=0, help="Seed of the bootstrap, and of the phantoms.")]


Plot = Annotated[
    Path | None,
    typer.Option(metavar="PNG", help="Draw a chart; needs the extra train.", callback=_drawn),
]


Plots = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Draw the Pareto charts here; needs the extra train.", callback=_drawn
    ),
]


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def show(result: dict[str, Any], as_json: bool, *shown: Rows | str) -> None:
    """Prints the result for machines, or what is shown of it to people."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        Console().print(*shown, sep="\n")


def remark_unknown(folders: Sequence[Path], known: Collection[str]) -> None:
    """Names the folders of which nothing is known."""
    for folder in folders:
        if scan_name(folder) not in known:
            typer.echo(f"{folder}: the truth does not name it", err=True)


Item = TypeVar("Item")


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def each(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items one by one, with a bar that says `what` is being done."""
    with _bar() as bar:
        yield from bar.track(items, description=what)


@contextmanager
def counting(what: str) -> Iterator[OnStep]:
    """A function to be called with (done, all) after each step, drawn as a bar."""
    with _bar() as bar:
        task = bar.add_task(what, total=None)

        def step(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        yield step
