"""What else is known inside cubes."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.errors import BadTable
from evaluation.marks import Mark, read_marks


def test_marks_belong_to_their_cubes(tmp_path: Path) -> None:
    """Those of the split alone, by the cube's name."""
    lines = ["split,row,z,y,x,diameter_mm,kind", "val,2,1,2,3,8,nodule", "test,2,4,5,6,-1,excluded"]
    (tmp_path / "marks.csv").write_text("\n".join(lines) + "\n")
    assert read_marks(tmp_path, "val") == {"val/2": [Mark((1.0, 2.0, 3.0), 8.0)]}


def test_no_table_is_no_mark_and_a_bad_one_is_told(tmp_path: Path) -> None:
    """A folder may have none; one without the columns is a mistake."""
    assert read_marks(tmp_path, "val") == {}
    (tmp_path / "marks.csv").write_text("split,row\nval,2\n")
    with pytest.raises(BadTable):
        read_marks(tmp_path, "val")


def test_an_unknown_diameter_reaches_five_millimetres() -> None:
    """Half the diameter where it is known, and the rim beyond both."""
    assert Mark((0, 0, 0), -1).covers((0, 0, 7.9), rim_mm=3)
    assert not Mark((0, 0, 0), -1).covers((0, 0, 8.0), rim_mm=3)
    assert not Mark((0, 0, 0), 8).covers((0, 0, 7.9), rim_mm=3)
