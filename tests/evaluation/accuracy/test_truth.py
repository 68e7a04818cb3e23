from pathlib import Path

import pytest

from evaluation.accuracy.truth import Lesion, Truth, read_truth, scan_name, score_scan, truth_of
from imaging.volume import Nodule
from models.runtime.errors import BadTable


def test_a_lesion_is_hit_within_half_its_diameter() -> None:
    lesion = Lesion((0.0, 0.0, 0.0), 30.0)
    assert lesion.hit_by((14.9, 0, 0))
    assert not lesion.hit_by((15.0, 0, 0))


def test_detections_are_sorted_into_hits_and_false() -> None:
    """The best hit scores for the lesion; ignored lesions count neither way."""
    lesion = Lesion((0.0, 0.0, 0.0), 20.0)
    detections = [
        ((9.0, 0.0, 0.0), 0.6),
        ((0.0, 9.0, 0.0), 0.7),
        ((12.0, 0.0, 0.0), 0.99),
        ((13.5, 0.0, 0.0), 0.5),
        ((99.0, 0.0, 0.0), 0.2),
    ]
    scores = score_scan(detections, Truth((lesion,)))
    assert (scores.lesion_score.tolist(), scores.found) == ([0.7], 1)
    assert scores.false_score.tolist() == [0.99, 0.5, 0.2]
    ignored = score_scan([((1.0, 0.0, 0.0), 0.9)], Truth(ignored=(lesion,)))
    assert ignored.lesion_score.size == ignored.false_score.size == 0


def test_nodules_of_phantoms_count_from_five_millimetres() -> None:
    large = Nodule((1.0, 2.0, 3.0), 5.0, "solid")
    truth = truth_of([large, Nodule((9.0, 9.0, 9.0), 4.9, "solid")])
    assert truth.lesions == (Lesion((1.0, 2.0, 3.0), 5.0),)
    assert truth.ignored == (Lesion((9.0, 9.0, 9.0), 10.0),)


MARKS = "scan,kind,x,y,z,diameter_mm,source\n"


def marks(folder: Path, text: str, listing: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "marks.csv").write_text(MARKS + text)
    if listing:
        (folder / "scans.csv").write_text(listing)
    return folder / "marks.csv"


def test_nodules_and_lesions_must_be_found_and_doubtful_places_count_neither_way(
    tmp_path: Path,
) -> None:
    """A diameter of -1 is not known, an empty one neither: 5 mm around are ignored."""
    lines = ["nodule,1,2,3,8", "Lesion,-40,5,6,20", "excluded,7,8,9,-1", "doubtful,90,11,12,"]
    text = "".join(f"a,{line},the collection\n" for line in lines)
    truth = read_truth(marks(tmp_path, text))["a"]
    assert truth.lesions == (Lesion((1.0, 2.0, 3.0), 8.0), Lesion((-40.0, 5.0, 6.0), 20.0))
    assert truth.ignored == (Lesion((7.0, 8.0, 9.0), -1.0), Lesion((90.0, 11.0, 12.0), -1.0))
    assert not truth.is_false((7.0, 8.0, 13.9))
    assert truth.is_false((7.0, 8.0, 14.0))
    assert truth.is_false((1.0, -4.9, 3.0))
    assert not truth.is_false((1.0, -1.9, 3.0))


def test_a_nodule_seen_by_eye_counts_neither_way_and_its_scan_is_not_fully_marked(
    tmp_path: Path,
) -> None:
    """The collection's lesion still counts. A doubtful place by eye leaves a scan fully marked."""
    lines = ["a,lesion,0,0,0,20,the collection", "a,nodule,1,2,99,8,By eye ",
             "b,lesion,0,0,0,20,the collection", "b,doubtful,1,2,99,8,by eye",
             "c,nodule,0,0,0,20,"]  # fmt: skip
    known = read_truth(marks(tmp_path, "\n".join(lines) + "\n"))
    assert known["a"].lesions == (Lesion((0.0, 0.0, 0.0), 20.0),)
    assert not known["a"].is_false((1.0, 2.0, 98.0))
    assert [one.fully_marked for one in known.values()] == [False, True, True]
    assert [bool(one.by_eye) for one in known.values()] == [True, True, False]


def test_false_positives_of_a_patient_with_metastases_are_not_counted(shared_data: Path) -> None:
    """Seven lesions were seen in `cmb_crc_01068`, its collection marks one."""
    known = read_truth(shared_data / "ct/marks.csv", shared_data / "lidc/marks.csv")
    assert len(known["cmb_crc_01068"].lesions) == 1
    tests = {name for name, truth in known.items() if truth.role == "test"}
    assert {name for name in tests if not known[name].fully_marked} == {"cmb_crc_01068"}
    independent = {name for name in tests if not known[name].by_eye}
    assert independent == {"lidc_0001", "lidc_0003", "lidc_0295"}


def test_the_listing_beside_the_marks_names_scans_without_nodules(tmp_path: Path) -> None:
    """Several tables are one truth, and roles are those of the lists of scans."""
    first = marks(tmp_path / "one", "a,nodule,1,2,3,8,\n", "scan,role\na,val\nb,test\n")
    second = marks(tmp_path / "two", "c,nodule,1,2,3,8,\n")
    known = read_truth(first, second)
    assert {name: truth.role for name, truth in known.items()} == {"a": "val", "b": "test", "c": ""}
    assert known["b"] == Truth(role="test")


@pytest.mark.parametrize("row", ["a,nodule,1,2,3,0,", "a,excluded,1,2,3,-4,"])
def test_a_diameter_that_cannot_be_is_refused_with_its_line(tmp_path: Path, row: str) -> None:
    with pytest.raises(BadTable, match=r"line 2.*-1 if it is not known"):
        read_truth(marks(tmp_path, row + "\n"))


def test_a_table_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    """Each nodule would count twice."""
    path = marks(tmp_path, "a,nodule,1,2,3,8,\n")
    near = marks(tmp_path / "near", "a,nodule,1.3,2,3,8,\n")
    for second in (path, near):
        with pytest.raises(BadTable, match="2: scan 'a', with the tables before, has two"):
            read_truth(path, second)
    seen = marks(tmp_path / "seen", "a,nodule,1,2,3,8,by-eye\n")
    for tables in ((path, seen), (seen, path)):
        assert (len(read_truth(*tables)["a"].lesions), len(read_truth(*tables)["a"].ignored)) == (
            1,
            1,
        )


def test_two_roles_of_one_scan_are_refused(tmp_path: Path) -> None:
    first = marks(tmp_path / "one", "", "scan,role\na,val\n")
    second = marks(tmp_path / "two", "", "scan,role\na,train\n")
    with pytest.raises(BadTable, match="'a' has the role 'train', elsewhere 'val'"):
        read_truth(first, second)


def test_volumes_are_named_without_their_suffix(tmp_path: Path) -> None:
    known = read_truth(marks(tmp_path, "a.nii.gz,nodule,1,2,3,8,\n1.3.6,nodule,1,2,3,8,\n"))
    assert list(known) == ["a", "1.3.6"]
    for name in ("a.nii.gz", "1.3.6.mhd"):
        (tmp_path / name).write_text("")
        assert scan_name(tmp_path / name) in known
