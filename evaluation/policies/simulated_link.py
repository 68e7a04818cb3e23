"""The link and the cloud of the simulation.

A stream over a trace behaves as in `evaluation.links.proxy`: bytes pass the same token bucket and
flight, in simulated time. It ends with its last answer, when its connection breaks, or at its
deadline. The cloud reads as `cloud.scheduling.batcher`: one batch after another, at the efficient
size or when its first ROI has waited long enough. An ROI that would be late is not read.
"""

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
    """One ROI as the cloud read it: when it was done, how long it waited and took."""

    done_s: float
    queue_s: float
    compute_s: float


class SimulatedCloud:
    """Serves one stream after another; learns the cost t = a n + b from measured batches."""

    def __init__(
        self, batches: Sequence[tuple[int, float]], max_batch: int, max_batch_delay_s: float
    ) -> None:
        self._max_batch, self._max_batch_delay_s = max_batch, max_batch_delay_s
        self._cost = CostModel(memory=1.0)
        for n, took_s in batches:
            self._cost.observe(n, took_s)
        self._free_s = -math.inf

    def queue_s(self, now_s: float) -> float:
        """Return how long an ROI that comes now would wait."""
        return max(0.0, self._free_s - now_s)

    def read(self, came_s: Sequence[float], until_s: float) -> list[Served | None]:
        """Serve ROIs that came at these times, in order; ``inf`` never came.

        None is an ROI that could not be answered by ``until_s``.
        """
        served: list[Served | None] = []
        waiting = [t for t in came_s if math.isfinite(t)]
        while len(served) < len(waiting):
            first = len(served)
            begin_s = self._begins_s(waiting[first:])
            n = sum(t <= begin_s for t in waiting[first : first + self._max_batch])
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
        efficient = self._cost.efficient_size(self._max_batch)
        full_s = waiting[efficient - 1] if len(waiting) >= efficient else math.inf
        return max(self._free_s, min(waiting[0] + self._max_batch_delay_s, full_s))


@dataclass(frozen=True)
class StreamResult:
    """One stream, from its opening to its end.

    ``answered_s`` has the time of each answer that came, by number of the ROI, and ``arrivals`` the
    answers as `edge.link.link` records them. ``first_response_s`` is 0 without a response;
    ``rois`` counts those of which a part left the edge.
    """

    answered_s: dict[int, float]
    arrivals: tuple[Arrival, ...]
    first_response_s: float
    ended_s: float
    broke: bool
    rois: int
    sent_bytes: int


class SimulatedLink:
    """A trace with a cloud behind it, and one connection that is made again when it is lost."""

    def __init__(self, trace: Trace, cloud: SimulatedCloud, seed: str) -> None:
        self.cloud = cloud
        self._trace, self._rng = trace, random.Random(seed)
        self._up, self._down = TokenBucket(), TokenBucket()
        self._alive_s = math.nan  # until when the connection is known to live; NaN: there is none

    def stream(
        self,
        at_s: float,
        sizes: Sequence[int],
        until_s: float,
        *,
        response_timeout_s: float = math.inf,
        new_connection: bool = False,
    ) -> StreamResult:
        """Send ROIs of ``sizes`` bytes at ``at_s``, until ``until_s`` at most.

        Without a first response within ``response_timeout_s`` the stream ends then.
        """
        if self._trace.at(at_s).state is State.RESET:
            self._alive_s = math.nan
            # a refused connection is known after 1 ms
            return StreamResult({}, (), 0.0, at_s + 0.001, True, 0, 0)
        connects = new_connection or not self._first_reset_s(self._alive_s) > at_s
        opened_s = at_s + (self._trace.at(at_s).latency_ms / 1000 if connects else 0.0)
        connection = _Connection(self._trace, self._rng, self._first_reset_s(at_s))
        first_s = connection.echo_s(opened_s) - at_s
        until_s = (
            until_s if first_s <= response_timeout_s else min(until_s, at_s + response_timeout_s)
        )
        came_s, rois, sent_bytes = self._send(connection, opened_s, sizes, until_s)
        served = self.cloud.read(came_s, until_s)
        back_s = self._return(connection, opened_s, served)
        limit_s = min(until_s, connection.broken_s)
        answered_s = {i: t for i, t in enumerate(back_s) if t <= limit_s}
        complete = len(answered_s) == len(sizes)
        ended_s = max(answered_s.values()) if complete else limit_s
        broke = not complete and connection.broken_s <= until_s
        self._alive_s = math.nan if broke or connection.lost else ended_s
        arrivals = tuple(_arrivals(at_s, sizes, served, answered_s))
        first_s = first_s if at_s + first_s <= ended_s else 0.0
        return StreamResult(answered_s, arrivals, first_s, ended_s, broke, rois, sent_bytes)

    def health_check_s(self, at_s: float, timeout_s: float) -> float | None:
        """Return the time of a health check; None if it was not answered in time."""
        if self._trace.at(at_s).state is State.RESET:
            return None
        connection = _Connection(self._trace, self._rng, self._first_reset_s(at_s))
        took_s = connection.echo_s(at_s) - at_s
        return took_s if took_s <= timeout_s else None

    def _send(
        self, connection: "_Connection", now_s: float, sizes: Sequence[int], until_s: float
    ) -> tuple[list[float], int, int]:
        """Return when each ROI has arrived whole, how many were begun, and the bytes that left."""
        came_s, sent, flight = [math.inf] * len(sizes), 0, Flight(self._rng)
        for number, size in enumerate(sizes):
            for start in range(0, size, CHUNK_BYTES):
                chunk = min(CHUNK_BYTES, size - start)
                now = self._trace.at(now_s)
                now_s += self._up.wait_s(chunk, now.up_kbit, now_s)
                if now_s > min(until_s, connection.broken_s):
                    return came_s, number + (start > 0), sent
                sent += chunk
                due_s = flight.due_s(now_s, now.latency_ms, now.jitter_ms)
                came_s[number] = connection.arrives_s(due_s, up=True)
        return came_s, len(sizes), sent

    def _return(
        self, connection: "_Connection", opened_s: float, served: Sequence[Served | None]
    ) -> list[float]:
        """Return when each answer is back."""
        flight, left_s, back_s = Flight(self._rng), opened_s, list[float]()
        for one in served:
            if one is None:
                back_s.append(math.inf)
                continue
            left_s = max(left_s, one.done_s)
            now = self._trace.at(left_s)
            left_s += self._down.wait_s(ANSWER_BYTES, now.down_kbit, left_s)
            due_s = flight.due_s(left_s, now.latency_ms, now.jitter_ms)
            back_s.append(connection.arrives_s(due_s, up=False))
        return back_s

    def _first_reset_s(self, after_s: float) -> float:
        """Return when connections are next reset, from ``after_s`` on; NaN stays NaN."""
        if math.isnan(after_s):
            return after_s
        spans = _spans(self._trace, after_s)
        return next((begin_s for begin_s, _, state in spans if state is State.RESET), math.inf)


class _Connection:
    """The connection of one stream: when bytes arrive, and when it breaks."""

    def __init__(self, trace: Trace, rng: random.Random, reset_s: float) -> None:
        self._trace, self._rng = trace, rng
        self.broken_s, self.lost = reset_s, False

    def echo_s(self, at_s: float) -> float:
        """Return when the first response arrives: a few bytes up, and a few back."""
        for up in (True, False):
            if not math.isfinite(at_s):
                break
            now = self._trace.at(at_s)
            due_s = Flight(self._rng).due_s(at_s, now.latency_ms, now.jitter_ms)
            at_s = self.arrives_s(due_s, up=up)
        return at_s

    def arrives_s(self, due_s: float, *, up: bool) -> float:
        """Return when bytes that are due at ``due_s`` arrive; ``inf`` for never."""
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
    """Yield begin, end and state of the spans from ``from_s`` on, for one round of the trace.

    Where the trace does not repeat the last span never ends.
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
    """Yield the answers as the edge measures them, in order of arrival."""
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
