"""What to expect of the link: the time of an escalation, in the middle and on the slow side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

ANSWER_BYTES = 512
"""One verdict with the packed mask of a nodule."""

NORMAL = NormalDist()
SLOW = 0.95
"""The quantile that `LinkEstimate.slow` holds."""

Stages = tuple[float, float, float]
"""Of sending, reading and answering."""


@dataclass(frozen=True)
class Pace:
    """How fast the link and the cloud behind it are.

    Attributes:
        round_trip_s: time for a small message there and back.
        bytes_per_s: throughput towards the cloud.
        down_bytes_per_s: throughput from it.
        queue_s: how long the next ROI waits in the cloud.
        roi_s: the cloud's time for one ROI, many sent together.
    """

    round_trip_s: float
    bytes_per_s: float
    down_bytes_per_s: float
    queue_s: float
    roi_s: float

    @property
    def busy(self) -> bool:
        """Whether asking first costs nothing: what comes waits longer than a round trip anyway."""
        return self.queue_s > self.round_trip_s

    def stages_s(self, rois: int, sent_bytes: float) -> Stages:
        """Sending, reading and answering ``rois`` regions, each for itself."""
        answers = rois * ANSWER_BYTES
        return sent_bytes / self.bytes_per_s, rois * self.roi_s, answers / self.down_bytes_per_s


# 100 Mbit/s with 10 Mbit/s not ruled out: what is believed before the first measurement.
PRIOR = Pace(0.05, 12.5e6, 12.5e6, 0.0, 0.05)
PRIOR_SLOW = Pace(0.25, 1.25e6, 1.25e6, 0.05, 0.15)


@dataclass(frozen=True)
class LinkEstimate:
    """What to expect of the link now.

    Attributes:
        available: False while it is off or the breaker is open; ``reason`` says which.
        middle: medians of what was measured.
        slow: the 95th percentiles of time, the 5th of throughput.
        off: there is no cloud at all.
        probing: nobody was reached for a while, and the next escalation finds out.
        silent_s: since the cloud was last heard of; None for never.
    """

    available: bool = True
    reason: str = ""
    middle: Pace = PRIOR
    slow: Pace = PRIOR_SLOW
    off: bool = False
    probing: bool = False
    silent_s: float | None = None

    @classmethod
    def steady(cls, pace: Pace) -> LinkEstimate:
        """A link that is never slower than ``pace``."""
        return cls(middle=pace, slow=pace)

    def expected_s(self, rois: int, roi_bytes: int) -> float:
        """The median time in which ``rois`` regions of equal size are sent, read and answered."""
        return self.completion_s(rois, rois * roi_bytes, 0.5)

    def completion_s(self, rois: int, sent_bytes: float, q: float = SLOW) -> float:
        """The time that a share ``q`` of escalations like this does not exceed.

        Sending, reading and answering overlap like a flow line of three machines: each region
        passes all three, and the slowest is passed by all. Around the medians the parts are
        taken to be normal and independent, so that their deviations add as squares.

        Args:
            rois: regions that are sent.
            sent_bytes: of all of them together.
            q: above 0 and below 1.
        """
        deviations = NORMAL.inv_cdf(q) / NORMAL.inv_cdf(SLOW)
        middle = self.middle.stages_s(rois, sent_bytes)
        slow = self.slow.stages_s(rois, sent_bytes)
        return max(self._quantile_s(middle, slow, s, deviations) for s in _slowest(rois))

    def _quantile_s(self, middle: Stages, slow: Stages, shares: Stages, deviations: float) -> float:
        """Sum of the medians, and of the deviations from them as squares."""
        m, s = self.middle, self.slow
        parts = [(m.round_trip_s, s.round_trip_s, 1.0), (m.queue_s, s.queue_s, 1.0)]
        parts += zip(middle, slow, shares, strict=True)
        spread_s = math.hypot(*((high - mid) * share for mid, high, share in parts))
        return max(0.0, sum(mid * share for mid, _, share in parts) + deviations * spread_s)


def _slowest(rois: int) -> list[Stages]:
    """How much of each stage counts, for each that may be the slowest: all of it, else one ROI."""
    one = 1 / max(rois, 1)
    return [(1.0, one, one), (one, 1.0, one), (one, one, 1.0)]


OFF = LinkEstimate(available=False, reason="off", off=True)
