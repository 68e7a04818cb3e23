"""A verdict as it came in, and what several of one stream tell of link and cloud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Arrival:
    """One verdict as it came in.

    ``sent_bytes`` are those of the stream up to and including its ROI, ``received_bytes`` those
    of the answers up to and including this one, ``after_s`` the time since the stream's regions
    could be sent, ``queue_s`` and ``compute_s`` what the cloud says it spent.
    """

    sent_bytes: int
    after_s: float
    queue_s: float
    compute_s: float
    received_bytes: int = 0

    @property
    def transport_s(self) -> float:
        """What the way there and back took."""
        return max(0.0, self.after_s - self.queue_s - self.compute_s)


def read_now(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Those that the cloud read; one that it remembered tells nothing of queue and reading."""
    return [arrival for arrival in arrivals if arrival.compute_s > 0.0]


def reading_s(arrivals: Sequence[Arrival]) -> float:
    """The cloud's time for all of them: of their batches, or from the first to the last.

    Regions of one batch tell the same time. Between batches the cloud may serve others.
    """
    batches_s = sum({a.compute_s for a in arrivals})
    return max(batches_s, max(a.queue_s + a.compute_s for a in arrivals) - arrivals[0].queue_s)


def down_s(arrivals: Sequence[Arrival]) -> float | None:
    """Seconds a byte of the longest run of answers that left the cloud together; None for none."""
    runs = [list(run) for _, run in groupby(arrivals, key=lambda a: a.compute_s)]
    run = max(runs, key=len)
    received = run[-1].received_bytes - run[0].received_bytes
    return (run[-1].after_s - run[0].after_s) / received if received > 0 else None
