"""What else is known inside cubes of nodules: places that count neither as hit nor as false."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.table import read_table
from imaging.volume import Triple

LEAST_RADIUS_MM = 5.0
"""Of a mark whose diameter is not known, as LUNA16 has it."""


@dataclass(frozen=True)
class Mark:
    """A place ``(z, y, x)`` in a cube of 1 mm a voxel; a diameter of -1 is not known."""

    index_zyx: Triple
    diameter_mm: float

    def covers(self, index_zyx: Triple, rim_mm: float) -> bool:
        """Whether a candidate there is put down to it."""
        radius_mm = self.diameter_mm / 2 if self.diameter_mm > 0 else LEAST_RADIUS_MM
        return float(np.linalg.norm(np.subtract(index_zyx, self.index_zyx))) < radius_mm + rim_mm


def read_marks(folder: Path, split: str) -> dict[str, list[Mark]]:
    """The marks of ``marks.csv`` by the cube's name; none where there is no such file.

    Raises:
        BadTable: it is there and cannot be read.
    """
    path, found = folder / "marks.csv", defaultdict[str, list[Mark]](list)
    if not path.is_file():
        return found
    table = read_table(path, ("split", "row", "z", "y", "x", "diameter_mm"))
    z, y, x, diameter = (table.numbers(name) for name in ("z", "y", "x", "diameter_mm"))
    rows = table.numbers("row").astype(np.int64)
    for i, name in enumerate(table.text("split")):
        if name == split:
            place = (float(z[i]), float(y[i]), float(x[i]))
            found[f"{split}/{rows[i]}"].append(Mark(place, float(diameter[i])))
    return found
