"""``overread-eval whole``: whole scans with every nodule marked, through the agent's own code."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cloud.settings import load_settings as load_cloud_settings
from evaluation.accuracy.bootstrap import RESAMPLES, Interval, span, stages_table
from evaluation.accuracy.froc import froc
from evaluation.accuracy.nodules import draw_curves, save_chart
from evaluation.accuracy.readers import STAGES, Stage, StageOption, open_agent
from evaluation.accuracy.truth import (
    fully_marked,
    read_truth,
    require_listed,
    scan_folders,
    scan_name,
    scans_of_splits,
)
from evaluation.accuracy.whole import Fate, group_json, groups_of, read_whole, scan_json, scored
from evaluation.common import cli
from models.markdown import Rows, number, percents

RULES = (
    "Rules of LUNA16: a finding nearer to a nodule than half its diameter hits it, a nodule counts"
    " once at its highest score, findings on excluded and doubtful places are ignored, and of a"
    " scan the 100 highest count. Found are findings, false positives false findings; possible"
    " findings are counted apart. A scan that is refused misses its nodules. Nodules seen"
    " by eye among the networks' candidates do not count, and a scan with one is left out."
    " Independent marks are those of scans without any mark by eye. Intervals are 95 % by bootstrap"
    " over scans, exact where all scans agree."
)


def whole_command(
    scans: cli.Scans,
    truth: cli.Marks,
    more_scans: cli.MoreScans = None,
    stage: StageOption = Stage.BOTH,
    split: Annotated[
        str | None, typer.Option(metavar="NAME[,NAME]", help="Roles of the scans; default: all.")
    ] = None,
    model: cli.Model = None,
    cloud_model: cli.CloudModel = None,
    plot: cli.Plot = None,
    resamples: cli.Resamples = RESAMPLES,
    seed: cli.Seed = 0,
    as_json: cli.Json = False,
) -> None:
    """Whole scans with every nodule marked: what is found, who decided it, what is false."""
    given, tables = cli.sorted_arguments(scans, more_scans, truth)
    known = read_truth(*tables)
    folders = scan_folders(given, set(known))
    require_listed(given, known, tables)
    if split is not None:
        folders = scans_of_splits(folders, known, split.split(","))
    folders = fully_marked(folders, known)
    agent = open_agent(stage, model, cloud_model)
    read = [
        read_whole(folder, known[scan_name(folder)], agent, stage)
        for folder in cli.each(folders, "scans")
    ]
    stages = list(Stage)[: list(Stage).index(stage) + 1]  # each shows those before it too
    groups = groups_of(read)
    result: dict[str, Any] = {
        "stage": stage.value,
        "model": agent.label,
        "cloud_model": None
        if stage is Stage.EDGE
        else load_cloud_settings(model=cloud_model).model,
        "thresholds": asdict(agent.thresholds),
        "rules": RULES,
        "groups": {
            name: group_json(of, stages, resamples=resamples, seed=seed)
            for name, of in groups.items()
        },
        "scans": [scan_json(scan, stage) for scan in read],
    }
    first = next(iter(groups))
    if plot is not None and result["groups"][first]["nodules"]:
        curves = {STAGES[one]: froc(scored(groups[first], one)) for one in stages}
        save_chart(draw_curves(curves, f"whole scans, {first}"), plot)
    cli.show(result, as_json, *tables_of(result))


def tables_of(result: Mapping[str, Any]) -> list[Rows | str]:
    """Return every table of one result, and the remarks on it."""
    shown: list[Rows | str] = []
    for name, group in result["groups"].items():
        title = f"{name}: {group['nodules']} nodules, {group['scans']} scans"
        if group["stages"]:
            by_name = {STAGES[Stage(key)]: one for key, one in group["stages"].items()}
            words = "; difference: edge and cloud minus edge, paired"
            caption = f"Sensitivity in %, {title}{words if group['both_minus_edge'] else ''}"
            shown.append(stages_table(by_name, group["both_minus_edge"], caption))
        shown += [_shipped_table(group, title), *_remarks(group)]
    shown += [_nodules_table(result["scans"]), _scans_table(result["scans"])]
    outside = [
        scan["scan"]
        for scan in result["scans"]
        for one in scan["nodules"]
        if one["decision"] == Fate.OUTSIDE.value
    ]
    if outside:
        shown.append(
            f"Nodules outside of their scans count as missed: {', '.join(outside)}. Marks need"
            " coordinates in LPS mm; for RAS change the signs of x and y."
        )
    return [*shown, result["rules"]]


def _shipped_table(group: Mapping[str, Any], title: str) -> Rows:
    cells = []
    for key, one in group["shipped"].items():
        cells.append([
            STAGES[Stage(key)],
            *_found(one["found"], group["nodules"], one["sensitivity"]),
            _rate(one["false_positives_per_scan"]),
            *_found(
                one["found_in_either_list"], group["nodules"], one["sensitivity_of_either_list"]
            ),
            _rate(one["false_possible_per_scan"]),
        ])  # fmt: skip
    heads = ["reports", "found", "sensitivity", "false positives a scan", "found in either list",
             "sensitivity", "false possible findings a scan"]  # fmt: skip
    return Rows(heads, cells, f"At the shipped thresholds, {title}")


def _found(count: int, nodules: int, share: Mapping[str, float | None] | None) -> list[str]:
    return [f"{count} of {nodules}", "-" if share is None else f"{percents(share)} %"]


def _rate(one: Mapping[str, Any]) -> str:
    rate = Interval(**one)
    return f"{rate.value:.2f} ({span(rate, '{:.2f}')})"


def _remarks(group: Mapping[str, Any]) -> list[str]:
    found = [f"Uncertain candidates a scan: {group['uncertain_per_scan']:.1f}."]
    if verdicts := group["verdicts"]:
        found = [
            f"{found[0][:-1]}; regions sent a scan: {group['sent_per_scan']:.1f}. Verdicts changed"
            f" {verdicts['changed']} decisions: {verdicts['right']} rightly, {verdicts['wrong']}"
            f" wrongly, {verdicts['on_ignored_places']} on places that do not count."
        ]
    if group["refused"]:
        found.append(f"Refused, their nodules are missed: {', '.join(group['refused'])}.")
    return found


def _nodules_table(scans: Sequence[Mapping[str, Any]]) -> Rows:
    cells = [
        [
            scan["scan"], scan["role"] or "-",
            ",".join(f"{v:.0f}" for v in one["centre_mm"]),
            number(one["diameter_mm"], 1),
            *(number(one[key], 2) for key in ("edge", "cloud", "merged")),
            one["decision"] if one["possible"]
            else f"{'found' if one['found'] else 'missed'}: {one['decision']}",
        ]
        for scan in scans
        for one in scan["nodules"]
    ]  # fmt: skip
    heads = ["scan", "role", "x,y,z", "mm", "edge", "cloud", "merged", "report"]
    return Rows(heads, cells, "Nodules")


def _scans_table(scans: Sequence[Mapping[str, Any]]) -> Rows:
    cells = [
        [
            scan["scan"], scan["role"] or "-", scan["refused"] or len(scan["nodules"]),
            sum(one["found"] for one in scan["nodules"]),
            sum(one["possible"] for one in scan["nodules"]),
            *(scan[false].get(key, "-") for false in ("false_positives", "false_possible")
              for key in ("edge", "both")),
            scan["uncertain"], scan["sent"], f"{scan['changed_rightly']} of {scan['changed']}",
        ]
        for scan in scans
    ]  # fmt: skip
    heads = ["scan", "role", "nodules", "found", "possible", "false edge", "false both",
             "false possible edge", "false possible both", "uncertain", "sent",
             "right"]  # fmt: skip
    return Rows(heads, cells, "Scans at the shipped thresholds")
