"""One study's regions between edge and cloud: which are still open, and what came for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from edge.decide import Plan
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

RETRYABLE = (Unreachable, Overloaded, Draining, ChecksumMismatch)
"""What may pass: of a stream or of one region."""

LARGEST_MM = 200.0
"""No nodule is wider: a larger diameter is no answer."""


@dataclass(frozen=True)
class Escalated:
    """What came back for one study, by ROI identifier; ``reason`` says why not all of it.

    ``masks`` holds the voxels ``(z, y, x)`` of the nodules that were outlined.
    ``switched_off`` tells a site without a cloud from a cloud that did not answer, and
    ``turned_away`` a cloud that was there and would not go on from one that was not reached; one
    that is draining is as good as gone.
    """

    verdicts: Mapping[int, Verdict] = field(default_factory=dict)
    refusals: Mapping[int, Refusal] = field(default_factory=dict)
    masks: Mapping[int, BoolArray] = field(default_factory=dict)
    reason: str = ""
    attempts: int = 0
    switched_off: bool = False
    turned_away: bool = False

    @property
    def refused(self) -> bool:
        """Whether the cloud itself would not read some of it: its word on this study alone."""
        return self.turned_away or bool(self.refusals)


class Exchange:
    """The state of one escalation, through all its attempts."""

    def __init__(self, rois: Sequence[Roi]) -> None:
        self.open = {roi.roi_id: roi for roi in rois}
        self.verdicts: dict[int, Verdict] = {}
        self.masks: dict[int, BoolArray] = {}
        self.refusals: dict[int, Refusal] = {}
        self._left_over: set[int] = set()

    @property
    def unanswered(self) -> Set[int]:
        """Those of which nothing came, not even that they are refused for now."""
        return self.open.keys() - self.refusals.keys()

    def take(self, message: Verdict | Refusal | Summary, *, elsewhere: bool = False) -> bool:
        """Files one answer; one that was not asked for, or came before, is not taken.

        A region that was refused for what may pass stays open, for the next attempt; and so does
        one that a cloud has no room for while it may be answered ``elsewhere``, until another has
        none either. Returns whether it was a verdict to go by.
        """
        if isinstance(message, Summary) or message.roi_id not in self.open:
            return False
        left_over = elsewhere and message.roi_id not in self._left_over and no_room(message)
        if isinstance(message, Refusal) and (left_over or _passes(message)):
            self.refusals[message.roi_id] = message
            if left_over:
                self._left_over.add(message.roi_id)
            return False
        roi = self.open.pop(message.roi_id)
        self.refusals.pop(message.roi_id, None)
        if isinstance(message, Refusal):
            self.refusals[message.roi_id] = message
        elif reason := _nonsense(message):
            self.refusals[message.roi_id] = Refusal(message.roi_id, ModelFailed.__name__, reason)
        else:
            self.verdicts[message.roi_id] = message
            if (mask := mask_of(message, roi)) is not None:
                self.masks[message.roi_id] = mask
        return message.roi_id in self.verdicts

    def close_left_over(self) -> None:
        """What was left open for another cloud, and not answered by it, is refused for good."""
        for roi_id in self._left_over & self.open.keys() & self.refusals.keys():
            if no_room(self.refusals[roi_id]):
                del self.open[roi_id]
        self._left_over.clear()

    def may_pass(self, fault: OverreadError | None) -> bool:
        """Whether another attempt may help after one that ``fault`` ended, None if it was whole."""
        refused_for_now = any(
            _passes(self.refusals[roi_id]) for roi_id in self.open if roi_id in self.refusals
        )
        return isinstance(fault, RETRYABLE) or (fault is None and refused_for_now)

    def ended(self, fault: OverreadError | None, attempts: int) -> Escalated:
        """What the escalation came to, ``fault`` being what ended its last attempt early."""
        return Escalated(
            self.verdicts,
            self.refusals,
            self.masks,
            self._why_incomplete(fault),
            attempts,
            turned_away=attempts > 0
            and bool(self.open)
            and not isinstance(fault, (LinkFault, Draining)),
        )

    def _why_incomplete(self, fault: OverreadError | None) -> str:
        unanswered = self.unanswered
        if unanswered and fault is not None:
            return f"{fault.kind}: {fault.reason}"
        if unanswered:
            return f"the service ended the stream with {len(unanswered)} regions unanswered"
        if self.refusals:
            first = next(iter(self.refusals.values()))
            return f"{len(self.refusals)} regions refused: {first.error}: {first.reason}"
        return ""


def no_room(message: object) -> bool:
    """Whether a cloud would read this region too late: another may be in time."""
    return isinstance(message, Refusal) and message.error == DeadlineUnmeetable.__name__


def _passes(refusal: Refusal) -> bool:
    """Whether another attempt may bring a verdict."""
    return isinstance(error_by_name(refusal.error, refusal.reason), RETRYABLE)


def _nonsense(verdict: Verdict) -> str:
    """What of a verdict cannot be, in words; empty where all can. NaN fails every comparison."""
    if not 0.0 <= verdict.probability <= 1.0:
        return f"the verdict {verdict.probability} is no probability"
    if not 0.0 < verdict.diameter_mm <= LARGEST_MM:
        return f"{verdict.diameter_mm} mm is no diameter of a nodule"
    if verdict.malignancy is not None and not 0.0 <= verdict.malignancy <= 1.0:
        return f"the malignancy {verdict.malignancy} is no probability"
    if not all(0.0 <= s < math.inf for s in (verdict.queue_s, verdict.compute_s)):
        return f"{verdict.queue_s} s waiting and {verdict.compute_s} s computing are no times"
    return ""


def mask_of(verdict: Verdict, roi: Roi) -> BoolArray | None:
    """The nodule's voxels in its region; None where the verdict holds none that can be read."""
    z, y, x = roi.voxels.shape
    try:
        mask = unpack_mask(verdict.mask, (z, y, x))
    except InvalidRequest:
        return None  # the verdict stands without it
    return mask if mask.any() else None


def cut_rois(plan: Plan, box: Preprocessed, shape: tuple[int, int, int]) -> list[Roi]:
    """The regions that ``plan`` sends, most valuable first, uint8 ``(z, y, x)``.

    ``shape`` is that of a full region; the plan's sizes make it smaller.
    """
    return [cut_one(plan, i, box, plan.size_of(i).shape_of(shape)) for i in plan.send]


def cut_one(plan: Plan, place: int, box: Preprocessed, shape: tuple[int, int, int]) -> Roi:
    """The region of ``shape`` (z, y, x) around the candidate of that place in ``plan``."""
    candidate = plan.decisions[place].candidate
    return Roi(
        roi_id=place,
        voxels=cut_roi(box.voxels, candidate.index_zyx, shape),
        spacing_mm=box.geometry.spacing_mm,
        window_hu=WINDOW_HU,
        edge_score=candidate.score,
    )
