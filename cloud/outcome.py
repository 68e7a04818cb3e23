"""What became of an ROI, as the contract says it: a reading as a verdict, an error as a refusal."""

from __future__ import annotations

from models.runtime.second_reader import Reading
from protos.codec import pack_mask
from protos.errors import DeadlineUnmeetable, OverreadError
from protos.messages import Refusal, Verdict


def verdict_of(
    roi_id: int, reading: Reading, model: str, queue_s: float = 0.0, compute_s: float = 0.0
) -> Verdict:
    """A reading as the verdict on the ROI of that number."""
    return Verdict(
        roi_id=roi_id,
        probability=reading.probability,
        diameter_mm=reading.diameter_mm,
        model=model,
        queue_s=queue_s,
        compute_s=compute_s,
        malignancy=reading.malignancy,
        texture=reading.texture,
        mask=pack_mask(reading.mask),
    )


def refusal_of(roi_id: int, error: OverreadError) -> Refusal:
    """An error as the refusal of the ROI of that number, with the estimate if it has one."""
    known_s = error.estimate_s if isinstance(error, DeadlineUnmeetable) else None
    return Refusal(roi_id, error.kind, error.reason, known_s or 0.0)
