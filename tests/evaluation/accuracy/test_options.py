from pathlib import Path

import pytest

from evaluation.accuracy.options import known_scans, sorted_arguments
from evaluation.accuracy.truth import Truth


def test_more_tables_may_follow_the_first_one() -> None:
    """As in ``--scans DIR DIR --marks CSV CSV``: what ends with .csv is a table."""
    first, scan, second = Path("one.csv"), Path("more/scan.nii.gz"), Path("two.CSV")
    scans, tables = sorted_arguments([Path("scans")], [scan, second], [first])
    assert scans == [Path("scans"), scan]
    assert tables == [first, second]
    assert sorted_arguments([scan], None, [first]) == ([scan], [first])


def test_scans_that_no_table_names_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    table = tmp_path / "marks.csv"
    table.write_text("scan,kind,x,y,z,diameter_mm\n")
    table.with_name("scans.csv").write_text("scan,role\na,val\n")
    folders, known = known_scans([tmp_path / "a"], [tmp_path / "b"], [table])
    assert folders == [tmp_path / "a", tmp_path / "b"]
    assert known == {"a": Truth(role="val")}
    assert f"{tmp_path / 'b'}: not in a table of marks" in capsys.readouterr().err
