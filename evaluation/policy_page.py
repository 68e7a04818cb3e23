"""The section of a page that compares the policies, written from the JSON of the comparison."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.errors import MissingData
from evaluation.policy_plot import PLOTS, plot_path
from models.markdown import number, percent, table

BEGIN, END = "<!-- policies -->", "<!-- /policies -->"

HEADS = ("policy", "found", "amended", "false a scan", "amended", "candidates sent", "ROIs a scan",
         "kB a scan", "p50 s", "p95 s", "p99 s", "late")  # fmt: skip

PLOT_WORDS = {
    "rois": "sensitivity against ROIs a scan",
    "bytes": "sensitivity against bytes a scan",
    "p95": "sensitivity against the 95th percentile of the answer's time",
    "false": "false alarms a scan against ROIs a scan",
}


def write_section(page: Path, result: Mapping[str, Any], plots: Path | None = None) -> None:
    """Writes the section of ``page`` anew, between its two markers.

    Raises:
        MissingData: the page cannot be read or written, or lacks the markers.
    """
    try:
        text = page.read_text()
        before, rest = text.split(BEGIN)
        _, after = rest.split(END)
        folder = None if plots is None else Path(os.path.relpath(plots, page.parent))
        page.write_text(f"{before}{BEGIN}\n{section(result, folder)}{END}{after}")
    except (OSError, ValueError) as error:
        raise MissingData(page, f"needs {BEGIN} and {END}, once each ({error})") from error


def section(result: Mapping[str, Any], plots: Path | None = None) -> str:
    """Markdown: what was compared, a table for each trace, the ratio; ``plots`` is their folder.

    It may lie beside any heading of the second level.
    """
    parts = [_head(result), _ratio(result["escalation_ratio"]), _chosen(result)]
    if plots is not None:
        parts += [f"![{PLOT_WORDS[name]}]({plot_path(plots, name).as_posix()})\n" for name in PLOTS]
    parts += ["*Amended* is after all amendments; their regions and bytes are counted too.\n"]
    parts += [_trace(one) for one in result["traces"]]
    return "\n".join([*parts, result["caveat"], ""])


def _head(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['studies']} studies of {result['patients']} test patients in the whole scans "
        f"{', '.join(f'`{name}`' for name in result['scans'])}, one every "
        f"{result['every_s']:g} s on average. {' and '.join(result['models'])}; times of both "
        f"measured on {result['cpu']}. The deadline is {result['deadline_s']:g} s, "
        f"{result['reserve_s']:g} s of it kept back. Candidates are proposed from a score of "
        f"{result['proposed_from']:g}. The thresholds' promise: {result['guarantee']}.",
    ]
    if "command" in result:
        lines += ["", f"    {result['command']}"]
    return "\n".join([*lines, ""])


AGAINST = {
    "chosen": "chosen pair",
    "chosen_single": "chosen single",
    "hindsight": "best in hindsight",
    "hindsight_single": "best single in hindsight",
}


def _ratio(ratio: Mapping[str, Any]) -> str:
    kinds = (("verdicts", "Verdicts alone"), ("described", "With descriptions"))
    parts = [
        "What ours asks, regions and bytes, as a part of what fixed thresholds ask: of those "
        "chosen on validation to find as much with no more false alarms, and of the best of all "
        f"that were run in hindsight. The aim is at most {ratio['bar']:g} of both over "
        f"`{ratio['trace']}` against the chosen pair. Fixed thresholds ask for verdicts and "
        "nothing else; so does ours with `describe = false`. As it comes it also asks for size, "
        "kind and outline of what it reports by itself. A star: over this trace it found less "
        "than ours, or raised more false alarms. A dash: there is none, or it asked nothing.\n"
    ]
    for name, words in kinds:
        one = ratio[name]
        rows = [
            [trace, *(_against(row[key]) for key in AGAINST)]
            for trace, row in one["by_trace"].items()
        ]
        reached = "reached" if one["met"] else "not reached"
        parts += [f"{words}: the aim is {reached}.\n", table(["trace", *AGAINST.values()], rows)]
    return "\n".join(parts)


def _against(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return "-"
    return f"{number(one['rois'], 2)}, {number(one['bytes'], 2)}" + ("" if one["as_good"] else " *")


def _chosen(result: Mapping[str, Any]) -> str:
    rows = [
        [name, ", ".join(f"{key} {value:.3f}" for key, value in one["settings"].items()),
         percent(one["fitted"]["sensitivity"]), f"{one['fitted']['false_positives_per_scan']:.2f}",
         f"{one['fitted']['rois_per_scan']:.2f}", "yes" if one["fitted"]["fulfils"] else "no"]
        for name, one in result["policies"].items()
        if "settings" in one and "sweep" not in name
    ]  # fmt: skip
    aim = result["aim"]
    return (
        "What was chosen on validation studies (those in hindsight on the test studies themselves, "
        f"to do what ours does there, as a limit), to find {percent(aim['sensitivity'])} with "
        f"{aim['false_positives_per_scan']:.2f} false alarms a scan as ours does there "
        f"({aim['rois_per_scan']:.2f} ROIs a scan):\n\n"
    ) + table(["policy", "settings", "found", "false a scan", "ROIs a scan", "fulfils"], rows)


def _trace(one: Mapping[str, Any]) -> str:
    rows = [
        [row["policy"], percent(row["sensitivity"]), percent(row["sensitivity_amended"]),
         f"{row['false_positives_per_scan']:.2f}", f"{row['false_positives_amended']:.2f}",
         percent(row["escalated_share"]),
         f"{row['rois_per_scan']:.2f}", f"{row['bytes_per_scan'] / 1000:.0f}",
         *(f"{row[f'p{q}_ms'] / 1000:.2f}" for q in (50, 95, 99)), str(row["missed"])]
        for row in one["policies"]
        if "sweep" not in row["policy"]
    ]  # fmt: skip
    return f"### Over `{one['trace']}`\n\n" + table(HEADS, rows)
