from pathlib import Path

import pytest

from evaluation.accuracy.truth import Lesion, read_truth, scan_folders, scan_name, scans_of_splits
from evaluation.errors import BadTable, MissingData

HEAD = "scan,x,y,z,diameter_mm,longest_mm\n"


def table(folder: Path, text: str) -> Path:
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
    """A scan may have several lines; one without a place has no known lesion.

    The longest extent is optional.
    """
    known = read_truth(table(tmp_path, HEAD + "a,1,2,3,10,\na,4,5,6,,8\nb,,,,,\n"))
    assert known == {
        "a": (Lesion((1.0, 2.0, 3.0), 10.0), Lesion((4.0, 5.0, 6.0), 0.0, 8.0)),
        "b": (),
    }
    known = read_truth(table(tmp_path, "scan,x,y,z,diameter_mm\na,1,2,3,10\n"))
    assert known["a"][0].reach_mm == 5.0


@pytest.mark.parametrize("row", ["a,1,,3,10,\n", "a,1,2,3,,\n", "a,1,2,3,-5,\n", "a,1,2,x,5,\n"])
def test_lesion_without_place_or_size_is_refused(tmp_path: Path, row: str) -> None:
    with pytest.raises(BadTable, match="line 2"):
        read_truth(table(tmp_path, HEAD + row))


def test_scans_are_folders_or_folders_of_named_scans(tmp_path: Path) -> None:
    for name in ("set/a", "set/b", "set/other", "c"):
        (tmp_path / name).mkdir(parents=True)
    folders = scan_folders([tmp_path / "set", tmp_path / "c"], {"a", "b"})
    assert [scan_name(folder) for folder in folders] == ["a", "b", "c"]


def test_missing_and_duplicated_scans_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="no such scan"):
        scan_folders([tmp_path / "nowhere"], set())
    (tmp_path / "a").mkdir()
    with pytest.raises(MissingData, match="two scans"):
        scan_folders([tmp_path / "a", tmp_path / "a"], set())


def test_roles_choose_the_scans(tmp_path: Path) -> None:
    """Without a column of roles no scan is excluded; that none is left is an error."""
    folders = [tmp_path / name for name in ("a", "b")]
    table = tmp_path / "scans.csv"
    table.write_text("scan,role\na,train\nb,test\n")
    assert scans_of_splits(folders, table, ("test",)) == folders[1:]
    with pytest.raises(MissingData):
        scans_of_splits(folders, table, ("val",))
    table.write_text("scan\na\nb\n")
    assert scans_of_splits(folders, table, ("test",)) == folders
