"""What a demonstration shows in the end: the report as tables, beside the truth where it is known.

It reads ``report.json`` and nothing else of the agent, as any other program would.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from edge.terminal import counted
from imaging.volume import Nodule

Json = Mapping[str, Any]
NOBODY = "-"


@dataclass(frozen=True)
class Result:
    """One report as it was written, and the phantom's nodules; None where nothing is known."""

    folder: Path
    report: Json
    truth: tuple[Nodule, ...] | None

    @classmethod
    def of(cls, report: Path, truth: tuple[Nodule, ...] | None) -> Result:
        """The result that a ``report.json`` holds."""
        return cls(report.parent, json.loads(report.read_text(encoding="utf-8")), truth)

    @property
    def found(self) -> list[Json]:
        """What the report lists: its findings, then its small nodules."""
        return [*self.report["findings"], *self.report["small_nodules"]]

    @property
    def refused(self) -> Json | None:
        """Why the study was not read, None if it was."""
        rejection: Json | None = self.report["rejection"]
        return rejection


def render_result(result: Result) -> RenderableType:
    """Everything that is shown of it."""
    if result.refused is not None:
        return Group(_refusal(result.refused), *_paths(result.folder))
    report = result.report
    return Group(
        findings_table(result),
        ledger_table(report),
        f"[bold]second reading[/]  {report['second_reading']}: "
        f"{escape(report['second_reading_reason'])}",
        *(f"[bold]{role} model[/]  {escape(model)}" for role, model in report["models"].items()),
        *(f"[bold]not read[/]  {escape(series)}" for series in report["other_series"]),
        f"[bold]guarantee[/]  {escape(report['guarantee'])}",
        "",
        *_paths(result.folder),
        f"[dim]{escape(report['disclaimer'])}[/]",
    )


def findings_table(result: Result) -> Table:
    """One line a finding, dim if it is small, and one for each nodule that was missed."""
    findings, truth = result.found, result.truth
    table = Table(title=_title(result), box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("#", "x, y, z mm (LPS)", "mm", "edge"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("route", no_wrap=True)
    for heading in ("cloud", "merged"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("decided by", max_width=14)
    small = len(result.report["small_nodules"])
    styles = [None] * (len(findings) - small) + ["dim"] * small
    if truth is None:
        for finding, style in zip(findings, styles, strict=True):
            table.add_row(*_cells(finding), style=style)
        return table
    table.add_column("truth")
    for finding, style, number in zip(findings, styles, matches(findings, truth), strict=True):
        table.add_row(*_cells(finding), _verdict(finding, number, truth), style=style)
    for number in missed(findings, truth):
        table.add_row(*_missed_cells(result, truth[number], number), style="red")
    return table


def matches(findings: Sequence[Json], truth: Sequence[Nodule]) -> list[int | None]:
    """Of each finding the number of the nodule that it hits, the nearest of several."""
    return [_hit(finding["centre_mm"], truth) for finding in findings]


def missed(findings: Sequence[Json], truth: Sequence[Nodule]) -> list[int]:
    """The numbers of the nodules that no finding hits."""
    found = set(matches(findings, truth))
    return [number for number in range(len(truth)) if number not in found]


def ledger_table(report: Json) -> Table:
    """The time of every stage, beside the budget that it found."""
    title = f"{report['took_s']:.2f} s of {report['deadline_s']:.0f} s"
    table = Table("stage", title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("budget s", justify="right")
    table.add_column("took s", justify="right")
    for entry in report["ledger"]:
        table.add_row(entry["stage"], f"{entry['budget_s']:.3f}", f"{entry['took_s']:.3f}")
    return table


def _title(result: Result) -> str:
    findings, truth = result.found, result.truth
    small, candidates = len(result.report["small_nodules"]), len(result.report["candidates"])
    counts = counted(len(findings) - small, small, candidates)
    if truth is None:
        return counts
    false = matches(findings, truth).count(None)
    found = len(truth) - len(missed(findings, truth))
    return f"{counts}: {found} of {len(truth)} nodules found, false alarms: {false}"


def _hit(place: Sequence[float], truth: Sequence[Nodule]) -> int | None:
    x, y, z = place
    near = [n for n, nodule in enumerate(truth) if nodule.hit_by((x, y, z))]
    return min(near, key=lambda n: _distance_mm(place, truth[n]), default=None)


def _distance_mm(place: Sequence[float], nodule: Nodule) -> float:
    return float(np.linalg.norm(np.subtract(place, nodule.centre_mm)))


def _cells(finding: Json) -> tuple[str, ...]:
    verdict = finding["verdict"]
    return (
        str(finding["number"]),
        _place(finding["centre_mm"]),
        f"{finding['diameter_mm']:.1f}",
        f"{finding['edge_score']:.2f}",
        finding["route"],
        f"{verdict['probability']:.2f}" if verdict else NOBODY,
        f"{finding['probability']:.2f}",
        finding["decided_by"],
    )


def _verdict(finding: Json, number: int | None, truth: Sequence[Nodule]) -> str:
    if number is None:
        return "[yellow]false alarm[/]"
    off_mm = _distance_mm(finding["centre_mm"], truth[number])
    return f"[green]{_named(truth[number], number)}, {off_mm:.1f} mm off[/]"


def _missed_cells(result: Result, nodule: Nodule, number: int) -> tuple[str, ...]:
    """The row of a missed nodule, with the best candidate that the edge had there."""
    proposed = [c for c in result.report["candidates"] if nodule.hit_by(tuple(c["centre_mm"]))]
    best = max(proposed, key=lambda c: c["score"], default=None)
    score, route = (f"{best['score']:.2f}", best["route"]) if best else (NOBODY, NOBODY)
    fate = {"dismiss": "edge", NOBODY: "not proposed"}.get(route, "not kept")
    place, size = _place(nodule.centre_mm), f"{nodule.diameter_mm:.1f}"
    truth = f"{_named(nodule, number)}, missed"
    return NOBODY, place, size, score, route, NOBODY, NOBODY, fate, truth


def _named(nodule: Nodule, number: int) -> str:
    return f"{number + 1}: {nodule.kind} {nodule.diameter_mm:.1f} mm"


def _place(centre_mm: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in centre_mm)


def _refusal(rejection: Json) -> Panel:
    lines = [escape(str(rejection[key])) for key in ("reason", "file") if rejection[key]]
    return Panel("\n".join(lines), title=f"Refused: {escape(rejection['kind'])}", style="red")


def _paths(folder: Path) -> list[Text]:
    """The report's page, its data and its pictures, as one would type them from here."""
    relative = os.path.relpath(folder)
    here = str(folder.absolute()) if relative.startswith("..") else relative
    named = [("report", "report.html"), ("data", "report.json")]
    findings = sorted(path.name for path in folder.glob("finding_*.png"))
    if (folder / "overview.png").is_file():
        named.append(("pictures", "overview.png"))
    if findings:
        named.append(("", f"{findings[0]} … {findings[-1]}"))
    return [_unbroken(what, os.path.join(here, name)) for what, name in named]


def _unbroken(what: str, path: str) -> Text:
    """A path that can be copied from the terminal, however long it is."""
    return Text.assemble((f"{what:10}", "bold"), path, no_wrap=True, overflow="ignore")
