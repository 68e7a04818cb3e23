"""Options of the commands that measure accuracy: scans with their marks, cubes, charts."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from evaluation.accuracy.truth import Truth, read_truth, scan_folders, scan_name
from evaluation.errors import MissingData
from evaluation.run import remark
from models.charts import save_png
from process.extras import require


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
Split = Annotated[str, typer.Option(metavar="NAME[,NAME]", help="Splits of cubes and of scans.")]
Scans = Annotated[
    list[Path],
    typer.Option(metavar="DIR", help="Whole scan, or a folder of scans; more may follow."),
]
MoreScans = Annotated[
    list[Path] | None,
    typer.Argument(metavar="PATH", help="More whole scans, or more tables of marks."),
]
Limit = Annotated[int, typer.Option(min=0, help="Largest number of cubes; 0: all.")]
Resamples = Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="PNG", help="File for a chart; needs the extra train.", callback=_drawn),
]


def save_chart(figure: Any, path: Path) -> None:
    """Write a figure as PNG.

    Raises:
        MissingData: the folder does not exist, or the file cannot be written.
    """
    try:
        save_png(figure, path)
    except OSError as error:
        raise MissingData(path, f"cannot be written ({error})") from error


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
            remark(f"{folder}: not in a table of marks")
