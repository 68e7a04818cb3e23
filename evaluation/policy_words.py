"""What the page of the policies says in sentences: terms, outcome, and what the data show.

Every number comes from the JSON of the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.policy_ratio import ENTROPY, FIXED, OPPONENTS, OURS, PAIR, TUNED, VERDICTS
from models.markdown import number, percent, table

KINDS = {
    "single": f"(a) {FIXED}",
    "pair": f"(b) {PAIR}",
    "cut": f"(c) {TUNED}",
    "sedna": ENTROPY,
    "hindsight": "(a) in hindsight",
}
"""By the names of `policy_ratio.OPPONENTS`."""

SIDES = {"verdicts": "verdicts alone", "described": "with descriptions"}

TERMS = """\
- *ROI*: a region around one place, as it is sent to the cloud.
- *found*: part of the known nodules that the report names; in brackets, per cent, the interval of
  95 % by bootstrap over patients. *False a scan*: reported places that are no known nodule.
- *amended*: the same after all amendments, whose regions and bytes are counted too.
- *in hindsight*: chosen on the test studies themselves, as nobody could have: a limit.
- *late*: studies whose answer came after the deadline.

Links are invented traces, not recorded ones.
"""


NOT_AS_GOOD = (
    "What (a) did on validation it did not do on these test studies, so that the bar's words, the "
    "same sensitivity, hold here of (a) in hindsight alone, which nobody could have chosen."
)


def head(result: Mapping[str, Any]) -> str:
    """What was compared, with which command."""
    lines = [
        f"{result['studies']} studies of {result['patients']} test patients in the whole scans "
        f"{_names(result['scans'])}, one every {result['every_s']:g} s on average. "
        f"{' and '.join(result['models'])}; times of both measured on {result['cpu']}. The "
        f"deadline is {result['deadline_s']:g} s, {result['reserve_s']:g} s of it kept back. "
        f"Candidates are proposed from a score of {result['proposed_from']:g}. The thresholds' "
        f"promise: {result['guarantee']}."
    ]
    if "command" in result:
        lines += ["", f"    {result['command']}"]
    return "\n".join([*lines, ""])


def terms(result: Mapping[str, Any]) -> str:
    """The words of the tables, and why test studies have so many false alarms."""
    val, test = result["alarms"]["val"], result["alarms"]["test"]
    every = {**val, **test}
    told = ", ".join(f"{every[name]} in `{name}`" for name in every)
    ours = _rows(result)[OURS]["false_positives_per_scan"]
    return (
        f"{TERMS}\nValidation studies have {result['aim']['false_positives_per_scan']:.2f} false "
        f"alarms a scan, test studies {ours:.2f}, because every study lies in one of few whole "
        "scans, whose false alarms repeat. Places that the edge alone would report falsely: "
        f"{told} (validation: {_names(val)}). `{max(test, key=lambda name: test[name])}` has many "
        "places that look like nodules.\n"
    )


def outcome(result: Mapping[str, Any]) -> str:
    """The bar, and whether it is met against each kind, over the headline's trace."""
    ratio, rows = result["escalation_ratio"], _rows(result)
    trace = ratio["trace"]
    lines = [
        [kind, *_figures(rows[OPPONENTS[key]]),
         *(_outcome(ratio[side][trace][key]) for side in SIDES)]
        for key, kind in KINDS.items()
    ]  # fmt: skip
    lines += [[name, *_figures(rows[name]), "", ""] for name in (VERDICTS, OURS)]
    heads = ["against", "found", "false a scan", "ROIs a scan", "kB a scan", *SIDES.values()]
    return (
        f"The bar: regions and bytes are at most {ratio['bar']:g} of those of the best fixed "
        f"threshold that reaches the same sensitivity, over `{trace}`. A fixed threshold may be "
        "three things: (a) a single one, from which on everything is asked about and the cloud's "
        "word decides; this is how such offloading is usually done, and our reading of the bar; "
        "(b) a pair, asked between and reported above; (c) a cut on the edge's own score, which "
        "asks nothing. Each was chosen on validation studies, exactly, as what asks least and "
        "finds as much there as ours with no more false alarms. The figures are of test studies. "
        "Others ask for verdicts and nothing else, as ours does with `describe = false`; as it "
        "comes it also has places described that it reports by itself. Two numbers are what ours "
        "asks as a part of what the other asks, regions and bytes. A star: the other found less "
        f"than ours here, or raised more false alarms.\n\n{table(heads, lines)}\n{_said(ratio)}\n"
    )


def against(one: Mapping[str, Any] | None) -> str:
    """The parts that ours asks, or in words why there are none."""
    if one is None:
        return "there is none"
    if not one["asks"] and not one["ours_asks"]:
        return "neither asks"
    if not one["asks"]:
        return "asks nothing, as good" if one["as_good"] else "asks nothing *"
    return f"{number(one['rois'], 2)}, {number(one['bytes'], 2)}" + ("" if one["as_good"] else " *")


def shows(result: Mapping[str, Any]) -> str:
    """What these data say of second readings at this operating point."""
    rows, data, limits = _rows(result), result["evidence"], result["thresholds"]
    edge, ours, tuned = (rows[name] for name in ("edge only", VERDICTS, TUNED))
    pair = result["policies"][PAIR]["fitted"]["rois_per_scan"]
    ranks = "as well as" if data["auc_edge"] >= data["auc_both"] else "worse than"
    only = (
        "A verdict can only take a place away here, because what has none is reported from "
        "`dismiss` on. "
    )
    return (
        f"On these data the edge's own score ranks candidates {ranks} edge and cloud together "
        f"(area under the curve {data['auc_edge']:.3f} and {data['auc_both']:.3f}): the edge only "
        f"finds {percent(edge['sensitivity'])}, ours {percent(ours['sensitivity'])}. "
        f"{only if limits['alone'] <= limits['dismiss'] else ''}"
        f"{_verdicts(data['asked'])} A cut on the edge, tuned on validation, finds "
        f"{percent(tuned['sensitivity'])} with {tuned['false_positives_per_scan']:.2f} false "
        f"alarms a scan and asks nothing; ours has {ours['false_positives_per_scan']:.2f}. Over a "
        "link that brings everything ours is itself a pair of thresholds, one of those that were "
        f"searched, so that on the fitting studies it cannot ask less than the best: "
        f"{result['aim']['rois_per_scan']:.2f} ROIs a scan against {pair:.2f}.\n"
    )


def _verdicts(asked: Mapping[str, Mapping[str, int]]) -> str:
    nodules, false = asked["nodules"], asked["false"]
    return (
        f"Of {nodules['candidates']} places of nodules that were asked about verdicts took "
        f"{nodules['taken_away']} away and brought {nodules['brought_back']} back, of "
        f"{false['candidates']} false alarms they took {false['taken_away']} away."
    )


def _said(ratio: Mapping[str, Any]) -> str:
    parts = []
    for side, words in SIDES.items():
        by_kind = ratio[side][ratio["trace"]]
        met = [KINDS[key] for key, one in by_kind.items() if one and one["met"]]
        missed = [KINDS[key] for key, one in by_kind.items() if one and not one["met"]]
        told = [f"{name} against {', '.join(kinds)}"
                for name, kinds in (("met", met), ("not met", missed)) if kinds]  # fmt: skip
        parts.append(f"{words[0].upper()}{words[1:]} the bar is {'; '.join(told)}.")
    single = ratio["verdicts"][ratio["trace"]]["single"]
    if single and not single["as_good"]:
        parts.append(NOT_AS_GOOD)
    return " ".join(parts)


def _outcome(one: Mapping[str, Any] | None) -> str:
    return against(one) if one is None else f"{against(one)}: {'met' if one['met'] else 'not met'}"


def _figures(row: Mapping[str, Any]) -> list[str]:
    return [percent(row["sensitivity"]), f"{row['false_positives_per_scan']:.2f}",
            f"{row['rois_per_scan']:.2f}", f"{row['bytes_per_scan'] / 1000:.0f}"]  # fmt: skip


def _rows(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Those over the headline's trace, by policy."""
    trace = result["escalation_ratio"]["trace"]
    found = next(one["policies"] for one in result["traces"] if one["trace"] == trace)
    return {row["policy"]: row for row in found}


def _names(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in names)
