from pathlib import Path

import pytest

from evaluation.accuracy.options import marked_scans, scan_folders
from evaluation.accuracy.truth import Truth, scan_name
from evaluation.errors import EvaluationError
from models.runtime.errors import MissingData

MARKS = "scan,kind,x,y,z,diameter_mm,source\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Marks beside four scans of three roles; all nodules of ``b`` were seen by eye."""
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.dcm").write_text("")
    (tmp_path / "readme.txt").write_text("")
    listing = "scan,role\na,test\nb,test\nc,val\nd,\n"
    (tmp_path / "scans.csv").write_text(listing)
    marks = tmp_path / "marks.csv"
    marks.write_text(MARKS + "a,lesion,1,2,3,20,the collection\nb,nodule,1,2,3,8,by eye\n")
    return marks


def test_scans_that_are_not_fully_marked_are_left_out(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, known = marked_scans([table.parent], None, [table])
    assert [scan_name(one) for one in folders] == ["a", "c", "d"]
    assert known["c"] == Truth(role="val")
    assert "left out, not fully marked: b" in capsys.readouterr().err
    with pytest.raises(EvaluationError, match="seen by eye"):
        marked_scans([table.parent / "b"], None, [table])


def test_roles_choose_the_scans(table: Path) -> None:
    """A scan without a role is not excluded; that none is left is an error."""
    folders, _ = marked_scans([table.parent], None, [table], ("val",))
    assert [scan_name(one) for one in folders] == ["c", "d"]
    with pytest.raises(EvaluationError, match=r"val.*\['test'\]"):
        marked_scans([table.parent / "a"], None, [table], ("val",))


def test_more_scans_and_more_tables_may_follow(table: Path, tmp_path: Path) -> None:
    """As in ``--scans DIR DIR --marks CSV CSV``: what ends with .csv is a table."""
    more = tmp_path / "more" / "marks.CSV"
    (tmp_path / "more" / "e").mkdir(parents=True)
    more.write_text(MARKS + "e,nodule,1,2,3,8,\n")
    scan = tmp_path / "more" / "e"
    folders, known = marked_scans([tmp_path / "a"], [scan, more], [table])
    assert folders == [tmp_path / "a", scan]
    assert set(known) == {"a", "b", "c", "d", "e"}


def test_a_folder_has_the_scans_that_the_tables_name(tmp_path: Path) -> None:
    for name in ("set/a", "set/b", "set/other", "c"):
        (tmp_path / name).mkdir(parents=True)
    folders = scan_folders([tmp_path / "set", tmp_path / "c"], {"a", "b", "c"}, tmp_path)
    assert [scan_name(folder) for folder in folders] == ["a", "b", "c"]
    for name in ("1.3.6.mhd", "1.3.6.raw", "d.nii.gz"):
        (tmp_path / "set" / name).write_text("")
    folders = scan_folders([tmp_path / "set"], {"1.3.6", "d"}, tmp_path)
    assert [scan_name(one) for one in folders] == ["1.3.6", "d"]


def test_missing_and_duplicated_scans_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="no such scan"):
        scan_folders([tmp_path / "nowhere"], set(), tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(MissingData, match="two scans"):
        scan_folders([tmp_path / "a", tmp_path / "a"], {"a"}, tmp_path)


def test_a_scan_that_no_table_names_is_refused(table: Path) -> None:
    """Given by itself or in a folder of scans. Other files are no scans."""
    folder = table.parent
    for given in ([folder], [folder / "b"]):
        with pytest.raises(MissingData, match=r"no scan 'b': .*list it in .*scans.csv, column"):
            scan_folders(given, {"a", "c", "d"}, table)
