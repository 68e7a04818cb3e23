"""The pages that compare the policies, written from the JSON of the comparison.

A section of the budget's page has what matters most; `policies.md` beside it has every trace.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.errors import MissingData
from evaluation.policy_plot import PLOTS, plot_path
from evaluation.policy_ratio import FIXED, OURS
from evaluation.policy_words import KINDS, SIDES, against, head, outcome, shows, terms
from models.markdown import percent, table

BEGIN, END = "<!-- policies -->", "<!-- /policies -->"

FULL = "policies.md"
"""The page of all traces, beside the one with the section."""

FEW = ("fibre", "dsl", "dead")
"""The traces that the section shows."""

HEADS = ("policy", "found", "amended", "false a scan", "amended", "candidates sent", "ROIs a scan",
         "kB a scan", "p50 s", "p95 s", "p99 s", "late")  # fmt: skip

PLOT_WORDS = {
    "rois": "sensitivity against ROIs a scan",
    "bytes": "sensitivity against bytes a scan",
    "p95": "sensitivity against the 95th percentile of the answer's time",
    "false": "false alarms a scan against ROIs a scan",
}


def write_pages(page: Path, result: Mapping[str, Any], plots: Path | None = None) -> None:
    """Writes the section of ``page`` anew, between its two markers, and `FULL` beside it.

    Raises:
        MissingData: a page cannot be read or written, or lacks the markers.
    """
    try:
        before, rest = page.read_text().split(BEGIN)
        _, after = rest.split(END)
        folder = None if plots is None else Path(os.path.relpath(plots, page.parent))
        page.write_text(f"{before}{BEGIN}\n{section(result, folder)}{END}{after}")
        page.with_name(FULL).write_text(full(result, page.name))
    except (OSError, ValueError) as error:
        raise MissingData(page, f"needs {BEGIN} and {END}, once each ({error})") from error


def section(result: Mapping[str, Any], plots: Path | None = None) -> str:
    """Markdown: terms, bar and outcome, ratios, plots, a few traces; ``plots`` is their folder.

    It may lie beside any heading of the second level.
    """
    few = [one for one in result["traces"] if one["trace"] in FEW]
    few.sort(key=lambda one: FEW.index(one["trace"]))
    parts = [head(result), terms(result), outcome(result), shows(result), *_ratios(result)]
    if plots is not None:
        parts += [_caption(result)]
        parts += [f"![{PLOT_WORDS[name]}]({plot_path(plots, name).as_posix()})\n" for name in PLOTS]
    parts += [_trace(one) for one in few]
    return "\n".join([*parts, f"All traces: [policies]({FULL}). {result['caveat']}", ""])


def full(result: Mapping[str, Any], page: str) -> str:
    """The page of all traces; ``page`` has the section."""
    parts = [
        "# Ways to spend the budget, over every link\n",
        f"Who takes part, and what came of it, stands in [the latency budget]({page}); here is "
        "what was chosen, and what each policy found and asked over each trace. Not a medical "
        "device. For research and development only.\n",
        head(result),
        terms(result),
        "## What was chosen\n",
        _chosen(result),
        "## What each found and asked\n",
        *(_trace(one) for one in result["traces"]),
    ]
    return "\n".join([*parts, result["caveat"], ""])


def _ratios(result: Mapping[str, Any]) -> list[str]:
    ratio = result["escalation_ratio"]
    return [
        f"What ours asks of each by trace, {words}:\n\n"
        + table(
            ["trace", *KINDS.values()],
            [[trace, *(against(row[key]) for key in KINDS)] for trace, row in ratio[side].items()],
        )
        for side, words in SIDES.items()
    ]


def _caption(result: Mapping[str, Any]) -> str:
    trace = result["escalation_ratio"]["trace"]
    rows = next(one["policies"] for one in result["traces"] if one["trace"] == trace)
    shown = [row for row in rows if "sweep" not in row["policy"]]
    low, high = next(row["sensitivity_interval"] for row in rows if row["policy"] == OURS)
    found = [row["sensitivity"] for row in shown]
    nodules = rows[0]["nodules"] / result["studies"] * result["patients"]
    apart = (max(found) - min(found)) * nodules
    return (
        f"Plots: from the policy that finds most to the one that finds least over `{trace}` it is "
        f"{apart:.1f} of {nodules:.0f} nodules. The interval of 95 % of ours, by bootstrap over "
        f"patients, is from {percent(low)} to {percent(high)}. Links over which the markers lie "
        "alike share a panel; left out is where "
        f"nothing differs. The line is `{FIXED}` with lower and lower thresholds.\n"
    )


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
        "On validation studies (those in hindsight on the test studies themselves, to do what ours "
        f"does there, as a limit), to find {percent(aim['sensitivity'])} with "
        f"{aim['false_positives_per_scan']:.2f} false alarms a scan as ours does there "
        f"({aim['rois_per_scan']:.2f} ROIs a scan). Tried is every midpoint between neighbouring "
        "scores. Of those that fulfil this the one that asks least is chosen, and of several of "
        "these the middle of the widest range within which nothing changes.\n\n"
    ) + table(["policy", "settings", "found", "false a scan", "ROIs a scan", "fulfils"], rows)


def _trace(one: Mapping[str, Any]) -> str:
    rows = [
        [row["policy"], f"{percent(row['sensitivity'])} ({_span(row['sensitivity_interval'])})",
         percent(row["sensitivity_amended"]),
         f"{row['false_positives_per_scan']:.2f}", f"{row['false_positives_amended']:.2f}",
         percent(row["escalated_share"]),
         f"{row['rois_per_scan']:.2f}", f"{row['bytes_per_scan'] / 1000:.0f}",
         *(f"{row[f'p{q}_ms'] / 1000:.2f}" for q in (50, 95, 99)), str(row["missed"])]
        for row in one["policies"]
        if "sweep" not in row["policy"]
    ]  # fmt: skip
    return f"### Over `{one['trace']}`\n\n" + table(HEADS, rows)


def _span(interval: Sequence[float]) -> str:
    return "-".join(f"{100 * share:.0f}" for share in interval)
