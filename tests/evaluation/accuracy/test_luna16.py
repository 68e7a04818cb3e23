from pathlib import Path

import pytest

from evaluation.accuracy.bootstrap import figures
from evaluation.accuracy.froc import froc, sensitivity_at
from evaluation.accuracy.luna16 import challenge, read_scan_list
from models.runtime.errors import BadTable


def test_published_result_is_reproduced(shared_data: Path) -> None:
    """DeepLung's candidates give the counts, the sensitivities and the CPM of its paper."""
    folder = shared_data / "luna16"
    scored, counts = challenge(
        folder / "deeplung_candidates.csv",
        folder / "annotations.csv",
        folder / "annotations_excluded.csv",
        folder / "seriesuids.csv",
    )
    assert counts == {"tp": 1136, "fn": 50, "fp": 46078, "ignored": 5308, "double": 186}
    sensitivity = sensitivity_at(froc(scored))
    assert sensitivity.round(4).tolist() == [0.6922, 0.769, 0.8238, 0.8651, 0.8929, 0.9174, 0.9334]
    assert round(float(sensitivity.mean()), 4) == 0.8420
    cpm = figures(scored)["cpm"]
    assert cpm["low"] < 0.8420 < cpm["high"]


HEAD = "seriesuid,coordX,coordY,coordZ,"

GOOD = {
    "candidates": HEAD + "probability\na,0,0,0,0.9\nb,5,5,5,0.4\n",
    "annotations": HEAD + "diameter_mm\na,1,0,0,6\n",
    "excluded": HEAD + "diameter_mm\n",
    "scans": "seriesuid\na\nb\n",
}


def write(folder: Path, **texts: str) -> dict[str, Path]:
    """The good tables but for these, in the order in which they are read."""
    for name, text in (GOOD | texts).items():
        (folder / name).write_text(text)
    return {name: folder / name for name in GOOD}


def test_a_scan_list_with_header_and_an_empty_exclusion_list_are_fine(tmp_path: Path) -> None:
    scored, counts = challenge(*write(tmp_path).values())
    assert counts == {"tp": 1, "fn": 0, "fp": 1, "ignored": 0, "double": 0}
    assert scored.scans == 2
    tables = write(tmp_path, scans="SeriesUID\na\nb\n")
    for table in tables.values():  # as spreadsheets save them
        table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert challenge(*tables.values())[1] == counts


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("candidates", "seriesuid,coordX,coordY,coordZ\na,0,0,0\n", r"lacks .*probability"),
        ("candidates", HEAD + "probability\na,0,0,0,nan\n", r"line 2: .*'nan' is not finite"),
        ("candidates", HEAD + "probability\na,0,x,0,1\n", r"coordY = 'x' is not a number"),
        ("candidates", HEAD + "probability\na,0,0,0,1\nc,0,0,0,1\n", r"line 3: scan 'c' is not"),
        ("candidates", HEAD + "probability\na,0,0,0,1,2\n", r"line 2: .* shorter or longer"),
        ("candidates", HEAD + "probability\n,0,0,0,1\n", r"column 'seriesuid' is empty"),
        ("annotations", HEAD + "diameter_mm\n", r"has no nodule"),
        ("annotations", HEAD + "diameter_mm\na,0,0,0,0\n", r"line 2: .* = 0, expected 0.1 to 300"),
        ("excluded", HEAD + "diameter_mm\na,0,0,0,-5\n", r"line 2: .* = -5, expected 0.1 to 300"),
        ("annotations", HEAD + "diameter_mm\n" + 2 * "a,0,0,0,6\n", r"'a' has two nodules at"),
        ("scans", "a\nb\na\n", r"lists scans twice: \['a'\]"),
        ("scans", "\n", r"lists no scan"),
        ("scans", "# mine\na\nb\n", r"'# mine', expected the name of a scan"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    paths = write(tmp_path, **{file: text})
    with pytest.raises(BadTable, match=message) as refused:
        challenge(*paths.values())
    assert refused.value.path == paths[file]


def test_a_binary_list_of_scans_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01" * 10)
    with pytest.raises(BadTable, match="cannot be read"):
        read_scan_list(tmp_path / "binary")
