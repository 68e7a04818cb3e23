"""How much less ours asks than the best fixed threshold that finds as much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADLINE = "fibre"
"""The trace that stands for a link which carries what it should."""

BAR = 0.5
"""At most this part of the regions and of the bytes."""

CHOSEN, SINGLE = "fixed threshold", "fixed threshold, single"
"""The rows of what was chosen on validation to find as much as ours with no more false alarms."""

OURS, VERDICTS = "ours", "ours, verdicts only"
"""The agent as it is set, and the agent that has nothing described: fixed thresholds ask for
verdicts and nothing else."""

Row = Mapping[str, Any]


def escalation_ratio(rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Ours over fixed thresholds, for verdicts alone and with descriptions.

    For each of the two: the part of regions and of bytes over the headline's trace against the
    ``chosen`` pair, whether that is within the bar, and all of it by trace. ``chosen`` is a pair of
    thresholds chosen on validation studies, ``chosen_single`` a single one, from which on
    everything is asked about. ``hindsight`` and ``hindsight_single`` are the ones that ask least
    of all that were run and, over this trace, found as much as ours with no more false alarms:
    nobody could have known them. None where there is none.
    """
    headline = HEADLINE if HEADLINE in rows else next(iter(rows))
    parts = {"verdicts": VERDICTS, "described": OURS}
    return {
        "trace": headline,
        "bar": BAR,
        **{name: _of_kind(rows, kind, headline) for name, kind in parts.items()},
    }


def _of_kind(rows: Mapping[str, Sequence[Row]], kind: str, headline: str) -> dict[str, Any]:
    by_trace = {name: _of_trace(found, kind) for name, found in rows.items()}
    first = by_trace[headline]["chosen"] or {"rois": None, "bytes": None}
    parts = {key: first[key] for key in ("rois", "bytes")}
    met = all(part is not None and part <= BAR for part in parts.values())
    return {**parts, "met": met, "by_trace": by_trace}


def _of_trace(rows: Sequence[Row], kind: str) -> dict[str, dict[str, Any] | None]:
    ours = next((row for row in rows if row["kind"] == kind), None)
    fixed = [row for row in rows if row["kind"] == "fixed threshold"]
    single = [row for row in fixed if "single" in row["policy"]]
    return {
        "chosen": _against(ours, [row for row in fixed if row["policy"] == CHOSEN]),
        "chosen_single": _against(ours, [row for row in fixed if row["policy"] == SINGLE]),
        "hindsight": _against(ours, [row for row in fixed if _as_good(row, ours)]),
        "hindsight_single": _against(ours, [row for row in single if _as_good(row, ours)]),
    }


def _against(ours: Row | None, fixed: Sequence[Row]) -> dict[str, Any] | None:
    """Ours over the one that asks least."""
    if ours is None or not fixed:
        return None
    other = min(fixed, key=lambda row: row["rois_per_scan"])
    return {
        "rois": _ratio(ours["rois_per_scan"], other["rois_per_scan"]),
        "bytes": _ratio(ours["bytes_per_scan"], other["bytes_per_scan"]),
        "against": other["policy"],
        "as_good": _as_good(other, ours),
        "sensitivity": ours["sensitivity"],
        "sensitivity_against": other["sensitivity"],
    }


def _as_good(row: Row, ours: Row | None) -> bool:
    """Whether it finds as much with no more false alarms."""
    return ours is not None and bool(
        row["sensitivity"] >= ours["sensitivity"]
        and row["false_positives_per_scan"] <= ours["false_positives_per_scan"]
    )


def _ratio(part: float, whole: float) -> float | None:
    """None where the other asks nothing."""
    return part / whole if whole else None
