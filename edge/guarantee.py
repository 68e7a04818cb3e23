"""State what a report guarantees of missed nodules, or why it guarantees nothing.

The terms come with the model: calibration (`models.calibration.guarantee`) found them on held-out
cases, where every uncertain candidate was read again in full size. A report that was made in
another way has no guarantee. Pure functions: the same reading gives the same guarantee.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Self

from pydantic import Field, TypeAdapter, ValidationError

from edge.decide import ROI_SIDE, Plan
from edge.errors import UnfitModel
from edge.escalation.rois import EscalationResult
from edge.link.estimate import OFF
from edge.selection import Size
from imaging.volume import Limitation

Share = Annotated[float, Field(gt=0, lt=1, strict=True)]
Count = Annotated[int, Field(gt=0, strict=True)]
Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class Terms:
    """What calibration found: with confidence 1 - ``delta`` no more is missed than it says.

    Attributes:
        alpha: share of a patient's nodules that is in neither list at most, on average over
            patients.
        alpha_findings: share that is not among the findings at most.
        delta: probability that either true miss rate is higher.
        patients: of the calibration.
        calibration: its identity; another score or another patient gives another.
        screening, hybrid: versions of the two models in calibration, the first with its way of
            reading (`models.runtime.screener.read_by`).
        slice_mm: the largest distance of slices in its scans.
        min_age: of its patients, in years.
        kernels: reconstruction kernels that are known to be among its scans, in capitals.
        contrast: whether scans with contrast medium are known to be among them.
        region_side: voxels along each side of the ROIs that the second model read.
        basis: where the calibration's nodules lay, for the report.
    """

    alpha: Share
    alpha_findings: Share
    delta: Share
    patients: Count
    calibration: Text
    screening: Text
    hybrid: Text
    slice_mm: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
    region_side: Count
    basis: Text
    min_age: Count = 18
    kernels: tuple[str, ...] = ()
    contrast: Annotated[bool, Field(strict=True)] = False

    @classmethod
    def from_manifest(cls, settings: Mapping[str, object]) -> Self | None:
        """Read the manifest's table ``guarantee``; None if it has none.

        Raises:
            UnfitModel: it is no table of exactly these keys, or a value is out of range.
        """
        table = settings.get("guarantee")
        if table is None:
            return None
        if not isinstance(table, Mapping):
            raise UnfitModel(f"guarantee = {table!r}: the manifest must hold a table")
        names = [field.name for field in fields(cls)]
        if odd := set(names) ^ set(table):
            raise UnfitModel(f"guarantee: {', '.join(sorted(odd))}: missing or unknown")
        try:
            terms = TypeAdapter(cls).validate_python(table)
        except ValidationError as error:
            name = error.errors()[0]["loc"][0]
            raise UnfitModel(f"guarantee: {name} = {table[name]!r} is out of range") from None
        if terms.alpha > terms.alpha_findings:
            raise UnfitModel(
                f"guarantee: alpha {terms.alpha} is above alpha_findings {terms.alpha_findings}"
            )
        return terms

    @property
    def text(self) -> str:
        """The guarantee in a sentence."""
        return (
            f"With {_percent(1 - self.delta)} confidence, the findings miss at most "
            f"{_percent(self.alpha_findings)} of nodules, and findings and possible findings "
            f"together at most {_percent(self.alpha)}, on average over patients, provided that "
            f"nodules are as easy to find as those of calibration ({self.patients} patients; "
            f"{self.basis})."
        )

    @property
    def details(self) -> tuple[str, ...]:
        """What the sentence means and rests on, in further sentences."""
        return (
            "It is about many patients on average, not about this one.",
            "A nodule that no network proposed counts as missed.",
            f"Calibration {self.calibration} read {self.basis}, slices at most "
            f"{self.slice_mm:.3g} mm apart, and every uncertain candidate again in "
            f"{self.region_side} voxels a side.",
            f"Its models were {self.screening} on the edge and {self.hybrid} in the cloud.",
        )


@dataclass(frozen=True)
class Guarantee:
    """What one report guarantees: the ``terms``, or nothing for a ``reason``.

    ``permanent`` means that no later verdict removes the reason.
    """

    terms: Terms | None = None
    reason: str = "the model has no calibrated guarantee"
    permanent: bool = True

    @property
    def given(self) -> bool:
        """Whether anything is guaranteed."""
        return self.terms is not None and not self.reason

    @property
    def text(self) -> str:
        """One sentence for the report."""
        if self.terms is None or self.reason:
            return f"No guarantee for this scan: {self.reason.removesuffix('.')}."
        return self.terms.text

    @property
    def details(self) -> tuple[str, ...]:
        """What the sentence means and rests on; empty if nothing is guaranteed."""
        return self.terms.details if self.terms is not None and self.given else ()


NOT_CALIBRATED = Guarantee()
UNREAD = Guarantee(reason="the study was not read")


def guarantee_of_model(settings: Mapping[str, object], version: str) -> Guarantee:
    """Return the most that a report of this model, in this ``version`` and reading, may guarantee.

    Other models than those of calibration have no guarantee, nor have ROIs of another side.

    Raises:
        UnfitModel: the manifest's guarantee cannot be read.
    """
    terms = Terms.from_manifest(settings)
    if terms is None:
        return NOT_CALIBRATED
    if terms.screening != version:
        reason = f"calibration used version {terms.screening} of the model, not {version}"
        return Guarantee(terms, reason)
    if terms.region_side != ROI_SIDE:
        reason = f"ROIs have {ROI_SIDE} voxels a side, in calibration they had {terms.region_side}"
        return Guarantee(terms, reason)
    return Guarantee(terms, "", permanent=False)


def guarantee_of(
    most: Guarantee, plan: Plan, answers: EscalationResult, limitations: Sequence[Limitation] = ()
) -> Guarantee:
    """Return what the report of one study guarantees, ``most`` at most.

    Any of the ``limitations`` withdraws the guarantee for good.
    """
    if most.terms is None or most.reason:
        return most
    if limitations:
        plural = "limitations" if len(limitations) > 1 else "a limitation"
        return Guarantee(most.terms, f"the study has {plural}")  # the report lists them
    if reason := _outside_calibration(plan, answers):
        return Guarantee(most.terms, reason)
    return amended_guarantee(most, plan, answers)


def amended_guarantee(before: Guarantee, plan: Plan, answers: EscalationResult) -> Guarantee:
    """Return the guarantee after more verdicts: it is given once every verdict has arrived."""
    if before.terms is None or before.permanent:
        return before
    return Guarantee(before.terms, _incomplete(before.terms, plan, answers), permanent=False)


def _outside_calibration(plan: Plan, answers: EscalationResult) -> str:
    """Return the permanent difference from calibration in how it was read, or an empty text."""
    if answers.switched_off:
        return OFF.reason
    # A smaller ROI shows the cloud less than calibration did. An unanswered one does no harm: an
    # amendment sends it in full size.
    verdicts = [i for i in plan.uncertain if i in answers.verdicts]
    small = sum(plan.size_of(i) is not Size.FULL for i in verdicts)
    if small:
        return f"{small} of {len(verdicts)} ROIs were smaller than in calibration"
    return ""


def _incomplete(terms: Terms, plan: Plan, answers: EscalationResult) -> str:
    """Return why the second reading is incomplete or from another model, or an empty text."""
    wanted = plan.uncertain
    if missing := sum(i not in answers.verdicts for i in wanted):
        why = answers.reason or plan.held_back
        counts = f"{missing} of {len(wanted)} uncertain candidates were not read again"
        return f"{counts}: {why}" if why else counts
    models = {answers.verdicts[i].model for i in wanted}
    if others := sorted(model for model in models if terms.hybrid not in model):
        return f"the second reader was {others[0]}, in calibration version {terms.hybrid}"
    return ""


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
