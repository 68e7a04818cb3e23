"""The rules of LUNA16, on hand-made scans and on the challenge's own tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.bootstrap import figures
from evaluation.candidates import challenge, match_scan, read_scan_list
from evaluation.errors import BadTable
from evaluation.froc import froc, sensitivity_at

NONE = np.empty((0, 4))


def test_a_nodule_counts_once_at_its_highest_score() -> None:
    """Of three marks on one nodule the best counts and the other two are doubles."""
    marks = np.array([[0, 0, 0, 0.3], [1, 0, 0, 0.9], [0, 1, 0, 0.5], [50, 0, 0, 0.8]])
    found = match_scan(marks, np.array([[0, 0, 0, 6.0]]), NONE)
    assert found.nodule_score.tolist() == [0.9]
    assert found.false_score.tolist() == [0.8]
    assert (found.double, found.ignored) == (2, 0)


def test_half_the_diameter_is_outside() -> None:
    """A mark at exactly half the diameter misses."""
    found = match_scan(np.array([[3.0, 0, 0, 0.9]]), np.array([[0, 0, 0, 6.0]]), NONE)
    assert found.nodule_score.tolist() == [-np.inf]
    assert found.false_score.tolist() == [0.9]


def test_excluded_findings_are_ignored_but_hits_come_first() -> None:
    """A mark on nodule and excluded finding is a hit; unknown diameters reach 5 mm."""
    marks = np.array([[0, 0, 0, 0.9], [15.1, 0, 0, 0.8], [25.0, 0, 0, 0.7]])
    excluded = np.array([[0, 0, 0, 20.0], [20.0, 0, 0, -1.0]])
    found = match_scan(marks, np.array([[0, 0, 0, 6.0]]), excluded)
    assert found.nodule_score.tolist() == [0.9]
    assert found.false_score.tolist() == [0.7]
    assert (found.double, found.ignored) == (0, 1)


def test_only_the_hundred_best_of_a_scan_count() -> None:
    """The 101st candidate by score is dropped, even if it hits."""
    score = np.linspace(1.0, 0.5, 101)
    marks = np.stack([np.arange(101) * 10.0 + 100, np.zeros(101), np.zeros(101), score], axis=1)
    marks[100, 0] = 0
    found = match_scan(marks, np.array([[0, 0, 0, 6.0]]), NONE)
    assert found.nodule_score.tolist() == [-np.inf]
    assert found.false_score.size == 100


def test_scan_without_candidates() -> None:
    """A scan in which nothing was marked misses all of its nodules."""
    found = match_scan(NONE, np.array([[0, 0, 0, 6.0], [9, 9, 9, 4.0]]), NONE)
    assert found.nodule_score.tolist() == [-np.inf, -np.inf]
    assert found.false_score.size == 0


def test_published_result_is_reproduced(shared_data: Path) -> None:
    """DeepLung's candidates give the counts, the sensitivities and the CPM of its paper."""
    folder = shared_data / "luna16"
    found = challenge(
        folder / "deeplung_candidates.csv",
        folder / "annotations.csv",
        folder / "annotations_excluded.csv",
        folder / "seriesuids.csv",
    )
    assert found.counts == {"tp": 1136, "fn": 50, "fp": 46078, "ignored": 5308, "double": 186}
    sensitivity = sensitivity_at(froc(found.scored))
    assert sensitivity.round(4).tolist() == [0.6922, 0.769, 0.8238, 0.8651, 0.8929, 0.9174, 0.9334]
    assert round(float(sensitivity.mean()), 4) == 0.8420
    intervals = figures(found.scored, resamples=50)
    assert intervals.cpm.low < 0.8420 < intervals.cpm.high


Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a small file and gives its path."""

    def to(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return to


HEAD = "seriesuid,coordX,coordY,coordZ,"
GOOD = {
    "candidates": HEAD + "probability\na,0,0,0,0.9\nb,5,5,5,0.4\n",
    "annotations": HEAD + "diameter_mm\na,1,0,0,6\n",
    "excluded": HEAD + "diameter_mm\n",
    "scans": "seriesuid\na\nb\n",
}


def test_a_scan_list_with_header_and_an_empty_exclusion_list_are_fine(write: Write) -> None:
    """Headers of the scan list are no scan, and nothing needs to be excluded."""
    found = challenge(*(write(name, text) for name, text in GOOD.items()))
    assert found.counts == {"tp": 1, "fn": 0, "fp": 1, "ignored": 0, "double": 0}
    assert found.scored.scans == 2


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("candidates", "seriesuid,coordX,coordY,coordZ\na,0,0,0\n", r"lacks .*probability"),
        ("candidates", HEAD + "probability\na,0,0,0,nan\n", r"line 2: .*'nan' is not finite"),
        ("candidates", HEAD + "probability\na,0,x,0,1\n", r"coordY = 'x' is not a number"),
        ("candidates", HEAD + "probability\na,0,0,0,1\nc,0,0,0,1\n", r"line 3: scan 'c' is not"),
        ("candidates", HEAD + "probability\na,0,0,0\n", r"line 2: has another number of values"),
        ("candidates", HEAD + "probability\na,0,0,0,1,2\n", r"has another number of values"),
        ("candidates", HEAD + "probability\n,0,0,0,1\n", r"column 'seriesuid' is empty"),
        ("annotations", HEAD + "diameter_mm\n", r"holds no nodule"),
        ("annotations", "", r"lacks the columns"),
        ("annotations", HEAD + "diameter_mm\na,0,0,0,\n", r"diameter_mm = '' is not a number"),
        ("scans", "a\nb\na\n", r"lists scans twice: \['a'\]"),
        ("scans", "\n", r"lists no scan"),
    ],
)
def test_bad_tables_are_named(write: Write, file: str, text: str, message: str) -> None:
    """Whatever is wrong with a table is refused with its path, its line and the reason."""
    paths = {name: write(name, text) for name, text in (GOOD | {file: text}).items()}
    with pytest.raises(BadTable, match=message) as refused:
        challenge(*paths.values())
    assert refused.value.path == paths[file]


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    """A file that is not there or is no text is a typed refusal, not a stack trace."""
    with pytest.raises(BadTable, match="cannot be read"):
        read_scan_list(tmp_path / "nowhere.csv")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01" * 10)
    with pytest.raises(BadTable, match="cannot be read"):
        challenge(*[tmp_path / "binary"] * 4)
