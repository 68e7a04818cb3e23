"""The ROIs of one escalation: which are still open, and the answers to the others."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from edge.decide import ROI_SIDE, Plan
from edge.findings import BoolArray
from imaging.preprocess import Preprocessed
from imaging.roi import cut_roi
from imaging.volume import WINDOW_HU
from protos.codec import unpack_mask
from protos.errors import (
    ChecksumMismatch,
    DeadlineUnmeetable,
    Draining,
    InvalidRequest,
    LinkFault,
    ModelFailed,
    Overloaded,
    OverreadError,
    Unreachable,
    error_by_name,
)
from protos.messages import Refusal, Roi, Summary, Verdict

ROI_SHAPE = (ROI_SIDE, ROI_SIDE, ROI_SIDE)
RETRYABLE = (Unreachable, Overloaded, Draining, ChecksumMismatch)
"""Faults of a stream, or refusals of one ROI, after which a retry may help."""

MAX_MM = 200.0
"""A larger diameter is not plausible for a nodule: the verdict is refused."""


@dataclass(frozen=True)
class EscalationResult:
    """The answers to one escalation, by ROI identifier.

    Attributes:
        verdicts, refusals: the answers.
        masks: voxels ``(z, y, x)`` of the nodules that were outlined.
        reason: why the answers are incomplete; empty when they are complete.
        attempts: streams that were opened.
        switched_off: no cloud is configured.
        rejected: a reachable cloud did not answer everything. A draining one is not reachable.
    """

    verdicts: Mapping[int, Verdict] = field(default_factory=dict)
    refusals: Mapping[int, Refusal] = field(default_factory=dict)
    masks: Mapping[int, BoolArray] = field(default_factory=dict)
    reason: str = ""
    attempts: int = 0
    switched_off: bool = False
    rejected: bool = False

    @property
    def refused(self) -> bool:
        """Whether the cloud itself refused some ROIs. It may still accept other studies."""
        return self.rejected or bool(self.refusals)

    @property
    def counts(self) -> dict[str, int | bool]:
        """How many answers came, for a trace."""
        return {
            "verdicts": len(self.verdicts),
            "refusals": len(self.refusals),
            "attempts": self.attempts,
            "complete": not self.reason,
        }


class RoiStates:
    """Which ROIs of one escalation are open, refused or answered, through all its attempts."""

    def __init__(self, rois: Sequence[Roi]) -> None:
        self.open = {roi.roi_id: roi for roi in rois}
        self.verdicts: dict[int, Verdict] = {}
        self.masks: dict[int, BoolArray] = {}
        self.refusals: dict[int, Refusal] = {}

    @property
    def unanswered(self) -> Set[int]:
        """The open ROIs for which nothing came, not even a refusal."""
        return self.open.keys() - self.refusals.keys()

    def take(self, message: Verdict | Refusal | Summary, *, elsewhere: bool = False) -> bool:
        """Record one answer; return whether it is a verdict that counts.

        One to an unknown or answered ROI is ignored. ``elsewhere`` says whether another cloud may
        still answer what this one cannot do in time.
        """
        if isinstance(message, Summary) or message.roi_id not in self.open:
            return False
        # A refused ROI stays open for a retry if the cause may pass, and for another cloud if this
        # one cannot answer it in time.
        if isinstance(message, Refusal) and (
            _is_retryable(message) or (elsewhere and message.error == DeadlineUnmeetable.__name__)
        ):
            self.refusals[message.roi_id] = message
            return False
        # Any other answer closes the ROI; an implausible verdict counts as a refusal.
        roi = self.open.pop(message.roi_id)
        self.refusals.pop(message.roi_id, None)
        if isinstance(message, Refusal):
            self.refusals[message.roi_id] = message
        elif reason := _implausible(message):
            self.refusals[message.roi_id] = Refusal(message.roi_id, ModelFailed.__name__, reason)
        else:
            self.verdicts[message.roi_id] = message
            if (mask := mask_of(message, roi)) is not None:
                self.masks[message.roi_id] = mask
        return message.roi_id in self.verdicts

    def is_retryable(self, fault: OverreadError | None) -> bool:
        """Return whether a retry may help after an attempt that ended with ``fault``."""
        refused_for_now = any(
            _is_retryable(self.refusals[roi_id]) for roi_id in self.open if roi_id in self.refusals
        )
        return isinstance(fault, RETRYABLE) or (fault is None and refused_for_now)

    def result(self, fault: OverreadError | None, attempts: int) -> EscalationResult:
        """Return the result of the escalation; ``fault`` ended its last attempt early."""
        answers = (self.verdicts, self.refusals, self.masks)
        reason, unanswered = "", self.unanswered
        if unanswered and fault is not None:
            reason = fault.text
        elif unanswered:
            reason = f"the cloud left {_rois(len(unanswered))} unanswered"
        elif self.refusals:
            first = next(iter(self.refusals.values()))
            reason = f"the cloud refused {_rois(len(self.refusals))}: {text_of(first)}"
        reached = attempts > 0 and not isinstance(fault, (LinkFault, Draining))
        return EscalationResult(*answers, reason, attempts, rejected=reached and bool(self.open))


def text_of(refusal: Refusal) -> str:
    """Return why an ROI was refused, for reports."""
    return error_by_name(refusal.error, refusal.reason).text


def _rois(count: int) -> str:
    return "1 ROI" if count == 1 else f"{count} ROIs"


def _is_retryable(refusal: Refusal) -> bool:
    return isinstance(error_by_name(refusal.error, refusal.reason), RETRYABLE)


def _implausible(verdict: Verdict) -> str:
    """Return what in a verdict is implausible, or an empty text. NaN fails every comparison."""
    if not 0.0 <= verdict.probability <= 1.0:
        return f"invalid probability {verdict.probability}, expected 0 to 1"
    if not 0.0 < verdict.diameter_mm <= MAX_MM:
        return f"invalid diameter {verdict.diameter_mm} mm, expected 0 to {MAX_MM:g} mm"
    if verdict.malignancy is not None and not 0.0 <= verdict.malignancy <= 1.0:
        return f"invalid malignancy score {verdict.malignancy}, expected 0 to 1"
    if not all(0.0 <= s < math.inf for s in (verdict.queue_s, verdict.compute_s)):
        return f"invalid times: queue_s = {verdict.queue_s}, compute_s = {verdict.compute_s}"
    return ""


def mask_of(verdict: Verdict, roi: Roi) -> BoolArray | None:
    """Return the nodule's voxels in its ROI; None where the verdict holds no readable mask."""
    z, y, x = roi.voxels.shape
    try:
        mask = unpack_mask(verdict.mask, (z, y, x))
    except InvalidRequest:
        return None  # the verdict stands without it
    return mask if mask.any() else None


def cut_rois(plan: Plan, box: Preprocessed, shape: tuple[int, int, int] = ROI_SHAPE) -> list[Roi]:
    """Cut the ROIs that ``plan`` sends, most valuable first, uint8 ``(z, y, x)``.

    ``shape`` is that of a full ROI; the plan's sizes make it smaller.
    """
    return [cut_one(plan, i, box, plan.size_of(i).shape_of(shape)) for i in plan.send]


def cut_one(plan: Plan, number: int, box: Preprocessed, shape: tuple[int, int, int]) -> Roi:
    """Cut the ROI of ``shape`` (z, y, x) around the candidate of that number in ``plan``."""
    candidate = plan.decisions[number].candidate
    return Roi(
        roi_id=number,
        voxels=cut_roi(box.voxels, candidate.index_zyx, shape),
        spacing_mm=box.geometry.spacing_mm,
        window_hu=WINDOW_HU,
        edge_score=candidate.score,
    )
