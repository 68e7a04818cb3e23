"""Which patients are trained on, and which are kept for calibration: both are in `train.npz`."""

from collections.abc import Mapping

TRAIN = "train"
CALIBRATION = "calibration"

SUBSETS = ("4", "5")
"""Patients of these subsets of LUNA16 are kept for calibration."""

TRAINED_SCANS = ("LIDC-IDRI-0021",)
"""Patients of those subsets who have a whole scan in training: their cubes are trained on."""


def stored_in(split: str) -> str:
    """Return the name of the file that holds the cubes of a split, without its ending."""
    return TRAIN if split == CALIBRATION else split


def split_of(row: Mapping[str, str]) -> str:
    """Return the split of a line of `index.csv`: that of its file, or ``calibration``."""
    split = row["split"]
    kept = row.get("subset", "").strip() in SUBSETS and row["patient"] not in TRAINED_SCANS
    return CALIBRATION if split == TRAIN and kept else split
