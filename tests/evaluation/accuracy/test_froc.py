from pathlib import Path

import numpy as np
import pytest

from evaluation.accuracy.bootstrap import figures
from evaluation.accuracy.froc import (
    Scored,
    challenge,
    false_positives_at,
    froc,
    match_scan,
    read_scan_list,
    sensitivity_at,
    threshold_at,
    threshold_within,
    weighted_froc,
)
from evaluation.errors import BadTable


def make(nodules: list[float], false: list[float], scan: list[int], scans: int) -> Scored:
    """Each nodule of a patient of its own."""
    group = np.arange(len(nodules))
    scan_of = np.array(scan, dtype=np.int64)
    return Scored(np.array(nodules), group, np.array(false, float), scan_of, scans, False)


# Two scans, four nodules. By falling score: N .9, F .8, N .7, F .6, F .6, N .5; one never found.
FOUR = make([0.9, 0.7, 0.5, -np.inf], [0.8, 0.6, 0.6], [0, 0, 1], 2)


def test_curve_lists_every_threshold() -> None:
    """Sensitivities and false positives are those of a threshold that there is."""
    curve = froc(FOUR)
    assert curve.threshold.tolist() == [np.inf, 0.9, 0.8, 0.7, 0.6, 0.5]
    assert curve.sensitivity.tolist() == [0, 0.25, 0.25, 0.5, 0.5, 0.75]
    assert curve.false_per_scan.tolist() == [0, 0, 0.5, 0.5, 1.5, 1.5]
    rates = (0.125, 0.5, 1.0, 1.5, 8.0)
    assert sensitivity_at(curve, rates).tolist() == [0.25, 0.5, 0.5, 0.75, 0.75]
    assert threshold_within(curve, (0.125, 0.5, 8.0)).tolist() == [0.9, 0.7, 0.5]
    assert false_positives_at(curve, (0.25, 0.5, 0.75, 0.9)).tolist() == [0, 0.5, 1.5, np.inf]
    assert threshold_at(curve, (0.5, 0.9)).tolist() == [0.7, -np.inf]


@pytest.mark.parametrize(
    ("nodules", "false", "found", "false_at_all"),
    [([0.5], [0.5], [0.0, 1.0], 1.0), ([0.9, 0.1], [], [1.0, 1.0], 0.0),
     ([-np.inf], [0.9], [0.0, 0.0], np.inf)],
    ids=["a tied pair is taken together", "without false positives", "nothing is found"],
)  # fmt: skip
def test_ends_of_a_curve(
    nodules: list[float], false: list[float], found: list[float], false_at_all: float
) -> None:
    curve = froc(make(nodules, false, [0] * len(false), 1))
    assert sensitivity_at(curve, (0.5, 1.0)).tolist() == found
    assert sensitivity_at(curve)[[0, -1]].tolist() == found
    assert false_positives_at(curve, (1.0,)).tolist() == [false_at_all]


def test_weights_count_nodules_and_scans_several_times() -> None:
    """A scan drawn twice pays twice for its false positives, one not drawn pays nothing."""
    weights = np.array([2.0, 0.0, 1.0, 1.0]), np.array([0.0, 2.0])
    curve = weighted_froc(FOUR, *weights)
    assert curve.sensitivity.tolist() == [0, 0.5, 0.5, 0.5, 0.5, 0.75]
    assert curve.false_per_scan.tolist() == [0, 0, 0, 0, 1, 1]


def test_weights_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to count"):
        weighted_froc(FOUR, np.zeros(4), np.ones(2))


@pytest.mark.parametrize(
    ("nodules", "false", "scan", "scans"),
    [
        ([], [0.5], [0], 1),
        ([np.nan], [0.5], [0], 1),
        ([0.5], [np.inf], [0], 1),
        ([0.5], [0.5], [1], 1),
        ([0.5], [0.5], [0, 0], 1),
    ],
)
def test_scores_that_make_no_curve_are_refused(
    nodules: list[float], false: list[float], scan: list[int], scans: int
) -> None:
    with pytest.raises(ValueError, match=r"score|scan"):
        make(nodules, false, scan, scans)


NONE = np.empty((0, 4))
NODULE = np.array([[0, 0, 0, 6.0]])


@pytest.mark.parametrize(
    ("points", "excluded", "score", "false", "double", "ignored"),
    [
        ([[0, 0, 0, 0.3], [1, 0, 0, 0.9], [0, 1, 0, 0.5], [50, 0, 0, 0.8]], NONE, 0.9, [0.8], 2, 0),
        ([[3.0, 0, 0, 0.9]], NONE, -np.inf, [0.9], 0, 0),
        ([[0, 0, 0, 0.9], [15.1, 0, 0, 0.8], [25.0, 0, 0, 0.7]],
         np.array([[0, 0, 0, 20.0], [20.0, 0, 0, -1.0]]), 0.9, [0.7], 0, 1),
        (NONE, NONE, -np.inf, [], 0, 0),
    ],
    ids=["the best of three hits", "half the diameter is outside", "excluded", "no candidates"],
)  # fmt: skip
def test_a_nodule_counts_once_at_its_highest_score(
    points: list[list[float]], excluded: np.ndarray, score: float, false: list[float],
    double: int, ignored: int,
) -> None:  # fmt: skip
    """A mark on nodule and excluded finding is a hit; unknown diameters reach 5 mm."""
    nodule_score, false_score, *counts = match_scan(np.array(points), NODULE, excluded)
    assert nodule_score.tolist() == [score]
    assert false_score.tolist() == false
    assert counts == [ignored, double]


def test_only_the_hundred_best_of_a_scan_count() -> None:
    score = np.linspace(1.0, 0.5, 101)
    points = np.stack([np.arange(101) * 10.0 + 100, np.zeros(101), np.zeros(101), score], axis=1)
    points[100, 0] = 0
    nodule_score, false_score, *_ = match_scan(points, NODULE, NONE)
    assert nodule_score.tolist() == [-np.inf]
    assert false_score.size == 100


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
    intervals = figures(scored, resamples=50)
    assert intervals.cpm.low < 0.8420 < intervals.cpm.high


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


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("candidates", "seriesuid,coordX,coordY,coordZ\na,0,0,0\n", r"lacks .*probability"),
        ("candidates", HEAD + "probability\na,0,0,0,nan\n", r"line 2: .*'nan' is not finite"),
        ("candidates", HEAD + "probability\na,0,x,0,1\n", r"coordY = 'x' is not a number"),
        ("candidates", HEAD + "probability\na,0,0,0,1\nc,0,0,0,1\n", r"line 3: scan 'c' is not"),
        ("candidates", HEAD + "probability\na,0,0,0\n", r"line 2: the row is shorter or longer"),
        ("candidates", HEAD + "probability\na,0,0,0,1,2\n", r"is shorter or longer"),
        ("candidates", HEAD + "probability\n,0,0,0,1\n", r"column 'seriesuid' is empty"),
        ("annotations", HEAD + "diameter_mm\n", r"has no nodule"),
        ("annotations", "", r"lacks the columns"),
        ("annotations", HEAD + "diameter_mm\na,0,0,0,\n", r"diameter_mm = '' is not a number"),
        ("scans", "a\nb\na\n", r"lists scans twice: \['a'\]"),
        ("scans", "\n", r"lists no scan"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    paths = write(tmp_path, **{file: text})
    with pytest.raises(BadTable, match=message) as refused:
        challenge(*paths.values())
    assert refused.value.path == paths[file]


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTable, match="cannot be read"):
        read_scan_list(tmp_path / "nowhere.csv")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01" * 10)
    with pytest.raises(BadTable, match="cannot be read"):
        challenge(*[tmp_path / "binary"] * 4)
