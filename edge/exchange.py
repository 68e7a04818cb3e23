"""One study's regions between edge and cloud: which are still open, and what came for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from edge.decide import Plan
from edge.link import Arrival
from imaging.preprocess import Preprocessed
from imaging.roi import cut_roi
from imaging.volume import WINDOW_HU
from protos import overread_pb2 as pb
from protos.codec import encode_header, encode_roi
from protos.deadline import Clock
from protos.errors import ModelFailed, OverreadError
from protos.messages import Header, Refusal, Roi, Summary, Verdict

LARGEST_MM = 200.0
"""No nodule is wider: a larger diameter is no answer."""


@dataclass(frozen=True)
class Escalated:
    """What came back for one study, by ROI identifier; ``reason`` says why not all of it.

    ``switched_off`` tells a site without a cloud from a cloud that did not answer.
    """

    verdicts: Mapping[int, Verdict] = field(default_factory=dict)
    refusals: Mapping[int, Refusal] = field(default_factory=dict)
    reason: str = ""
    attempts: int = 0
    switched_off: bool = False


class Exchange:
    """The state of one escalation, through all its attempts."""

    def __init__(self, rois: Sequence[Roi], clock: Clock) -> None:
        self.open = {roi.roi_id: roi for roi in rois}
        self.verdicts: dict[int, Verdict] = {}
        self.refusals: dict[int, Refusal] = {}
        self.arrivals: list[Arrival] = []
        self._clock, self._began_s = clock, clock()
        self._sent_bytes: dict[int, int] = {}

    def requests(self, header: Header) -> Iterator[pb.ReadRequest]:
        """The stream of the next attempt: the header, then every region that is still open."""
        self._began_s, self.arrivals, sent = self._clock(), [], 0
        rois = list(self.open.values())
        for roi in rois:
            sent += roi.voxels.nbytes
            self._sent_bytes[roi.roi_id] = sent
        return iter([encode_header(header), *(encode_roi(roi) for roi in rois)])

    def take(self, message: Verdict | Refusal | Summary) -> None:
        """Files one answer; one that was not asked for, or came before, is not taken."""
        if isinstance(message, Summary) or message.roi_id not in self.open:
            return
        del self.open[message.roi_id]
        if isinstance(message, Refusal):
            self.refusals[message.roi_id] = message
        elif reason := _nonsense(message):
            self.refusals[message.roi_id] = Refusal(message.roi_id, ModelFailed.__name__, reason)
        else:
            self.verdicts[message.roi_id] = message
            self.arrivals.append(self._arrival(message))

    def ended(self, fault: OverreadError | None, attempts: int) -> Escalated:
        """What the escalation came to, ``fault`` being what ended its last attempt early."""
        return Escalated(self.verdicts, self.refusals, self._why_incomplete(fault), attempts)

    def _arrival(self, verdict: Verdict) -> Arrival:
        after_s = self._clock() - self._began_s
        sent_bytes = self._sent_bytes[verdict.roi_id]
        return Arrival(sent_bytes, after_s, verdict.queue_s, verdict.compute_s)

    def _why_incomplete(self, fault: OverreadError | None) -> str:
        if self.open and fault is not None:
            return f"{fault.kind}: {fault.reason}"
        if self.open:
            return f"the service ended the stream with {len(self.open)} regions unanswered"
        if self.refusals:
            first = next(iter(self.refusals.values()))
            return f"{len(self.refusals)} regions refused: {first.error}: {first.reason}"
        return ""


def _nonsense(verdict: Verdict) -> str:
    """What of a verdict cannot be, in words; empty where all can. NaN fails every comparison."""
    if not 0.0 <= verdict.probability <= 1.0:
        return f"the verdict {verdict.probability} is no probability"
    if not 0.0 < verdict.diameter_mm <= LARGEST_MM:
        return f"{verdict.diameter_mm} mm is no diameter of a nodule"
    if not all(0.0 <= s < math.inf for s in (verdict.queue_s, verdict.compute_s)):
        return f"{verdict.queue_s} s waiting and {verdict.compute_s} s computing are no times"
    return ""


def cut_rois(plan: Plan, box: Preprocessed, shape: tuple[int, int, int]) -> list[Roi]:
    """The regions that ``plan`` sends, most valuable first, uint8 of ``shape`` (z, y, x)."""
    chosen = ((i, plan.decisions[i].candidate) for i in plan.send)
    return [
        Roi(
            roi_id=i,
            voxels=cut_roi(box.voxels, candidate.index_zyx, shape),
            spacing_mm=box.geometry.spacing_mm,
            window_hu=WINDOW_HU,
            edge_score=candidate.score,
        )
        for i, candidate in chosen
    ]
