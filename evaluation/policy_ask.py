"""How a policy asks: as the agent does, within the deadline, or as Sedna does, until it is over.

`ByDeadline` follows `edge.escalation.client` and `edge.escalation.attempt` in simulated time, with the agent's own
`edge.link.link.Link` if it is given one; it never asks first, for nobody else keeps that cloud busy.
`Patient` is the client of Sedna's joint inference (github.com/kubeedge/sedna,
`lib/sedna/service/client.py`): one request with everything, five attempts three seconds apart, no
deadline. The time-out of 300 s that its code names is given to nobody there; here it holds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edge.escalation.client import RECONNECT_PAUSE_S
from edge.link.link import Link
from evaluation.policy_link import SimulatedLink, Spoken

SEDNA_ATTEMPTS, SEDNA_PAUSE_S, SEDNA_TIMEOUT_S = 5, 3.0, 300.0

Regions = Sequence[tuple[int, int]]
"""Place of the candidate, and bytes of its region."""


@dataclass
class Clock:
    """Simulated seconds; it only goes forward when someone says so."""

    now_s: float = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.now_s


@dataclass(frozen=True)
class Asked:
    """What came of it: the places with a verdict, and what was sent for them."""

    answered: tuple[int, ...] = ()
    rois: int = 0
    sent_bytes: int = 0


class Asks(Protocol):
    """Asks about regions; the clock stands where it is over."""

    def ask(self, regions: Regions, until_s: float, *, counts: bool = True) -> Asked:
        """The verdicts that came by ``until_s``, if that matters, and if missing it ``counts``."""


class ByDeadline:
    """Streams verdicts as they come; breaks off at the deadline.

    Args:
        wire: what is asked over.
        clock: goes on to the end of each asking.
        attempts: streams at most.
        rng: of the pauses.
        belief: learns of the link and keeps from asking; None asks always.
    """

    def __init__(
        self,
        wire: SimulatedLink,
        clock: Clock,
        attempts: int,
        rng: random.Random,
        belief: Link | None = None,
    ) -> None:
        self._wire, self._clock, self._attempts = wire, clock, attempts
        self._rng, self._belief = rng, belief

    def ask(self, regions: Regions, until_s: float, *, counts: bool = True) -> Asked:
        """The verdicts that came by then; ``counts`` is false for what is owed."""
        open_ones, answered, rois, sent_bytes = dict(regions), list[int](), 0, 0
        if not open_ones or until_s <= self._clock.now_s:
            return Asked()
        if self._belief is not None and not self._belief.enter():
            return Asked()
        for attempt in range(self._attempts):
            self._clock.now_s = min(until_s, self._clock.now_s + self._pause_s(attempt))
            places, began_s = list(open_ones), self._clock.now_s
            sizes = [open_ones[i] for i in places]
            spoken = self._attempt(sizes, until_s)
            came = [places[i] for i in spoken.answered_s]
            answered += came
            rois, sent_bytes = max(rois, spoken.rois), sent_bytes + spoken.sent_bytes
            if not spoken.broke or self._clock.now_s >= until_s:
                break
            open_ones = {i: size for i, size in open_ones.items() if i not in came}
        self._learn(spoken, began_s, sizes, counts=counts)
        return Asked(tuple(answered), rois, sent_bytes)

    def _attempt(self, sizes: Sequence[int], until_s: float) -> Spoken:
        silence_s = self._belief.patience_s() if self._belief is not None else math.inf
        spoken = self._wire.stream(self._clock.now_s, sizes, until_s, silence_s=silence_s)
        self._clock.now_s = spoken.ended_s
        return spoken

    def _pause_s(self, attempt: int) -> float:
        most_s = RECONNECT_PAUSE_S * 2 ** (attempt - 1)
        return self._rng.uniform(0.0, most_s) if attempt else 0.0

    def _learn(self, spoken: Spoken, began_s: float, sizes: Sequence[int], *, counts: bool) -> None:
        """As `edge.escalation.attempt` tells its link; who is cancelled at the deadline tells no queue."""
        if self._belief is None:
            return
        heard_s, waited_s = spoken.heard_s or None, self._clock.now_s - began_s
        rois = next((i for i in range(len(sizes)) if i not in spoken.answered_s), 0) + 1
        if spoken.broke:
            self._belief.failed("the connection was lost")
        elif len(spoken.arrivals) == len(sizes):
            self._belief.succeeded(spoken.arrivals, spoken.heard_s)
            self._belief.queue_reported(self._wire.cloud.queue_s(self._clock.now_s))
        elif spoken.arrivals:
            self._belief.succeeded(spoken.arrivals, spoken.heard_s)
            self._belief.slower_than(sum(sizes[:rois]), waited_s, heard_s, rois)
        elif heard_s is None:
            self._belief.failed("there was no sign of the cloud")
        else:
            self._belief.missed(sizes[0], waited_s, heard_s, counts=counts)


class Patient:
    """Waits for one answer to everything, and tries again; knows no deadline."""

    def __init__(self, wire: SimulatedLink, clock: Clock) -> None:
        self._wire, self._clock = wire, clock

    def ask(self, regions: Regions, until_s: float, *, counts: bool = True) -> Asked:
        """All verdicts, or none after the last attempt."""
        del until_s, counts
        sizes, rois, sent_bytes = [size for _, size in regions], 0, 0
        for attempt in range(SEDNA_ATTEMPTS if regions else 0):
            self._clock.now_s += SEDNA_PAUSE_S if attempt else 0.0
            now_s = self._clock.now_s
            spoken = self._wire.stream(now_s, sizes, now_s + SEDNA_TIMEOUT_S, anew=True)
            self._clock.now_s = spoken.ended_s
            rois, sent_bytes = max(rois, spoken.rois), sent_bytes + spoken.sent_bytes
            if len(spoken.answered_s) == len(sizes):
                return Asked(tuple(place for place, _ in regions), rois, sent_bytes)
        return Asked((), rois, sent_bytes)
