from pathlib import Path

import numpy as np
import pytest

from evaluation.accuracy.data import read_cubes
from evaluation.errors import BadTable, MissingData

INDEX = "split,row,patient,z,y,x,diameter_mm\n"


def write(folder: Path, index: str, ct: np.ndarray) -> Path:
    (folder / "index.csv").write_text(INDEX + index)
    np.savez_compressed(folder / "val.npz", ct=ct, votes=ct)
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
    assert (second.stated("z"), np.isnan(second.stated("patient"))) == (2.0, True)


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
