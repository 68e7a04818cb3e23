"""The link of the simulation: what becomes of one stream over a trace, as in `evaluation.links.proxy`.

Bytes pass the same token bucket and the same lane as the proxy's, in simulated time. A stream ends
with its last answer, when its connection breaks, or when its time is up.

The cloud of the simulation: one reader of learnt cost, its queue, and its batches.

It reads as `cloud.scheduling.batcher` does: in batches as large as company pays, each after the one before;
a region whose answer would come too late is never read.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cloud.scheduling.cost import CostModel
from edge.link.estimate import ANSWER_BYTES, Arrival
from evaluation.links.proxy import CHUNK_BYTES, Flight, TokenBucket
from evaluation.links.trace import State, Trace


@dataclass(frozen=True)
class Served:
    """One region as the cloud read it: when that was done, how long it waited and took."""

    done_s: float
    queue_s: float
    compute_s: float


class SimulatedCloud:
    """Serves one stream after another; time is what it is told.

    Args:
        batches: ``(regions, seconds)`` as measured, from which the cost t = a n + b is learnt.
        most: regions in a batch.
        max_batch_delay_s: longest wait of a region for others to join its batch.
    """

    def __init__(
        self, batches: Sequence[tuple[int, float]], most: int, max_batch_delay_s: float
    ) -> None:
        self._cost, self._most = CostModel(memory=1.0), most
        self._max_batch_delay_s = max_batch_delay_s
        for n, took_s in batches:
            self._cost.observe(n, took_s)
        self._free_s = -math.inf

    def queue_s(self, now_s: float) -> float:
        """How long what came now would wait."""
        return max(0.0, self._free_s - now_s)

    def read(self, came_s: Sequence[float], until_s: float) -> list[Served | None]:
        """What becomes of regions that came at these times, each after the one before.

        None is what could not be answered by ``until_s``; ``inf`` never came.
        """
        served: list[Served | None] = []
        waiting = [t for t in came_s if math.isfinite(t)]
        while len(served) < len(waiting):
            first = len(served)
            begin_s = self._begins_s(waiting[first:])
            n = sum(t <= begin_s for t in waiting[first : first + self._most])
            took_s = self._cost.estimate_s(n)
            if begin_s + took_s > until_s:
                served.append(None)
                continue
            self._free_s = begin_s + took_s
            batch = waiting[first : first + n]
            served += [Served(self._free_s, begin_s - t, took_s) for t in batch]
        return served + [None] * (len(came_s) - len(served))

    def _begins_s(self, waiting: Sequence[float]) -> float:
        """Return when the next batch begins: full enough, or its first has waited."""
        efficient = self._cost.efficient_size(self._most)
        full_s = waiting[efficient - 1] if len(waiting) >= efficient else math.inf
        return max(self._free_s, min(waiting[0] + self._max_batch_delay_s, full_s))


REFUSED_S = 0.001
"""What it takes to learn that nobody listens."""


@dataclass(frozen=True)
class Spoken:
    """One stream, from its opening to its end.

    Attributes:
        answered_s: when the answer to each region came, by its number; those that came.
        arrivals: the same as `edge.link.link` takes them in.
        heard_s: to the first sign of the cloud, 0 for none.
        ended_s: when it was over.
        broke: the connection was lost.
        rois, sent_bytes: regions of which something left the edge, and all that did.
    """

    answered_s: dict[int, float]
    arrivals: tuple[Arrival, ...]
    heard_s: float
    ended_s: float
    broke: bool
    rois: int
    sent_bytes: int


class SimulatedLink:
    """A trace with a cloud behind it, and one connection, made anew when it is lost."""

    def __init__(self, trace: Trace, cloud: SimulatedCloud, seed: str) -> None:
        self.cloud = cloud
        self._trace, self._rng = trace, random.Random(seed)
        self._up, self._down = TokenBucket(), TokenBucket()
        self._kept_s = math.nan  # until when the connection is known to live; NaN: there is none

    def stream(
        self,
        at_s: float,
        sizes: Sequence[int],
        until_s: float,
        *,
        silence_s: float = math.inf,
        anew: bool = False,
    ) -> Spoken:
        """Regions of so many bytes that are sent at ``at_s``.

        It is over where nothing was heard within ``silence_s``; ``anew`` makes a new connection.
        """
        if self._trace.at(at_s).state is State.RESET:
            self._kept_s = math.nan
            return Spoken({}, (), 0.0, at_s + REFUSED_S, True, 0, 0)
        fresh = anew or not self._first_reset_s(self._kept_s) > at_s
        opened_s = at_s + (self._trace.at(at_s).latency_ms / 1000 if fresh else 0.0)
        way = _Way(self._trace, self._rng, self._first_reset_s(at_s))
        heard_s = way.echo_s(opened_s) - at_s
        until_s = until_s if heard_s <= silence_s else min(until_s, at_s + silence_s)
        came_s, rois, sent_bytes = self._sent(way, opened_s, sizes, until_s)
        served = self.cloud.read(came_s, until_s)
        back_s = self._returned(way, opened_s, served)
        limit_s = min(until_s, way.broken_s)
        answered_s = {i: t for i, t in enumerate(back_s) if t <= limit_s}
        whole = len(answered_s) == len(sizes)
        ended_s = max(answered_s.values()) if whole else limit_s
        broke = not whole and way.broken_s <= until_s
        self._kept_s = math.nan if broke or way.lost else ended_s
        arrivals = tuple(_arrivals(at_s, sizes, served, answered_s))
        heard_s = heard_s if at_s + heard_s <= ended_s else 0.0
        return Spoken(answered_s, arrivals, heard_s, ended_s, broke, rois, sent_bytes)

    def knock_s(self, at_s: float, patience_s: float) -> float | None:
        """What a small question took; None where it was not answered in time."""
        if self._trace.at(at_s).state is State.RESET:
            return None
        took_s = _Way(self._trace, self._rng, self._first_reset_s(at_s)).echo_s(at_s) - at_s
        return took_s if took_s <= patience_s else None

    def _sent(
        self, way: _Way, now_s: float, sizes: Sequence[int], until_s: float
    ) -> tuple[list[float], int, int]:
        """When each region has come whole, how many were begun, and the bytes that left."""
        came_s, sent, flight = [math.inf] * len(sizes), 0, Flight(self._rng)
        for number, size in enumerate(sizes):
            for chunk_number, chunk in enumerate(_chunks(size)):
                now = self._trace.at(now_s)
                now_s += self._up.wait_s(chunk, now.up_kbit, now_s)
                if now_s > min(until_s, way.broken_s):
                    return came_s, number + (chunk_number > 0), sent
                sent += chunk
                due_s = flight.due_s(now_s, now.latency_ms, now.jitter_ms)
                came_s[number] = way.arrives_s(due_s, up=True)
        return came_s, len(sizes), sent

    def _returned(self, way: _Way, opened_s: float, served: Sequence[Served | None]) -> list[float]:
        """When each answer is back."""
        flight, left_s, back_s = Flight(self._rng), opened_s, list[float]()
        for one in served:
            if one is None:
                back_s.append(math.inf)
                continue
            left_s = max(left_s, one.done_s)
            now = self._trace.at(left_s)
            left_s += self._down.wait_s(ANSWER_BYTES, now.down_kbit, left_s)
            due_s = flight.due_s(left_s, now.latency_ms, now.jitter_ms)
            back_s.append(way.arrives_s(due_s, up=False))
        return back_s

    def _first_reset_s(self, after_s: float) -> float:
        """When connections are next reset, from ``after_s`` on; NaN stays NaN."""
        if math.isnan(after_s):
            return after_s
        spans = _spans(self._trace, after_s)
        return next((begin_s for begin_s, _, one in spans if one is State.RESET), math.inf)


class _Way:
    """Both directions of one stream: when what is due arrives, and when the connection breaks."""

    def __init__(self, trace: Trace, rng: random.Random, reset_s: float) -> None:
        self._trace, self._rng = trace, rng
        self.broken_s, self.lost = reset_s, False

    def echo_s(self, at_s: float) -> float:
        """When the first sign of the cloud is there: a few bytes up, and a few back."""
        for up in (True, False):
            if not math.isfinite(at_s):
                break
            now = self._trace.at(at_s)
            due_s = Flight(self._rng).due_s(at_s, now.latency_ms, now.jitter_ms)
            at_s = self.arrives_s(due_s, up=up)
        return at_s

    def arrives_s(self, due_s: float, *, up: bool) -> float:
        """When what is due at ``due_s`` is there; ``inf`` for never."""
        if due_s >= self.broken_s:
            return math.inf
        for begin_s, end_s, state in _spans(self._trace, due_s):
            if state is State.STALL:
                continue
            if state is State.BLACK_HOLE or (state is State.HALF_OPEN and not up):
                self.lost, self.broken_s = True, min(self.broken_s, end_s)
                return math.inf
            arrived_s = max(due_s, begin_s)
            return arrived_s if arrived_s < self.broken_s else math.inf
        return math.inf


def _spans(trace: Trace, from_s: float) -> Iterator[tuple[float, float, State]]:
    """Times at which a state begins and ends, from the one that holds at ``from_s``; one round.

    Where the trace does not repeat the last one never ends.
    """
    round_s = trace.repeat_s or math.inf
    base_s = from_s // round_s * round_s if trace.repeat_s else 0.0
    for _ in range(2):
        ends_s = (*trace.times_s[1:], round_s)
        for begin_s, end_s, now in zip(trace.times_s, ends_s, trace.conditions, strict=True):
            if base_s + end_s > from_s:
                yield max(base_s + begin_s, from_s), base_s + end_s, now.state
        if not trace.repeat_s:
            return
        base_s += round_s


def _arrivals(
    at_s: float, sizes: Sequence[int], served: Sequence[Served | None], answered_s: dict[int, float]
) -> Iterator[Arrival]:
    """What was answered, as the edge measures it, in the order in which it came."""
    for count, i in enumerate(sorted(answered_s, key=answered_s.__getitem__), 1):
        one = served[i]
        assert one is not None  # it was answered
        yield Arrival(
            sent_bytes=sum(sizes[: i + 1]),
            after_s=answered_s[i] - at_s,
            queue_s=one.queue_s,
            compute_s=one.compute_s,
            received_bytes=count * ANSWER_BYTES,
        )


def _chunks(size: int) -> Iterator[int]:
    for start in range(0, size, CHUNK_BYTES):
        yield min(CHUNK_BYTES, size - start)
