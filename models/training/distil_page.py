"""The comparison of distillation as Markdown, from its JSON; it adds no number of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.markdown import commands, table

NAMES = {
    "none": "no teacher",
    "single": "best single teacher",
    "mean": "fixed mean of all",
    "dynamic": "dynamic weights",
}

HEADS = {
    "at_0.5": "at 1/2", "at_1": "at 1", "at_2": "at 2", "at_4": "at 4", "mean": "mean", "auc": "AUC"
}  # fmt: skip


def section(found: Mapping[str, Any]) -> str:
    """The section of the page; empty where `distillation` was not measured."""
    result = found.get("distillation")
    if result is None:
        return ""
    parts = [_head(result), _teachers(result), _arms(result), _gained(result), _caveats(result)]
    return "\n".join(parts) + commands(found, "distillation")


def _head(result: Mapping[str, Any]) -> str:
    pool = result["pool"]
    return (
        "## Distillation\n\n"
        f"Students are the screening network from one early checkpoint; each takes "
        f"{result['steps']} steps of {result['batch']} regions out of {pool['learnt']} "
        f"({result['seeds']} seeds an arm, the same regions seed for seed). Judged on regions of "
        f"{pool['val_nodules']} validation nodules of {pool['val_patients']} patients against "
        f"{pool['val_scan_alarms']} false alarms of {_scans(pool['val_scans'])}: sensitivity in % "
        f"at so many false positives a scan, and their mean. The AUC counts "
        f"{pool['val_cube_alarms']} false alarms beside validation nodules as well.\n"
    )


def _teachers(result: Mapping[str, Any]) -> str:
    rows = [
        [t["name"], *_percents(t["figures"]), f"{t['temperature']:.2f}",
         f"{t['held_out_loss']:.3f}", f"{100 * t['mean_weight']:.0f}", f"{100 * t['first']:.0f}"]
        for t in result["teachers"]
    ]  # fmt: skip
    heads = ["teacher", *HEADS.values(), "temperature", "log loss", "mean weight, %", "largest, %"]
    return table(heads, rows)


def _arms(result: Mapping[str, Any]) -> str:
    rows = [["before any step", *_percents(result["at_start"])]]
    for arm, figures in result["arms"].items():
        spread = [f"{100 * figures[n]['mean']:.1f} ± {100 * figures[n]['sd']:.1f}" for n in HEADS]
        rows.append([NAMES[arm], *spread])
    return table(["student", *HEADS.values()], rows)


def _gained(result: Mapping[str, Any]) -> str:
    rows = [
        [NAMES[arm], *(_interval(gained[name]) for name in HEADS)]
        for arm, gained in result["gained"].items()
    ]
    rows.append(["published claim", *[""] * 4, f"{result['claim_points']:+.1f}", ""])
    return "Points over no teacher (95 % interval):\n\n" + table(["", *HEADS.values()], rows)


def _caveats(result: Mapping[str, Any]) -> str:
    held = result["pool"]["held_out"]
    return (
        "What was published as dynamic weights is one mean of the teachers' distributions, and "
        "weighs nothing: it is the fixed mean here. Dynamic weights are one for each teacher and "
        "each sample (`models/training/distil_weights.py` has the formula). The claim does not "
        "say of which figure it speaks. The intervals draw seeds, "
        "patients and alarms anew. The best single teacher "
        f"({result['best_single']}) is the one with the least log loss on {held} regions that "
        "students do not learn from; these are of training patients, whom the teachers have seen. "
        "Each teacher's temperature, one number, is fitted on the validation regions that students "
        "are judged on.\n"
    )


def _scans(count: int) -> str:
    return "one whole scan" if count == 1 else f"{count} whole scans"


def _percents(figures: Mapping[str, float]) -> list[str]:
    return [f"{100 * figures[name]:.1f}" for name in HEADS]


def _interval(gain: Mapping[str, float]) -> str:
    return f"{gain['points']:+.1f} ({gain['low']:+.1f} to {gain['high']:+.1f})"
