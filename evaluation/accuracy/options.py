"""Options of the commands that measure accuracy, and the marked scans that they name."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from evaluation.accuracy.truth import Truth, read_truth, scan_name
from evaluation.errors import EvaluationError
from evaluation.run import remark
from imaging.dicom.header import DICOM_SUFFIXES, is_dicom, read_head
from imaging.volume_files import format_of
from models.data.folder import CALIBRATION, LISTING, ROLES
from models.runtime.errors import MissingData


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


def marked_scans(
    scans: Sequence[Path],
    more: Sequence[Path] | None,
    tables: Sequence[Path],
    splits: Sequence[str] | None = None,
    all_of: bool = False,
) -> tuple[list[Path], dict[str, Truth]]:
    """Return the scans of a command line that count, and what its tables know of them.

    ``more`` are the arguments without an option: those that end with .csv are tables. Scans count
    whose role is one of ``splits``, or is not stated. A scan with nodules that were seen by eye
    alone is left out, but not if ``all_of`` them are wanted, and named on stderr: its false
    positives cannot be counted.

    Raises:
        MissingData, BadTable: a path does not exist, or a table is damaged or does not name a scan.
        EvaluationError: no scan is left.
    """
    more_tables = [path for path in more or () if path.suffix.lower() == ".csv"]
    given = [*scans, *(path for path in more or () if path not in more_tables)]
    known = read_truth(*tables, *more_tables)
    folders = scan_folders(given, known, tables[0])
    roles = {folder: known[scan_name(folder)].role for folder in folders}
    allowed = {*ROLES, CALIBRATION, *(truth.role for truth in known.values())} - {""}
    if unknown := {*(splits or ())} - allowed:
        raise EvaluationError(f"--split: {sorted(unknown)}, expected some of {sorted(allowed)}")
    of_splits = [one for one in folders if splits is None or roles[one] in ("", *splits)]
    if not of_splits:
        there = sorted({*roles.values()})
        raise EvaluationError(f"no scan has the roles {splits}, the scans given have {there}")
    kept = [one for one in of_splits if known[scan_name(one)].fully_marked]
    if left_out := [scan_name(one) for one in of_splits if one not in kept]:
        remark(f"left out, not fully marked: {', '.join(left_out)}")
    if not kept:
        raise EvaluationError("no scan is fully marked: all have nodules that were seen by eye")
    return of_splits if all_of else kept, known


def scan_folders(given: Sequence[Path], known: Collection[str], table: Path) -> list[Path]:
    """Return the scans to read: each path given, or the scans in it if any of them is ``known``.

    Raises:
        MissingData: a path does not exist, two scans have the same name, or a scan is not known:
            whether it has nodules is not either.
    """
    folders: list[Path] = []
    for path in given:
        if not path.exists():
            raise MissingData(path, "no such scan")
        inside = sorted(path.iterdir()) if path.is_dir() else []
        named = [one for one in inside if _may_be_scan(one) and scan_name(one) in known]
        if scan_name(path) in known or not named:
            folders.append(path)
        else:
            folders += [one for one in inside if one in named or _looks_like_scan(one)]
    names = [scan_name(folder) for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        if names.count(name) > 1:
            raise MissingData(folder, f"two scans are named {name!r}")
        if name not in known:
            raise MissingData(
                folder,
                f"the tables name no scan {name!r}: add its nodules to {table}; if it has none,"
                f" list it in {table.with_name(LISTING)}, column scan",
            )
    return folders


def _may_be_scan(path: Path) -> bool:
    return path.is_dir() or bool(format_of(path))


def _looks_like_scan(path: Path) -> bool:
    """Return whether it is a volume file, or a folder with a volume file or a DICOM file in it."""
    files = [path] if path.is_file() else [one for one in path.iterdir() if one.is_file()]
    return any(
        bool(format_of(file)) or file.suffix.lower() in DICOM_SUFFIXES or is_dicom(read_head(file))
        for file in files
        if not file.is_symlink()
    )
