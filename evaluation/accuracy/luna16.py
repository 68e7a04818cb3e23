"""``overread-eval froc``: candidates of LUNA16 in the files of the challenge, by its rules."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from evaluation.accuracy.bootstrap import figures
from evaluation.accuracy.froc import Scored, match_scan
from evaluation.accuracy.options import csv_option
from evaluation.run import Table, command
from imaging.volume import FloatArray
from models.data.tables import read_table
from models.runtime.errors import BadTable

_PLACE = ("coordX", "coordY", "coordZ")

SCORE, SIZE = "probability", "diameter_mm"
"""The last column of candidates, and of nodules."""

COUNTS = {
    "tp": "true positives", "fn": "false negatives", "fp": "false positives",
    "ignored": "ignored", "double": "double",
}  # fmt: skip


@command(
    Table(
        "sensitivity",
        {"false_positives_per_scan": ("false positives a scan", "{:g}"),
         "value": ("sensitivity", "{:.4f}"), "low": ("from", "{:.3f}"), "high": ("to", "{:.3f}")},
        title="FROC on {scans} scans, 95 % intervals",
    ),
    Table("counts", COUNTS, lambda result: [result]),
    lambda result: [f"CPM {result['cpm']['value']:.4f}"],
)  # fmt: skip
def froc(
    candidates: Annotated[Path, csv_option("Scored candidates, in the format of LUNA16.")],
    annotations: Annotated[Path, csv_option("Nodules, in the format of LUNA16.")],
    excluded: Annotated[Path, csv_option("Findings that do not count, in that format.")],
    scans: Annotated[Path, csv_option("Scans that count, one a line.")],
) -> dict[str, Any]:
    """FROC and CPM of a file of candidates under the rules of LUNA16."""
    scored, counts = challenge(candidates, annotations, excluded, scans)
    return {**figures(scored), **counts, "scans": scored.scans}


def challenge(
    candidates: Path, annotations: Path, excluded: Path, scans: Path
) -> tuple[Scored, dict[str, int]]:
    """Match four CSV files by the rules; return the scores, and counts at the lowest threshold."""
    listed = read_scan_list(scans)
    proposed, nodules, ignore = (
        _by_scan(path, last, listed)
        for path, last in ((candidates, SCORE), (annotations, SIZE), (excluded, SIZE))
    )
    for uid, marks in zip(listed, nodules, strict=True):
        if len(np.unique(marks[:, :3], axis=0)) < len(marks):
            raise BadTable(annotations, f"scan {uid!r} has two nodules at one place")
    if not any(len(found) for found in nodules):
        raise BadTable(annotations, "has no nodule")
    matched = map(match_scan, proposed, nodules, ignore)
    scores, false_scores, ignored, double = zip(*matched, strict=True)
    scan = np.repeat(np.arange(len(scores)), [one.size for one in scores])
    scored = Scored.of(np.concatenate(scores), scan, false_scores, paired=True)
    hits = int(np.isfinite(scored.nodule_score).sum())
    counts = {
        "tp": hits,
        "fn": scored.nodule_score.size - hits,
        "fp": scored.false_score.size,
        "ignored": sum(ignored),
        "double": sum(double),
    }
    return scored, counts


def read_scan_list(path: Path) -> list[str]:
    """Read the scans that a file lists, one a line, with or without the header ``seriesuid``."""
    try:
        lines = [line.strip().rstrip(",") for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadTable(path, f"cannot be read ({error})") from error
    listed = [line for line in lines if line]
    if listed and listed[0].lower().replace("_", "") == "seriesuid":
        del listed[0]
    if odd := [line for line in listed if line.startswith("#") or "," in line]:
        raise BadTable(path, f"{odd[0]!r}, expected the name of a scan")
    twice = [uid for uid, times in Counter(listed).items() if times > 1]
    if not listed or twice:
        raise BadTable(path, f"lists scans twice: {twice}" if twice else "lists no scan")
    return listed


def _by_scan(path: Path, last: str, listed: list[str]) -> list[FloatArray]:
    table = read_table(path, ("seriesuid", *_PLACE, last))
    of_last = table.diameters if last == SIZE else table.numbers
    values = np.stack([*map(table.numbers, _PLACE), of_last(last)], axis=1)
    number = {uid: i for i, uid in enumerate(listed)}
    uids = table.text("seriesuid")
    for uid, line in zip(uids, table.lines, strict=True):
        if uid not in number:
            raise BadTable(path, f"scan {uid!r} is not in the list of scans", line)
    scan = np.array([number[uid] for uid in uids], dtype=np.int64)
    order = np.argsort(scan, kind="stable")
    starts = np.searchsorted(scan[order], np.arange(1, len(listed)))
    return np.split(values[order], starts)
