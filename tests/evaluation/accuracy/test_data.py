from pathlib import Path

import numpy as np
import pytest

from evaluation.accuracy.data import (
    Annotation,
    Cube,
    Lesion,
    read_annotations,
    read_cubes,
    read_truth,
    scan_folders,
    scan_name,
    scans_of_splits,
)
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


def test_annotations_belong_to_their_cubes(tmp_path: Path) -> None:
    """They may be absent but not damaged."""
    assert read_annotations(tmp_path, "val") == {}
    lines = ["split,row,z,y,x,diameter_mm,kind", "val,2,1,2,3,8,nodule", "test,2,4,5,6,-1,excluded"]
    (tmp_path / "marks.csv").write_text("\n".join(lines) + "\n")
    assert read_annotations(tmp_path, "val") == {"val/2": [Annotation((1.0, 2.0, 3.0), 8.0)]}
    (tmp_path / "marks.csv").write_text("split,row\nval,2\n")
    with pytest.raises(BadTable):
        read_annotations(tmp_path, "val")


def test_an_unknown_diameter_reaches_five_millimetres() -> None:
    """Half the diameter where it is known, and the rim beyond both."""
    assert Annotation((0, 0, 0), -1).covers((0, 0, 7.9), rim_mm=3)
    assert not Annotation((0, 0, 0), -1).covers((0, 0, 8.0), rim_mm=3)
    assert not Annotation((0, 0, 0), 8).covers((0, 0, 7.9), rim_mm=3)


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


INDEX = "split,row,patient,z,y,x,diameter_mm\n"


def write(folder: Path, index: str, ct: np.ndarray) -> Path:
    (folder / "index.csv").write_text(INDEX + index)
    np.savez_compressed(folder / "val.npz", ct=ct)
    return folder


def test_rows_of_the_index_find_their_cubes(tmp_path: Path) -> None:
    """Each line's row, not its place in the file, names its cube; other splits are left out."""
    ct = np.zeros((2, 4, 4, 4), np.uint8)
    ct[1] = 7
    folder = write(tmp_path, "val,1,p,1,2,3,8\ntrain,0,q,0,0,0,1\nval,0,r,2,2,2,6\n", ct)
    first, second = read_cubes(folder, ("val",))
    assert (first.name, first.patient, first.diameter_mm) == ("val/1", "p", 8.0)
    assert first.centre_zyx == (1.0, 2.0, 3.0)
    assert int(first.voxels.min()) == 7
    assert second.patient == "r"


def test_hit_is_nearer_than_half_the_diameter() -> None:
    cube = Cube("val/0", "p", np.zeros((9, 9, 9), np.uint8), (4.0, 4.0, 4.0), 6.0)
    assert cube.hit_by((4.0, 4.0, 6.9))
    assert not cube.hit_by((4.0, 4.0, 7.0))


@pytest.mark.parametrize("index", ["val,0,p,1,1,1,5\n", "val,0,p,1,1,1,5\nval,0,p,1,1,1,5\n"])
def test_index_must_name_every_cube_once(tmp_path: Path, index: str) -> None:
    folder = write(tmp_path, index, np.zeros((2, 4, 4, 4), np.uint8))
    with pytest.raises(BadTable, match="lines for 2 cubes"):
        read_cubes(folder, ("val",))


def test_what_is_no_file_of_cubes_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "val,0,p,1,1,1,5\n", np.zeros((1, 4, 4), np.float32))
    with pytest.raises(MissingData, match="not uint8"):
        read_cubes(folder, ("val",))
    with pytest.raises(MissingData, match="cannot be read"):
        read_cubes(folder, ("test",))
    (folder / "test.npz").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(MissingData, match="cannot be read"):
        read_cubes(folder, ("test",))
