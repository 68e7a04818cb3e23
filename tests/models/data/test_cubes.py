from pathlib import Path

import numpy as np
import pytest

from models.data.cubes import neighbours_of, read_cubes
from models.data.folder import CALIBRATION
from models.runtime.errors import BadTable, MissingData

INDEX = "split,row,patient,subset,z,y,x,diameter_mm,match_mm\n"


def write(folder: Path, index: str, ct: np.ndarray, split: str = "val") -> Path:
    (folder / "index.csv").write_text(INDEX + index)
    np.savez_compressed(folder / f"{split}.npz", ct=ct, votes=ct)
    return folder


def test_rows_of_the_index_find_their_cubes(tmp_path: Path) -> None:
    """Each line's row, not its place in the file, names its cube; other splits are left out.

    A split that is named twice is read once.
    """
    ct = np.zeros((2, 50, 50, 50), np.uint8)
    ct[1] = 7
    lines = ["val,1,p,6,1,2,3,8,", "train,0,q,1,0,0,0,1,", "Val,0,r,,2,2,2,6,0.5"]
    folder = write(tmp_path, "\n".join(lines) + "\n", ct)
    first, second = read_cubes(folder, ("val", "val"))
    assert (first.name, first.patient, first.diameter_mm) == ("val/0", "r", 6.0)
    assert second.centre_zyx == (1.0, 2.0, 3.0)
    assert int(second.voxels.min()) == 7
    assert (first.stated("match_mm"), first.sure, second.sure) == (0.5, True, True)
    assert np.isnan([second.stated("match_mm"), first.rated("malignancy")]).all()


def test_patients_of_some_subsets_are_kept_for_calibration(tmp_path: Path) -> None:
    """Also where a spreadsheet wrote the subset as a decimal number."""
    lines = ["train,0,p,4.0,1,1,1,5,1", "train,1,q,3,1,1,1,5,1", "train,2,r,5,1,1,1,5,1"]
    folder = write(tmp_path, "\n".join(lines), np.zeros((3, 50, 50, 50), np.uint8), "train")
    owners = {s: [c.patient for c in read_cubes(folder, (s,))] for s in ("train", CALIBRATION)}
    assert owners == {"train": ["q"], CALIBRATION: ["p", "r"]}


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["val,0,p,,1,1,1,5,1"], "1 lines for 2 cubes, expected one line for each"),
        (["val,0,p,,1,1,1,5,1"] * 2, "2 lines for 2 cubes"),
        (["val,0,p,,1,1,1,5,1", "val,-1,p,,1,1,1,5,1"], "line 3: row = -1, expected 0, 1, 2"),
        (["val,0,p,,1,1,1,5,1", "val,0.5,p,,1,1,1,5,1"], "line 3: row = 0.5, expected 0, 1, 2"),
        (["val,0,p,,1,1,1,-1,1"], "line 2: diameter_mm = -1, expected 0.1 to 300"),
        (["val,0,p,,1,1,1,5,-3"], "line 2: match_mm = -3, expected 0 to 300"),
        (["val,0,p,,1,1,500,5,1"], "line 2: x = 500, expected 0 to 49"),
        (["val,0,p,,1,1,1,1e6,1"], "line 2: diameter_mm = 1e.06, expected 0.1 to 300"),
        (["val,0,p,4.5,1,1,1,5,1"], "line 2: subset = 4.5, expected a whole number"),
        (["val,1e300,p,,1,1,1,5,1"], "line 2: row = 1e.300, expected 0, 1, 2"),
        (["valid,0,p,,1,1,1,5,1"], "line 2: split 'valid', expected one of train, val, test"),
        (["val,0,p,,1,1,1,5,1", "test,0,P,,1,1,1,5,1"], "line 3: patient 'P' is in 'test', els"),
        (["train,0,p,4,1,1,1,5,1", "train,1,p,3,1,1,1,5,1"], "is in 'train', elsewhere in 'cali"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, lines: list[str], reason: str) -> None:
    folder = write(tmp_path, "\n".join(lines), np.zeros((2, 50, 50, 50), np.uint8))
    with pytest.raises(BadTable, match=reason):
        read_cubes(folder, ("val",))


def test_an_index_that_lacks_a_column_or_a_split_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "train,0,p,,1,1,1,5,1\n", np.zeros((0, 50, 50, 50), np.uint8))
    with pytest.raises(MissingData, match="no cube is in the split 'val'"):
        read_cubes(folder, ("val",))
    with pytest.raises(BadTable, match="lacks the columns \\['texture_mean'\\]"):
        read_cubes(folder, ("val",), ("match_mm", "texture_mean"))
    write(folder, "val,0,p,,1,1,1,5,\n", np.zeros((1, 50, 50, 50), np.uint8))
    with pytest.raises(BadTable, match="line 2: match_mm = '' is not a number"):
        read_cubes(folder, ("val",), ("match_mm",))
    (folder / "index.csv").write_text("")
    with pytest.raises(BadTable, match="lacks the columns"):
        read_cubes(folder, ("val",))


def test_what_is_no_file_of_cubes_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "val,0,p,,1,1,1,5,1\n", np.zeros((1, 4, 4), np.float32))
    with pytest.raises(MissingData, match=r"ct: float32 .*, expected uint8"):
        read_cubes(folder, ("val",))
    write(folder, "val,0,p,,1,1,1,5,1\n", np.full((1, 50, 50, 50), 200, np.uint8))
    with pytest.raises(MissingData, match="votes: 200 at a voxel, expected readers"):
        read_cubes(folder, ("val",))
    with pytest.raises(MissingData, match="cannot be read"):
        read_cubes(folder, ("test",))
    whole = (folder / "val.npz").read_bytes()
    damage = [b"PK\x03\x04 damaged", whole[: len(whole) // 2], whole.replace(b"\x93", b"x"), b""]
    np.save(folder / "one.npy", np.zeros(3))
    for damaged in (*damage, (folder / "one.npy").read_bytes()):
        (folder / "val.npz").write_bytes(damaged)
        with pytest.raises(MissingData, match=r"val\.npz: cannot be read"):
            read_cubes(folder, ("val",))


MARKS = "split,row,kind,z,y,x,diameter_mm\n"


def test_a_cube_has_its_neighbours(tmp_path: Path) -> None:
    """What is excluded may be listed twice, as LUNA16 does; a nodule may not."""
    folder = write(tmp_path, "val,0,p,,1,1,1,5,1\n", np.zeros((1, 50, 50, 50), np.uint8))
    cubes = read_cubes(folder, ("val",))
    excluded, nodule = "val,0,excluded,1,2,3,-1\n", "val,0,Nodule ,3,2,1,6\n"
    (folder / "marks.csv").write_text(MARKS + 2 * excluded + nodule)
    ((first, _, last),) = neighbours_of(folder, cubes)
    assert (first.sphere, first.must_be_found) == ([1, 2, 3, 10], False)
    assert (last.sphere, last.must_be_found) == ([3, 2, 1, 6], True)
    for lines, reason in (
        (2 * nodule, "line 3: cube val/0, with its own, has two nodules"),
        ("val,0,nodule,1,1.2,1,6\n", "line 2: cube val/0, with its own, has two nodules"),
        ("val,7,nodule,1,2,3,6\n", "line 2: index.csv has no cube val/7"),
        ("val,0,nodul,1,2,3,6\n", "line 2: kind 'nodul', expected one of nodule, lesion"),
        ("val,0,nodule,1,2,3,inf\n", "line 2: diameter_mm = 'inf' is not finite"),
        ("vall,0,nodule,1,2,3,6\n", "line 2: split 'vall', expected one of train, val, test"),
    ):
        (folder / "marks.csv").write_text(MARKS + lines)
        with pytest.raises(BadTable, match=reason):
            neighbours_of(folder, cubes)
    (folder / "marks.csv").write_text("")
    with pytest.raises(BadTable, match="lacks the columns"):
        neighbours_of(folder, cubes)
