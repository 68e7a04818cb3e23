from dataclasses import replace
from pathlib import Path

import pytest

from models.data.folder import Mark, marked_scans, read_marked, read_scans
from models.runtime.errors import BadTable, MissingData
from tests.evaluation.plain_chest import chest, in_lung, write_nifti

MARKS = "scan,kind,x,y,z,diameter_mm,source\n"


def write(data: Path, listing: str, marks: str = "", part: str = "lidc", index: str = "") -> Path:
    """A data folder with one part, and an index of cubes if one is given."""
    (data / part).mkdir(parents=True, exist_ok=True)
    (data / part / "scans.csv").write_text(listing)
    (data / part / "marks.csv").write_text(MARKS + marks)
    if index:
        (data / "nodules").mkdir(exist_ok=True)
        (data / "nodules" / "index.csv").write_text(index)
    return data


def test_scans_of_a_role_come_with_their_marks(tmp_path: Path) -> None:
    """One of two parts is enough; a scan with nodules by eye is not fully marked."""
    marks = "a,Nodule,1,2,3,-1,By_eye\nb,lesion,4,5,6,20,\nb,excluded,7,8,9,,\n\n"
    data = write(tmp_path, "scan,role\na,val\nb,VAL \nc,train\n", marks)
    (first, marks_of_a), (second, marks_of_b) = marked_scans(data, "val")
    assert (first, second) == (data / "lidc" / "a", data / "lidc" / "b")
    assert [(m.sphere, m.must_be_found) for m in marks_of_a] == [([1, 2, 3, 10], True)]
    assert [(m.sphere, m.must_be_found) for m in marks_of_b] == [
        ([4, 5, 6, 20], True), ([7, 8, 9, 10], False),
    ]  # fmt: skip
    assert [scan.name for scan, *_ in marked_scans(data, "val", fully=True)] == ["b"]
    with pytest.raises(MissingData, match="no scan has the role 'test'"):
        marked_scans(data, "test")
    with pytest.raises(MissingData, match="no scan has the role 'val'"):
        marked_scans(tmp_path / "empty", "val")


@pytest.mark.parametrize(
    ("listing", "marks", "reason"),
    [
        ("scan,role\na,validation\n", "", "line 2: role 'validation', expected one of train, val"),
        ("scan,role\na,val\na,test\n", "", "line 3: lists scan 'a' twice"),
        ("scan;role\na;val\n", "", r"lacks the columns \['scan', 'role'\]"),
        ("scan,role\na,val\n", "b,nodule,1,2,3,4,\n", "line 2: scan 'b' is not in scans.csv"),
        ("scan,role\na,val\n", 2 * "a,nodule,1,2,3,4,\n", "line 3: scan 'a' has two nodules"),
        ("scan,role\na,val\n", "a,nodul,1,2,3,4,\n", "line 2: kind 'nodul', expected"),
        ("scan,role\na,val\nb,\n", "", "line 3: role '', expected one of train, val, test"),
        ("scan\na\n", "", r"lacks the columns \['role'\]"),
        ("scan,role,Role\na,val,test\n", "", r"names columns twice: \['role'\]"),
        ("scan,role\n../a,val\n", "", "line 2: scan '../a', expected a name without a path"),
        ("scan,role\na,val\n", 'a,nodule,1,2,3,4,"x\n', "cannot be read as CSV .unexpected end"),
        ("scan,role,patient\na,val,p\nb,test,p\n", "", "line 3: patient 'p' is in 'test', else"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, listing: str, marks: str, reason: str) -> None:
    with pytest.raises(BadTable, match=reason):
        marked_scans(write(tmp_path, listing, marks), "val")


def test_no_patient_is_trained_on_and_measured_on(tmp_path: Path) -> None:
    """The splits of cubes and the roles of scans agree, those kept for calibration too."""
    listing = "scan,role,patient\na,train,p\n"
    for index in ("split,patient\nval,p\n", "split,patient,subset\ntrain,p,4\n"):
        data = write(tmp_path, listing, index=index)
        with pytest.raises(BadTable, match=r"scans.csv, line 2: patient 'p' is in 'train', else"):
            marked_scans(data, "train")
    data = write(tmp_path, listing, index="split,patient\ntrain,p\n")
    assert len(marked_scans(data, "train")) == 1
    write(data, " Scan,Role,Patient,\nb,val,P,\n", part="ct")
    with pytest.raises(BadTable, match=r"ct/scans.csv, line 2: patient 'P' is in 'val'"):
        marked_scans(data, "train")
    write(data, "scan,role\na,val\n", part="ct")
    with pytest.raises(BadTable, match=r"lidc/scans.csv: lists scans of ct too: \['a'\]"):
        marked_scans(data, "train")
    (data / "ct" / "scans.csv").unlink()
    with pytest.raises(BadTable, match=r"ct/scans.csv: cannot be read"):
        marked_scans(data, "train")


def test_a_nodule_outside_of_its_scan_is_refused(tmp_path: Path) -> None:
    """Places of RAS would be trained as lung."""
    write_nifti(chest(), tmp_path / "a.nii.gz")
    x, y, z = in_lung(0)
    inside = Mark("nodule", (x, y, z), 8.0, by_eye=False, line=2)
    _, nodules, ignored = read_marked(tmp_path / "a.nii.gz", [inside])
    assert (nodules.tolist(), len(ignored)) == ([[x, y, z, 8.0]], 0)
    with pytest.raises(MissingData, match=r"line 2 of marks.csv\) is outside of it; expected LPS"):
        read_marked(tmp_path / "a.nii.gz", [replace(inside, centre=(x, y, z + 1000))])
    excluded = replace(inside, kind="excluded", centre=(x, y, z + 1000))
    assert len(read_marked(tmp_path / "a.nii.gz", [excluded])[2]) == 1


def test_a_list_without_roles_may_name_the_scans_without_marks_alone(tmp_path: Path) -> None:
    data = write(tmp_path, "scan\nb\n", "a.nii.gz,nodule,1,2,3,4,\n")
    found = read_scans(data / "lidc" / "marks.csv")
    assert {name: (scan.file, len(scan.marks)) for name, scan in found.items()} == {
        "b": ("b", 0), "a": ("a.nii.gz", 1),
    }  # fmt: skip
