"""What the demo says beside the edge's own tables: who decided what, and whether it is true.

It reads ``report.json`` as any other program would.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from edge.findings import Route
from imaging.volume import Nodule

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """One report as it was written, and the phantom's nodules; empty where nothing is known."""

    report: Json
    truth: tuple[Nodule, ...]

    @classmethod
    def of(cls, report: Path, truth: tuple[Nodule, ...]) -> Result:
        """The result that a ``report.json`` holds."""
        return cls(json.loads(report.read_text(encoding="utf-8")), truth)

    @property
    def found(self) -> list[Json]:
        """What the report lists: its findings, then its small nodules."""
        return [*self.report["findings"], *self.report["small_nodules"]]


def render_result(result: Result) -> RenderableType:
    """Everything that the demo adds to the tables of the edge."""
    truth = (truth_table(result), "") if result.truth else ()
    return Group("", *truth, *second_readings(result))


def truth_table(result: Result) -> Table:
    """One line a nodule of the phantom: which finding it is, and who decided it."""
    hits = matches(result.found, result.truth)
    found = len(set(hits) - {None})
    table = Table(
        title=f"{found} of {len(result.truth)} nodules of the phantom found, "
        f"{hits.count(None)} false positive{'s' if hits.count(None) != 1 else ''}"
    )
    for heading in ("nodule", "mm", "type", "finding", "mm off", "decided by"):
        words = heading in ("type", "decided by")
        table.add_column(heading, justify="left" if words else "right")
    for number, nodule in enumerate(result.truth):
        cells = (str(number + 1), f"{nodule.diameter_mm:.1f}", nodule.kind)
        if number in hits:
            finding = result.found[hits.index(number)]
            off = f"{_distance_mm(finding['centre_mm'], nodule):.1f}"
            table.add_row(*cells, str(finding["number"]), off, finding["decided_by"])
        else:
            table.add_row(*cells, "missed", "-", _fate(result.report, nodule), style="red")
    return table


def second_readings(result: Result) -> Iterator[str]:
    """The way to the cloud and back in words: how long it took, and what was decided there."""
    report = result.report
    took_s = {entry["stage"]: entry["took_s"] for entry in report["ledger"]}["escalate"]
    unsure = [c for c in report["candidates"] if c["route"] == Route.ESCALATE.value]
    kept = [f for f in result.found if f["route"] == Route.ESCALATE.value]
    yield (
        f"[bold]to the cloud and back[/]  {1000 * took_s:.0f} ms; candidates that the edge was "
        f"unsure of: {len(unsure)}, reported: {len(kept)}"
    )
    for finding in kept:
        if (verdict := finding["verdict"]) is not None:
            yield (
                f"[bold]finding {finding['number']}[/]  decided by the {finding['decided_by']}: "
                f"edge {finding['edge_score']:.2f} (unsure), cloud {verdict['probability']:.2f} "
                f"(read in {1000 * verdict['compute_s']:.0f} ms), together "
                f"{finding['probability']:.2f}"
            )


def matches(findings: Sequence[Json], truth: Sequence[Nodule]) -> list[int | None]:
    """Of each finding the place in ``truth`` of the nodule that it hits, the nearest of several."""
    return [_hit(finding["centre_mm"], truth) for finding in findings]


def _hit(place: Sequence[float], truth: Sequence[Nodule]) -> int | None:
    x, y, z = place
    near = [n for n, nodule in enumerate(truth) if nodule.hit_by((x, y, z))]
    return min(near, key=lambda n: _distance_mm(place, truth[n]), default=None)


def _distance_mm(place: Sequence[float], nodule: Nodule) -> float:
    return float(np.linalg.norm(np.subtract(place, nodule.centre_mm)))


def _fate(report: Json, nodule: Nodule) -> str:
    """Why a nodule was missed, by the best candidate that the edge had there."""
    proposed = [c for c in report["candidates"] if nodule.hit_by(tuple(c["centre_mm"]))]
    best = max(proposed, key=lambda c: c["score"], default=None)
    if best is None:
        return "not proposed"
    by = "edge, dismissed" if best["route"] == Route.DISMISS.value else "cloud, dismissed"
    return f"{by} at {best['score']:.2f}"
