"""What a report promises of missed nodules, and why it promises nothing where it does not.

The terms come with the model: they were found on held-back cases (`models.calibration.promise`)
for two readers that read everything uncertain, in full. A report whose reading was another
promises nothing. Pure functions: the same reading gives the same promise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

from edge.decide import Plan
from edge.errors import UnfitModel
from edge.escalation.rois import EscalationResult
from edge.selection import Size

SLICE_TOLERANCE_MM = 0.05
"""Slices count as no further apart than calibration's up to so much more."""


@dataclass(frozen=True)
class Terms:
    """What calibration found: with confidence 1 - ``delta`` at most ``alpha`` is missed.

    Attributes:
        alpha: the share of his nodules that a patient loses at most, on average over patients.
        delta: the chance that calibration was lucky and more is lost.
        patients: of the calibration.
        calibration: its identity; another score or another patient gives another.
        asked_alpha: the share that was asked for.
        confidence: with which ``asked_alpha`` can be promised.
        holds: whether ``asked_alpha`` can be promised at ``delta``.
        screening, hybrid: versions of the two models that read the calibration, the first with how
            it read (`models.runtime.screener.read_by`).
        slice_mm: the largest distance of slices in its scans.
        region_side: voxels along each side of the regions that the second model read.
        basis: what the calibration's nodules lay in, in words.
    """

    alpha: float
    delta: float
    patients: int
    calibration: str
    asked_alpha: float
    confidence: float
    holds: bool
    screening: str
    hybrid: str
    slice_mm: float
    region_side: int
    basis: str

    @classmethod
    def from_manifest(cls, settings: Mapping[str, object]) -> Self | None:
        """The terms of the manifest's table ``guarantee``, None where it gives none.

        Raises:
            UnfitModel: it is no table of exactly these, or one of them cannot be.
        """
        given = settings.get("guarantee")
        if given is None:
            return None
        if not isinstance(given, Mapping):
            raise UnfitModel(f"guarantee = {given!r}: the manifest must give a table")
        names = [field.name for field in fields(cls)]
        if odd := set(names) ^ set(given):
            raise UnfitModel(f"guarantee: {', '.join(sorted(odd))}: missing or not known")
        for name in names:
            if not _can_be(name, given[name]):
                raise UnfitModel(f"guarantee: {name} = {given[name]!r} cannot be")
        terms = cls(*(given[name] for name in names))
        if terms.holds != (terms.alpha <= terms.asked_alpha):
            raise UnfitModel(f"guarantee: holds = {terms.holds}, but alpha = {terms.alpha}")
        return terms

    @property
    def likely(self) -> bool:
        """Whether there is more for ``asked_alpha`` than against it."""
        return self.confidence > 0.5

    @property
    def text(self) -> str:
        """The promise in a sentence."""
        found_on = f"calibration {self.calibration} on {self.basis} of {self.patients} patients"
        if not self.holds:
            share = f"has {_percent(self.confidence)} confidence"
            found_on += f"; {_percent(self.asked_alpha)} was asked for, and "
            found_on += share if self.likely else "cannot be promised"
        return (
            f"with {_percent(1 - self.delta)} confidence at most {_percent(self.alpha)} of nodules "
            f"are missed, on average over patients ({found_on})"
        )


@dataclass(frozen=True)
class Guarantee:
    """What one report promises: the ``terms``, or nothing for a ``reason``.

    ``permanent`` tells a reason that no later verdict lifts.
    """

    terms: Terms | None = None
    reason: str = "the settings of the model carry none"
    permanent: bool = True

    @property
    def given(self) -> bool:
        """Whether anything is promised."""
        return self.terms is not None and not self.reason

    @property
    def text(self) -> str:
        """One line for the report."""
        if self.terms is None or self.reason:
            return f"no guarantee, because {self.reason}"
        return self.terms.text


NOT_CALIBRATED = Guarantee()
UNREAD = Guarantee(reason="the study was not read")


def guarantee_of_model(settings: Mapping[str, object], version: str) -> Guarantee:
    """The most that a report of this model, in this ``version`` and reading, may promise.

    Raises:
        UnfitModel: the manifest's guarantee cannot be read.
    """
    terms = Terms.from_manifest(settings)
    if terms is None:
        return NOT_CALIBRATED
    if terms.screening != version:
        reason = f"calibration was read by version {terms.screening} of the model, not {version}"
        return Guarantee(terms, reason)
    return Guarantee(terms, "", permanent=False)


def for_roi_side(most: Guarantee, side: int) -> Guarantee:
    """The same for an edge that sends regions of so many voxels along each side."""
    if most.terms is None or most.reason or side == most.terms.region_side:
        return most
    reason = (
        f"regions of {side} voxels a side are sent, and {most.terms.region_side} in calibration"
    )
    return Guarantee(most.terms, reason)


def guarantee_of(
    most: Guarantee, plan: Plan, answers: EscalationResult, slice_mm: float
) -> Guarantee:
    """What the report of a reading promises.

    Args:
        most: the most that it may.
        plan: what was to be read again, and in what sizes.
        answers: what was.
        slice_mm: the distance of the study's slices.
    """
    if most.terms is None or most.reason:
        return most
    if reason := _beyond(most.terms, plan, answers, slice_mm):
        return Guarantee(most.terms, reason)
    return amended_guarantee(most, plan, answers)


def amended_guarantee(before: Guarantee, plan: Plan, answers: EscalationResult) -> Guarantee:
    """The same when more verdicts have come: it is given once all are there."""
    if before.terms is None or before.permanent:
        return before
    return Guarantee(before.terms, _unread(before.terms, plan, answers), permanent=False)


def _beyond(terms: Terms, plan: Plan, answers: EscalationResult, slice_mm: float) -> str:
    """How the reading left what calibration covers, for good; empty if it did not."""
    if slice_mm > terms.slice_mm + SLICE_TOLERANCE_MM:
        return (
            f"slices are {slice_mm:.3g} mm apart, and in calibration no more than "
            f"{terms.slice_mm:.3g} mm"
        )
    if answers.switched_off:
        return "no second reader is set up"
    verdicts = [i for i in plan.uncertain if i in answers.verdicts]
    small = sum(plan.size_of(i) is not Size.FULL for i in verdicts)
    if small:
        return f"{small} of {len(verdicts)} regions were sent smaller than in calibration"
    return ""


def _unread(terms: Terms, plan: Plan, answers: EscalationResult) -> str:
    """What is missing of the second reading, or was read by another; empty if all is there."""
    wanted = plan.uncertain
    if missing := sum(i not in answers.verdicts for i in wanted):
        why = answers.reason or plan.held_back
        counts = f"{missing} of {len(wanted)} uncertain candidates were not read again"
        return f"{counts}: {why}" if why else counts
    models = {answers.verdicts[i].model for i in wanted}
    if others := sorted(model for model in models if terms.hybrid not in model):
        return f"the second reader was {others[0]}, in calibration version {terms.hybrid}"
    return ""


def _can_be(name: str, value: object) -> bool:
    match name:
        case "calibration" | "screening" | "hybrid" | "basis":
            return isinstance(value, str) and value != ""
        case "holds":
            return isinstance(value, bool)
        case _:
            return _number_can_be(name, value)


def _number_can_be(name: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    match name:
        case "patients" | "region_side":
            return isinstance(value, int) and value > 0
        case "slice_mm":
            return 0 < value < math.inf
        case "confidence":
            return 0 <= value < 1
        case _:
            return 0 < value < 1


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
