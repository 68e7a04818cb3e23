"""How much less ours asks than each kind of opponent, and whether that is at most half.

Fixed thresholds may mean three things: a single one, from which on the cloud's word decides; a
pair, asked between and reported above; and a cut on the edge's own score, which asks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADLINE = "fibre"
"""The trace that stands for a link which carries what it should."""

BAR = 0.5
"""At most this part of the regions and of the bytes."""

FIXED, PAIR, TUNED = "fixed threshold", "fixed pair", "edge only, tuned"
"""What was chosen on validation to find as much as ours with no more false alarms."""

HINDSIGHT = "fixed threshold, in hindsight"
"""The single threshold that is chosen on the test itself."""

ENTROPY = "Sedna entropy"

OURS, VERDICTS = "ours", "ours, verdicts only"
"""The agent as it is set, and the agent that has nothing described: fixed thresholds ask for
verdicts and nothing else."""

OPPONENTS = {
    "single": FIXED, "pair": PAIR, "cut": TUNED, "sedna": ENTROPY, "hindsight": HINDSIGHT
}  # fmt: skip
"""The rows that ours is held against; the first is the headline."""

Row = Mapping[str, Any]


def escalation_ratio(rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Ours over each opponent, for verdicts alone and with descriptions.

    For each of the two, by trace and opponent: the parts of ``rois`` and of ``bytes``, None where
    the opponent asks nothing; whether either asks at all; whether the opponent is ``as_good``,
    finds as much with no more false alarms there; and whether the bar is ``met``. An opponent
    that did not run is None.
    """
    return {
        "trace": HEADLINE if HEADLINE in rows else next(iter(rows)),
        "bar": BAR,
        **{
            name: {trace: _of_trace(found, ours) for trace, found in rows.items()}
            for name, ours in (("verdicts", VERDICTS), ("described", OURS))
        },
    }


def _of_trace(rows: Sequence[Row], name: str) -> dict[str, dict[str, Any] | None]:
    by_name = {row["policy"]: row for row in rows}
    return {
        key: _against(by_name[name], by_name[other])
        if name in by_name and other in by_name
        else None
        for key, other in OPPONENTS.items()
    }


def _against(ours: Row, other: Row) -> dict[str, Any]:
    parts = {key: _part(ours[f"{key}_per_scan"], other[f"{key}_per_scan"])
             for key in ("rois", "bytes")}  # fmt: skip
    return {
        **parts,
        "met": all(part is not None and part <= BAR for part in parts.values()),
        "as_good": bool(
            other["sensitivity"] >= ours["sensitivity"]
            and other["false_positives_per_scan"] <= ours["false_positives_per_scan"]
        ),
        "asks": other["rois_per_scan"] > 0,
        "ours_asks": ours["rois_per_scan"] > 0,
    }


def _part(part: float, whole: float) -> float | None:
    """None where the other asks nothing."""
    return part / whole if whole else None
