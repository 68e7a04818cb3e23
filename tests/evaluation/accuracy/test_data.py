"""What is known of whole scans.

What else is known inside cubes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.accuracy.data import Lesion, Mark, read_marks, read_truth, scan_folders, scan_name
from evaluation.errors import BadTable, MissingData

HEAD = "scan,x,y,z,diameter_mm,longest_mm\n"


def table(folder: Path, text: str) -> Path:
    """A truth file with this text."""
    path = folder / "truth.csv"
    path.write_text(text)
    return path


def test_reach_is_half_the_longer_extent() -> None:
    """A lesion 20 mm across and 30 mm long is hit within 15 mm and covers 3 mm more."""
    lesion = Lesion((0.0, 0.0, 0.0), 20.0, 30.0)
    assert lesion.hit_by((14.9, 0, 0))
    assert not lesion.hit_by((15.0, 0, 0))
    assert lesion.covers((17.9, 0, 0))
    assert not lesion.covers((18.0, 0, 0))
    assert not lesion.covers((15.0, 0, 0), 0.0)


def test_several_lesions_and_none(tmp_path: Path) -> None:
    """A scan may have several lines; one without a place has no known lesion."""
    known = read_truth(table(tmp_path, HEAD + "a,1,2,3,10,\na,4,5,6,,8\nb,,,,,\n"))
    assert known == {
        "a": (Lesion((1.0, 2.0, 3.0), 10.0), Lesion((4.0, 5.0, 6.0), 0.0, 8.0)),
        "b": (),
    }


def test_longest_extent_is_optional(tmp_path: Path) -> None:
    """A truth file without the longest extent is read."""
    known = read_truth(table(tmp_path, "scan,x,y,z,diameter_mm\na,1,2,3,10\n"))
    assert known["a"][0].reach_mm == 5.0


@pytest.mark.parametrize("row", ["a,1,,3,10,\n", "a,1,2,3,,\n", "a,1,2,3,-5,\n", "a,1,2,x,5,\n"])
def test_lesion_without_place_or_size_is_refused(tmp_path: Path, row: str) -> None:
    """Half a place, no size or a value that is no number is refused with its line."""
    with pytest.raises(BadTable, match="line 2"):
        read_truth(table(tmp_path, HEAD + row))


def test_scans_are_folders_or_folders_of_named_scans(tmp_path: Path) -> None:
    """A folder of named scans stands for those; any other folder is a scan itself."""
    for name in ("set/a", "set/b", "set/other", "c"):
        (tmp_path / name).mkdir(parents=True)
    folders = scan_folders([tmp_path / "set", tmp_path / "c"], {"a", "b"})
    assert [scan_name(folder) for folder in folders] == ["a", "b", "c"]


def test_missing_and_doubled_scans_are_refused(tmp_path: Path) -> None:
    """A scan that is not there, or given twice, is refused."""
    with pytest.raises(MissingData, match="no such scan"):
        scan_folders([tmp_path / "nowhere"], set())
    (tmp_path / "a").mkdir()
    with pytest.raises(MissingData, match="two scans"):
        scan_folders([tmp_path / "a", tmp_path / "a"], set())


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
