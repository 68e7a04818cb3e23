"""``overread-eval whole``: whole scans with every nodule marked, through the agent's own code."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
import typer

from evaluation.accuracy.bootstrap import RATE_COLUMNS, difference, figures, operating_point
from evaluation.accuracy.options import Marks, MoreScans, Scans, marked_scans
from evaluation.accuracy.readers import STAGES, Stage, StageOption, open_agent
from evaluation.accuracy.truth import scan_name
from evaluation.accuracy.whole import OUTSIDE, WholeScan, nodule_row, read_whole, scan_row, scored
from evaluation.result import SHARE, Bar, Result, Table
from evaluation.run import CloudModel, Model, Seed, command, each

INDEPENDENT = "independent marks"
"""The scans that nobody marked by eye among the networks' candidates."""

TOGETHER = "all"
"""The group of all scans, beside those of each role."""

RULES = (
    "Rules of LUNA16: a finding nearer to a nodule than half its diameter hits it, a nodule counts"
    " once at its highest score, findings on excluded and doubtful places are ignored, and of a"
    " scan the 100 highest count. Found are findings, false positives false findings; possible"
    " findings are counted apart. A scan that is refused misses its nodules. Nodules seen"
    " by eye among the networks' candidates do not count, and a scan with one is left out."
    " Independent marks are those of scans without any mark by eye. Intervals are 95 % by bootstrap"
    " over scans, exact where all scans agree."
)


UNCERTAIN, RIGHT = 3.0, 0.75
"""Required: uncertain candidates a test scan, and the share of changed decisions that are right."""


def bars(result: Result) -> Iterator[Bar]:
    """Yield what is required of second readings in test scans."""
    for one in result["groups"]:
        if one["scans"] == "test":
            what = "uncertain candidates a scan, whole test scans"
            yield Bar(what, one["uncertain_per_scan"], UNCERTAIN, "{:.1f}", least=True)
            count = one["right"] + one["wrong"]
            yield Bar("decisions changed by verdicts that are right, whole test scans",
                      one["right"] / count if count else None, RIGHT, SHARE, least=True,
                      shown=f"{one['right']} of {count}")  # fmt: skip


def _remarks(result: Result) -> Iterator[str]:
    """Name the scans and nodules that are missed for another reason than a reader."""
    refused = [one["scan"] for one in result["raw"]["scans"] if one["refused"]]
    if refused:
        yield f"Refused, their nodules are missed: {', '.join(refused)}."
    nodules = result["raw"]["nodules"]
    if outside := [one["scan"] for one in nodules if one["by_edge"] == OUTSIDE]:
        yield (
            f"Nodules outside of their scans count as missed: {', '.join(outside)}. Marks need"
            " coordinates in LPS mm; for RAS change the signs of x and y."
        )


@command(
    Table("curves", {"scans": "scans", "reader": "reader", **RATE_COLUMNS},
          title="Sensitivity in % at false positives a scan"),
    Table("shipped", {
        "scans": "scans", "number": "number", "reader": "reports", "found": "nodules found",
        "nodules": "of", "sensitivity": ("sensitivity", SHARE),
        "false_positives_per_scan": ("false positives a scan", "{:.2f}"),
    }, title="At the shipped thresholds, {model} and {cloud_model}"),
    Table("either", {
        "scans": "scans", "reader": "reports", "found_in_either_list": "nodules in either list",
        "nodules": "of", "sensitivity_of_either_list": ("sensitivity", SHARE),
        "false_possible_per_scan": ("false possible findings a scan", "{:.2f}"),
    }, "shipped", "Findings and possible findings together"),
    Table("verdicts", {
        "scans": "scans", "uncertain_per_scan": ("uncertain candidates a scan", "{:.1f}"),
        "sent_per_scan": ("ROIs sent a scan", "{:.1f}"),
        "both_minus_edge": ("CPM, both minus edge", "{:.3f}"),
        "changed": "decisions changed by verdicts", "right": "of them right", "wrong": "wrong",
        "ignored": "on ignored places",
    }, "groups", "What the cloud is asked, and what its verdicts change"),
    Table("nodules", {
        "scan": "scan", "role": "role", "centre_mm": "x, y, z", "diameter_mm": ("mm", "{:.1f}"),
        "edge": ("score of the edge", "{:.2f}"), "score": ("of the report", "{:.2f}"),
        "by_edge": "edge alone", "by_stage": "report",
    }, lambda result: result["raw"]["nodules"], "Nodules"),
    Table("scans", {
        "scan": "scan", "role": "role", "nodules": "nodules", "found": "found",
        "possible": "possible", "false_of_edge": "false edge", "false": "false",
        "false_possible": "false possible", "uncertain": "uncertain", "sent": "sent",
        "changed": "changed", "changed_rightly": "rightly",
    }, lambda result: result["raw"]["scans"], "Scans at the shipped thresholds"),
    _remarks,
    "{rules}",
    bars=bars,
)  # fmt: skip
def whole(
    scans: Scans,
    truth: Marks,
    more_scans: MoreScans = None,
    stage: StageOption = Stage.BOTH,
    split: Annotated[
        str | None, typer.Option(metavar="NAME[,NAME]", help="Roles of the scans; default: all.")
    ] = None,
    model: Model = None,
    cloud_model: CloudModel = None,
    seed: Seed = 0,
) -> dict[str, Any]:
    """Whole scans with every nodule marked: what is found, what is false, what verdicts change."""
    roles = None if split is None else split.split(",")
    folders, known = marked_scans(scans, more_scans, truth, roles)
    agent = open_agent(stage, model, cloud_model)
    read = [
        read_whole(folder, known[scan_name(folder)], agent, stage)
        for folder in each(folders, "scans")
    ]
    return {
        "stage": stage.value,
        "model": agent.label,
        "cloud_model": agent.second_label,
        "thresholds": asdict(agent.thresholds),
        "rules": RULES,
        **as_dict(groups_of(read), stage, seed),
        "raw": {
            "scans": [scan_row(scan, stage) for scan in read],
            "nodules": [
                nodule_row(scan, i, stage) for scan in read for i in range(len(scan.truth.lesions))
            ],
        },
    }


def groups_of(scans: Sequence[WholeScan]) -> dict[str, list[WholeScan]]:
    """Return the scans by role, test first and validation next; all together if there are more.

    Before the first come those of its scans without any mark by eye, if that is a part of them.
    """
    order = ("test", "val")
    roles = sorted({scan.truth.role for scan in scans})
    roles.sort(key=lambda role: order.index(role) if role in order else len(order))
    if len(roles) < 2:
        groups = {(roles[0] if roles else "") or TOGETHER: list(scans)}
    else:
        groups = {role or "no role": [s for s in scans if s.truth.role == role] for role in roles}
        groups[TOGETHER] = list(scans)
    first, of = next(iter(groups.items()))
    independent = [scan for scan in of if not scan.truth.by_eye]
    if 0 < len(independent) < len(of):
        return {f"{first}, {INDEPENDENT}": independent, **groups}
    return groups


def as_dict(groups: Mapping[str, Sequence[WholeScan]], stage: Stage, seed: int) -> dict[str, Any]:
    """Return the figures of each group of scans; without a nodule there is no sensitivity."""
    stages = tuple(dict.fromkeys((Stage.EDGE, stage)))
    curves, shipped, verdicts = list[dict[str, Any]](), list[dict[str, Any]](), []
    for name, scans in groups.items():
        nodules = sum(len(scan.truth.lesions) for scan in scans)
        of = {one: scored(scans, one) for one in (stages if nodules else ())}
        for one, input_ in of.items():
            found = figures(input_, seed)
            curves.append({"scans": name, "reader": STAGES[one], "nodules": nodules, **found})
        for one in stages:
            head = {"scans": name, "number": len(scans), "reader": STAGES[one]}
            shipped.append({**head, **_shipped(scans, one, seed)})
        gain = None
        if Stage.BOTH in of:
            gain = difference(of[Stage.EDGE], of[Stage.BOTH], seed)["cpm"]
        verdicts.append({"scans": name, "both_minus_edge": gain, **_verdicts(scans)})
    return {"curves": curves, "shipped": shipped, "groups": verdicts}


def _shipped(scans: Sequence[WholeScan], stage: Stage, seed: int) -> dict[str, Any]:
    """Return what the reports of a stage have of the nodules, and what is false in them."""
    counts = np.array([scan.counts(stage) for scan in scans], np.float64)
    nodules, found, listed, false, false_possible = counts.sum(axis=0).astype(int).tolist()
    share, rate, either, possible_rate = (
        None if one is None else one.as_dict()
        for columns in ([0, 1, 3], [0, 2, 4])
        for one in operating_point(counts[:, columns], seed)
    )
    return {
        "nodules": nodules,
        "found": found,
        "sensitivity": share,
        "false_positives": false,
        "false_positives_per_scan": rate,
        "found_in_either_list": listed,
        "sensitivity_of_either_list": either,
        "false_possible": false_possible,
        "false_possible_per_scan": possible_rate,
    }


def _verdicts(scans: Sequence[WholeScan]) -> dict[str, Any]:
    """Return how much is uncertain, what is sent, and how often a verdict changed a decision."""
    right = [change for scan in scans for change in scan.changes()]
    return {
        "uncertain_per_scan": float(np.mean([scan.uncertain() for scan in scans])),
        "sent_per_scan": float(np.mean([scan.sent() for scan in scans])),
        "changed": len(right),
        "right": right.count(True),
        "wrong": right.count(False),
        "ignored": right.count(None),
    }
