"""What pruning lost against the control, nodule by nodule, and the section of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.markdown import commands, table

CLAIM = {"share": 0.42, "points_lost": 1.2}
"""The published system: 42 % fewer parameters at no more than 1.2 points lost."""

RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)
RESAMPLES = 2000

TITLES = {
    "control": "none, fine-tuned as long",
    "weights": "single weights by importance",
    "channels": "whole channels",
    "dynamic": "dynamic sparse, from random masks",
    "dynamic-trained": "dynamic sparse, from the largest weights",
}

NOTE = (
    "Points lost are against the same start fine-tuned as long without pruning, on validation: "
    "whole cubes of {nodules} nodules and {scans} whole scan(s); one nodule is {one:.1f} points. "
    "Intervals are 95 % by bootstrap over the nodules, the scan's alarms as they are. Time is the "
    "median of {rounds} passes of {box} voxels on {engine} ({cpu}), each network in turn with the "
    "control; the engines multiply dense tensors, so zeros among the weights save them nothing."
)


def compared(found: Sequence[dict[str, Any]], times: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The runs with what each lost against the first, which is the control."""
    control = hits(found[0])
    rows = []
    for run, time in zip(found, times, strict=True):
        own = hits(run)
        gone = 1 - run["parameters"] / run["whole"]
        lost = {"cpm_lost": lost_points((control - own).mean(1)),
                "at_8_lost": lost_points((control - own)[:, -1])}  # fmt: skip
        shown = {key: value for key, value in run.items() if key not in ("found", "alarms")}
        rows.append({**shown, "gone": gone, **lost, **time})
    return {"nodules": len(control), "scans": found[0]["scans"], "claim": CLAIM, "runs": rows}


def hits(run: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Which nodules are above the threshold of each rate: 0 or 1, ``(nodules, rates)``."""
    ranked = np.sort(run["alarms"])[::-1]
    counts = [int(rate * run["scans"]) for rate in RATES]
    least = [ranked[n] if n < len(ranked) else -1e8 for n in counts]
    return np.asarray(np.array(run["found"])[:, None] > np.array(least), dtype=np.float64)


def lost_points(lost: npt.NDArray[np.float64]) -> dict[str, float]:
    """The mean of ``lost`` (nodules,) in points of a hundred, with its interval."""
    rng = np.random.default_rng(0)
    means = [lost[rng.integers(0, len(lost), len(lost))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": 100 * float(lost.mean()), "low": 100 * float(low), "high": 100 * float(high)}


def section(found: dict[str, Any]) -> str:
    """The page's section on pruning, from `pruning.json`; empty if it was not measured."""
    result = found.get("pruning")
    if result is None:
        return ""
    heads = ["what goes", "parameters gone", "CPM", "CPM points lost", "at 8", "points lost at 8",
             "GMAC", "INT8 ms", "to control", "FP32 ms", "to control"]  # fmt: skip
    rows = [_row(run) for run in result["runs"]]
    note = NOTE.format(
        nodules=result["nodules"], scans=result["scans"], one=100 / result["nodules"],
        rounds=result["rounds"], box="x".join(map(str, result["box"])), engine=result["engine"],
        cpu=result["cpu"],
    )  # fmt: skip
    head = f"## Pruning the screening network\n\n{result['minutes']:g} minutes of fine-tuning "
    head += f"for each. {note}\n\n{verdict(result)}\n\n"
    return head + table(heads, rows) + commands(found, "pruning")


def verdict(result: dict[str, Any]) -> str:
    """The published claim beside what each way loses at the share that it names."""
    claim = result["claim"]
    told = [
        f"{TITLES[run['way']]} {run['at_8_lost']['value']:.1f} (CPM {run['cpm_lost']['value']:.1f})"
        for run in result["runs"]
        if run["share"] == claim["share"]
    ]
    return (
        f"Published: {claim['share']:.0%} fewer parameters at no more than "
        f"{claim['points_lost']} points lost. Here, points lost at 8 false positives a scan at "
        f"that share: {'; '.join(told) or 'not measured'}."
    )


def _row(run: dict[str, Any]) -> list[str]:
    after = run["after"]
    return [
        TITLES[run["way"]], f"{run['gone']:.1%}", f"{after['cpm']:.3f}", _told(run["cpm_lost"]),
        f"{after['at_8']:.3f}", _told(run["at_8_lost"]), f"{run['multiply_adds'] / 1e9:.1f}",
        f"{run['int8_ms']:.0f}", f"{run['int8_ratio']:.2f}", f"{run['fp32_ms']:.0f}",
        f"{run['fp32_ratio']:.2f}",
    ]  # fmt: skip


def _told(lost: dict[str, float]) -> str:
    return f"{lost['value']:.1f} ({lost['low']:.1f} to {lost['high']:.1f})"
