"""A data folder: the split of its patients, its whole scans, and what is marked in them."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from imaging.volume import FloatArray

TRAIN = "train"
CALIBRATION = "calibration"
"""Splits of patients; the cubes of both are in `train.npz`."""

SUBSETS = ("4", "5")
"""Patients of these subsets of LUNA16 are kept for calibration."""

TRAINED_SCANS = ("LIDC-IDRI-0021",)
"""Patients of those subsets who have a whole scan in training: their cubes are trained on."""

FOUND = ("nodule", "lesion")
"""The kinds of marks in a scan that must be found; others count neither way."""

BY_EYE = "by eye"
"""The source of marks that depend on what the networks proposed."""


def stored_in(split: str) -> str:
    """Return the name of the file that holds the cubes of a split, without its ending."""
    return TRAIN if split == CALIBRATION else split


def split_of(row: Mapping[str, str]) -> str:
    """Return the split of a line of `index.csv`: that of its file, or ``calibration``."""
    split = row["split"]
    kept = row.get("subset", "").strip() in SUBSETS and row["patient"] not in TRAINED_SCANS
    return CALIBRATION if split == TRAIN and kept else split


def marked_scans(
    data: Path, role: str, *, fully: bool = False
) -> list[tuple[Path, FloatArray, FloatArray]]:
    """Return the whole scans of ``data/ct`` and ``data/lidc`` with that role in `scans.csv`.

    Each is a folder, what must be found in it, and what is ignored: both ``(n, 4)``, x, y, z in the
    patient (LPS mm) and diameter in mm. With ``fully``, scans are left out that have nodules which
    were seen by eye alone: they probably have more of them.
    """
    found = []
    for part in ("ct", "lidc"):
        marks = read_rows(data / part / "marks.csv")
        for row in read_rows(data / part / "scans.csv"):
            if row["role"] == role:
                mine = [mark for mark in marks if mark["scan"] == row["scan"]]
                if fully and any(m["kind"] in FOUND and m.get("source") == BY_EYE for m in mine):
                    continue
                nodules, others = (
                    stacked([mark_of(m, "xyz") for m in mine if (m["kind"] in FOUND) is which])
                    for which in (True, False)
                )
                found.append((data / part / row["scan"], nodules, others))
    return found


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def mark_of(row: Mapping[str, str], axes: str = "zyx") -> list[float]:
    """Return centre and diameter of a mark; one of unknown size has 10 mm, as in LUNA16."""
    diameter = float(row["diameter_mm"])
    return [*(float(row[a]) for a in axes), diameter if diameter > 0 else 10.0]


def stacked(marks: Sequence[Sequence[float]]) -> FloatArray:
    """Return marks as ``(n, 4)``, also where there are none."""
    return np.array(marks, dtype=np.float64).reshape(-1, 4)
