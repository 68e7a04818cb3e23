"""Options that several commands share, their output and their progress bars.

Results go to stdout, as tables or as JSON; remarks and progress go to stderr.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from evaluation.accuracy.bootstrap import OnStep
from evaluation.accuracy.truth import Truth, read_truth, scan_folders, scan_name
from models.markdown import Rows
from process.extras import require
from process.text import Printable, printable


def _drawn(path: Path | None) -> Path | None:
    """Refuse a chart that cannot be drawn before anything is measured."""
    if path is not None:
        require("matplotlib")
    return path


def csv_option(meaning: str) -> Any:
    """Return the option of a CSV file that exists; ``meaning`` is its help text."""
    return typer.Option(metavar="CSV", exists=True, dir_okay=False, help=meaning)


Marks = Annotated[
    list[Path],
    typer.Option(
        "--truth",
        "--marks",
        metavar="CSV",
        exists=True,
        dir_okay=False,
        help="Marks: columns scan, kind, x, y, z and diameter_mm. May be repeated.",
    ),
]
Data = Annotated[Path, typer.Option(metavar="DIR", help="Folder with NAME.npz and index.csv.")]
Split = Annotated[str, typer.Option(metavar="NAME[,NAME]", help="Splits of the cubes.")]
Scans = Annotated[
    list[Path],
    typer.Option(metavar="DIR", help="Whole scan, or a folder of scans; more may follow."),
]
MoreScans = Annotated[
    list[Path] | None,
    typer.Argument(metavar="PATH", help="More whole scans, or more tables of marks."),
]
Model = Annotated[str | None, typer.Option(help="Screening model; the edge's default if omitted.")]
CloudModel = Annotated[
    str | None, typer.Option(help="Second reader; the cloud's default if omitted.")
]
Limit = Annotated[int, typer.Option(min=0, help="Largest number of cubes; 0: all.")]
Deadline = Annotated[float | None, typer.Option(metavar="SECONDS", help="Budget of each study.")]
Reserve = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Seconds reserved after the cloud call.")
]
STUDIES = Path("runs/studies")
Cache = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the prepared studies.")]
Phantoms = Annotated[int, typer.Option(min=1, help="Different studies, read in turn.")]
Resamples = Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of bootstrap and phantoms.")]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="PNG", help="File for a chart; needs the extra train.", callback=_drawn),
]
Plots = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder for the Pareto charts; needs the extra train.", callback=_drawn
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Output as JSON.")]


def show(result: dict[str, Any], as_json: bool, *shown: Rows | str) -> None:
    """Print the result as JSON, or what is shown of it to people."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        Console().print(Printable(*shown))


def known_scans(
    scans: Sequence[Path], more: Sequence[Path] | None, truth: Sequence[Path]
) -> tuple[list[Path], dict[str, Truth]]:
    """Return the scans of a command line, and what its tables know of them.

    ``more`` are the arguments without an option: those that end with .csv are tables. Scans that no
    table names are named on stderr.

    Raises:
        MissingData, BadTable: a path does not exist, or a table is damaged.
    """
    scans, tables = sorted_arguments(scans, more, truth)
    known = read_truth(*tables)
    folders = scan_folders(scans, set(known))
    remark_unknown(folders, known)
    return folders, known


def sorted_arguments(
    scans: Sequence[Path], more: Sequence[Path] | None, truth: Sequence[Path]
) -> tuple[list[Path], list[Path]]:
    """Sort the arguments without an option into scans and tables; return both lists."""
    tables = [path for path in more or () if path.suffix.lower() == ".csv"]
    return [*scans, *(path for path in more or () if path not in tables)], [*truth, *tables]


def remark_unknown(folders: Sequence[Path], known: Collection[str]) -> None:
    """Name on stderr the scans without known truth."""
    for folder in folders:
        if scan_name(folder) not in known:
            typer.echo(printable(f"{folder}: not in a table of marks"), err=True)


Item = TypeVar("Item")


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def each(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, with a progress bar; ``total`` is the number of those of an iterator."""
    with _bar() as bar:
        yield from bar.track(items, total, description=what)


@contextmanager
def counting(what: str) -> Iterator[OnStep]:
    """Yield a function to be called with (done, all) after each step, drawn as a bar."""
    with _bar() as bar:
        task = bar.add_task(what, total=None)

        def step(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        yield step
