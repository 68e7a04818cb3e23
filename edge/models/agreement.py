"""How far a new model agrees with the active one: in one study, and over studies.

Pure functions of what both networks found in the same lung box. The new model is measured by its
own thresholds, which were fitted with it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from edge.decide import Thresholds
from edge.findings import Finding
from models.runtime.detection import Candidate

NEAR_MM = 5.0
"""Two candidates are the same within this distance, or within half of the larger diameter."""
MIN_STUDIES = 20
"""Studies that must have been compared before a model may be promoted."""
MIN_KEPT = 0.95
"""Least part of the findings that the new model must put forward too."""
MAX_ADDED = 0.5
"""Findings a study that only the new model has, on average, at most."""
MAX_REGIONS, MORE_REGIONS = 1.5, 2.0
"""The largest ratio of the regions sent, new model to active, and what is allowed beyond it."""
MAX_TIME = 1.5
"""The largest ratio of the times, new model to active."""


@dataclass(frozen=True)
class Reading:
    """What a network found in a lung box, by falling score; its thresholds and its time."""

    candidates: Sequence[Candidate]
    thresholds: Thresholds
    took_s: float

    @property
    def put_forward(self) -> list[Candidate]:
        """Those that it does not dismiss."""
        return [one for one in self.candidates if one.score >= self.thresholds.dismiss]

    @property
    def regions(self) -> int:
        """How many of them are uncertain, and go to the cloud."""
        return sum(one.score < self.thresholds.report for one in self.put_forward)


@dataclass(frozen=True)
class Compared:
    """What one study showed.

    Attributes:
        findings: of the report, made with the active model.
        kept: those that the new model puts forward too: as a finding, or to the cloud.
        added: candidates that the new model alone puts forward as a finding.
        regions_before, regions_after: uncertain candidates of both, which go to the cloud.
        pairs: candidates that both have, and that one of them puts forward.
        logit_median, logit_p95: of the differences of the logits of these; None without any.
        before_s, after_s: time of both networks for the lung box.
    """

    findings: int
    kept: int
    added: int
    regions_before: int
    regions_after: int
    pairs: int
    logit_median: float | None
    logit_p95: float | None
    before_s: float
    after_s: float


@dataclass(frozen=True)
class Agreement:
    """What all studies showed together.

    Attributes:
        kept_share: part of the findings that the new model puts forward too; None without any.
        added: findings a study of the new model alone.
        logit_median, logit_p95: medians over the studies; None without any.
        time_ratio: median over the studies; None without any.
    """

    studies: int = 0
    findings: int = 0
    kept: int = 0
    kept_share: float | None = None
    added: float = 0.0
    regions_before: float = 0.0
    regions_after: float = 0.0
    logit_median: float | None = None
    logit_p95: float | None = None
    time_ratio: float | None = None

    def problems(self) -> list[str]:
        """Return why the new model may not be promoted by itself; empty for nothing."""
        found = []
        if self.studies < MIN_STUDIES:
            found.append(f"{self.studies} studies were compared, expected {MIN_STUDIES}")
        if self.kept_share is None:
            found.append("no study with a finding was compared")
        elif self.kept_share < MIN_KEPT:
            found.append(
                f"it puts forward {self.kept} of {self.findings} findings"
                f" ({100 * self.kept_share:.0f} %), expected {100 * MIN_KEPT:g} %"
            )
        if self.added > MAX_ADDED:
            found.append(
                f"it has {self.added:.1f} findings a study of its own, at most {MAX_ADDED:g}"
            )
        most = MAX_REGIONS * self.regions_before + MORE_REGIONS
        if self.regions_after > most:
            found.append(
                f"it sends {self.regions_after:.1f} regions a study, expected at most {most:.1f}"
            )
        if self.time_ratio is not None and self.time_ratio > MAX_TIME:
            found.append(f"it takes {self.time_ratio:.1f} times as long, at most {MAX_TIME:g}")
        return found


def compare(findings: Sequence[Finding], before: Reading, after: Reading) -> Compared:
    """Compare two readings of one lung box; the findings are those of the first."""
    put_before, put_after = before.put_forward, after.put_forward
    added = [
        candidate
        for candidate in put_after
        if candidate.score >= after.thresholds.report and not _has(put_before, candidate)
    ]
    differences = [
        abs(_logit(b.score) - _logit(a.score))
        for b, a in _pairs(before.candidates, after.candidates)
        if b in put_before or a in put_after
    ]
    middle = high = None
    if differences:
        middle, high = (round(float(np.quantile(differences, q)), 4) for q in (0.5, 0.95))
    return Compared(
        findings=len(findings),
        kept=sum(_has(put_after, one) for one in findings),
        added=len(added),
        regions_before=before.regions,
        regions_after=after.regions,
        pairs=len(differences),
        logit_median=middle,
        logit_p95=high,
        before_s=round(before.took_s, 4),
        after_s=round(after.took_s, 4),
    )


def agreement_of(compared: Sequence[Compared]) -> Agreement:
    """Return what the studies show together."""
    if not compared:
        return Agreement()
    findings, kept = sum(one.findings for one in compared), sum(one.kept for one in compared)

    def mean(name: str) -> float:
        return fmean(getattr(one, name) for one in compared)

    return Agreement(
        studies=len(compared),
        findings=findings,
        kept=kept,
        kept_share=kept / findings if findings else None,
        added=mean("added"),
        regions_before=mean("regions_before"),
        regions_after=mean("regions_after"),
        logit_median=_median(one.logit_median for one in compared),
        logit_p95=_median(one.logit_p95 for one in compared),
        time_ratio=_median(one.after_s / one.before_s for one in compared if one.before_s > 0),
    )


def _pairs(
    before: Sequence[Candidate], after: Sequence[Candidate]
) -> list[tuple[Candidate, Candidate]]:
    """Return the candidates that both have, each in one pair; the strongest choose first."""
    left, pairs = list(after), list[tuple[Candidate, Candidate]]()
    for candidate in before:
        if near := [other for other in left if _is_near(candidate, other)]:
            chosen = min(near, key=lambda other: math.dist(candidate.centre_mm, other.centre_mm))
            left.remove(chosen)
            pairs.append((candidate, chosen))
    return pairs


def _has(candidates: Sequence[Candidate], place: Candidate | Finding) -> bool:
    return any(_is_near(one, place) for one in candidates)


def _is_near(one: Candidate, other: Candidate | Finding) -> bool:
    near_mm = max(NEAR_MM, one.diameter_mm / 2, other.diameter_mm / 2)
    return math.dist(one.centre_mm, other.centre_mm) <= near_mm


def _logit(score: float) -> float:
    within = min(max(score, 1e-6), 1 - 1e-6)
    return math.log(within / (1 - within))


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
