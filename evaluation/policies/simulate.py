"""Policies in simulated time: studies over one link, and the amendments between them.

`AgentClient` follows `edge.escalation` in simulated time, with the agent's own
`edge.link.link.Link` if it is given one. It never waits for an accepted header, because no other
edge loads the simulated cloud. `SednaClient` is the client of Sedna's joint inference
(github.com/kubeedge/sedna, `lib/sedna/service/client.py`): one request with everything, five
attempts three seconds apart, no deadline. Its code names a time-out of 300 s but does not apply
it; here it is applied.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cloud.scheduling.batcher import MAX_BATCH_DELAY_S
from cloud.settings import CloudSettings
from edge.amend.amender import Backoff, RetryBudget
from edge.decide import Plan, Thresholds
from edge.escalation.client import RECONNECT_PAUSE_S
from edge.escalation.rois import EscalationResult
from edge.link.estimate import LinkEstimate
from edge.link.health import DOWN_PAUSE_S
from edge.link.link import CONNECT_S, Link
from edge.merge import merge
from edge.selection import Size
from edge.settings.core import EdgeSettings
from edge.store.pending import pending_candidates
from evaluation.links.trace import Trace
from evaluation.policies.cases import Cases
from evaluation.policies.routing import Policy
from evaluation.policies.simulated_link import SimulatedCloud, SimulatedLink, StreamResult
from evaluation.policies.studies import Study
from imaging.volume import Geometry
from protos.messages import Verdict

SEDNA_ATTEMPTS, SEDNA_PAUSE_S, SEDNA_TIMEOUT_S = 5, 3.0, 300.0

DIAMETER_MM = 10.0
"""Of every verdict; the comparison does not use it."""

Rois = Sequence[tuple[int, int]]
"""Number of the candidate, and bytes of its ROI."""


@dataclass
class Clock:
    """Simulated seconds."""

    now_s: float = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


@dataclass(frozen=True)
class Answer:
    """The candidates with a verdict, and what was sent for them."""

    answered: tuple[int, ...] = ()
    rois: int = 0
    sent_bytes: int = 0


class AgentClient:
    """Streams verdicts as they come, and stops at the deadline.

    The clock is moved to the end of each request, ``rng`` draws the pauses between attempts. The
    ``link`` learns from each request, and prevents requests while it is down; None: always up.
    """

    def __init__(
        self,
        wire: SimulatedLink,
        clock: Clock,
        attempts: int,
        rng: random.Random,
        link: Link | None = None,
    ) -> None:
        self._wire, self._clock, self._attempts = wire, clock, attempts
        self._rng, self._link = rng, link

    def request(self, rois: Rois, until_s: float, *, counts: bool = True) -> Answer:
        """Return the verdicts that came by ``until_s``; ``counts``: a miss counts for the link."""
        open_rois, answered, sent, sent_bytes = dict(rois), list[int](), 0, 0
        if not open_rois or until_s <= self._clock.now_s:
            return Answer()
        if self._link is not None and not self._link.enter():
            return Answer()
        for attempt in range(self._attempts):
            if attempt:
                pause_s = self._rng.uniform(0.0, RECONNECT_PAUSE_S * 2 ** (attempt - 1))
                self._clock.now_s = min(until_s, self._clock.now_s + pause_s)
            numbers, sizes = list(open_rois), list(open_rois.values())
            began_s = self._clock.now_s
            timeout_s = math.inf if self._link is None else self._link.response_timeout_s()
            stream = self._wire.stream(began_s, sizes, until_s, response_timeout_s=timeout_s)
            self._clock.now_s = stream.ended_s
            came = [numbers[i] for i in stream.answered_s]
            answered += came
            sent, sent_bytes = max(sent, stream.rois), sent_bytes + stream.sent_bytes
            if not stream.broke or self._clock.now_s >= until_s:
                break
            open_rois = {i: size for i, size in open_rois.items() if i not in came}
        if self._link is not None:
            self._learn(self._link, stream, began_s, sizes, counts=counts)
        return Answer(tuple(answered), sent, sent_bytes)

    def _learn(
        self,
        link: Link,
        stream: StreamResult,
        began_s: float,
        sizes: Sequence[int],
        *,
        counts: bool,
    ) -> None:
        """Record the stream as `edge.escalation.attempt` does; a missed deadline has no queue."""
        first_s, waited_s = stream.first_response_s or None, self._clock.now_s - began_s
        rois = next((i for i in range(len(sizes)) if i not in stream.answered_s), 0) + 1
        if stream.broke:
            link.failed("the connection was lost")
        elif len(stream.arrivals) == len(sizes):
            link.succeeded(stream.arrivals, stream.first_response_s)
            link.queue_reported(self._wire.cloud.queue_s(self._clock.now_s))
        elif stream.arrivals:
            link.succeeded(stream.arrivals, stream.first_response_s)
            link.slower_than(sum(sizes[:rois]), waited_s, first_s, rois)
        elif first_s is None:
            link.failed("no response from the cloud")
        else:
            link.missed(sizes[0], waited_s, first_s, counts=counts)


class SednaClient:
    """Waits for one answer to everything, and tries again, without a deadline."""

    def __init__(self, wire: SimulatedLink, clock: Clock) -> None:
        self._wire, self._clock = wire, clock

    def request(self, rois: Rois, until_s: float, *, counts: bool = True) -> Answer:
        """Return all verdicts, or none after the last attempt."""
        del until_s, counts
        sizes, sent, sent_bytes = [size for _, size in rois], 0, 0
        for attempt in range(SEDNA_ATTEMPTS if rois else 0):
            self._clock.now_s += SEDNA_PAUSE_S if attempt else 0.0
            now_s = self._clock.now_s
            stream = self._wire.stream(now_s, sizes, now_s + SEDNA_TIMEOUT_S, new_connection=True)
            self._clock.now_s = stream.ended_s
            sent, sent_bytes = max(sent, stream.rois), sent_bytes + stream.sent_bytes
            if len(stream.answered_s) == len(sizes):
                return Answer(tuple(number for number, _ in rois), sent, sent_bytes)
        return Answer((), sent, sent_bytes)


@dataclass(frozen=True)
class World:
    """The common ground of all policies in one comparison.

    A study comes every ``every_s`` on average; ``seed`` is that of all random numbers.
    """

    cases: Cases
    edge: EdgeSettings
    cloud: CloudSettings
    every_s: float
    seed: int


@dataclass
class Outcome:
    """One study, at its report and after all amendments.

    ``answered`` has the sizes of the ROIs with a verdict, by number of the candidate. ``found`` and
    ``false`` are nodules and false positives of the report, ``amended`` those of its last version;
    ``rois`` and bytes were sent for the report, ``later_`` for amendments, in ``attempts``.
    """

    study: Study
    plan: Plan
    took_s: float
    answered: dict[int, Size]
    found: set[str]
    false: int
    rois: int
    sent_bytes: int
    amended: set[str] = field(default_factory=set)
    amended_false: int = 0
    later_rois: int = 0
    later_bytes: int = 0
    attempts: int = 0

    @property
    def pending(self) -> tuple[int, ...]:
        """Return the candidates whose verdict is pending."""
        return pending_candidates(self.plan, EscalationResult(_verdicts(self.study, self.answered)))


def run(world: World, policy: Policy, trace: Trace, studies: Sequence[Study]) -> list[Outcome]:
    """Run the studies under the policy over the trace."""
    edge = _Edge(world, policy, trace)
    rng, arrives_s = random.Random(f"{world.seed} arrivals"), 0.0
    for study in studies:
        edge.idle(arrives_s)
        edge.read(study)
        arrives_s += rng.expovariate(1 / world.every_s)
    edge.idle(edge.clock.now_s + 120.0)  # for the amendments of the last study
    return edge.outcomes


class _Edge:
    """One edge with its link, from the first study to the last amendment."""

    def __init__(self, world: World, policy: Policy, trace: Trace) -> None:
        self.clock, self.outcomes = Clock(), list[Outcome]()
        self._policy, self._settings = policy, world.edge
        self._thresholds = world.cases.thresholds
        limits = world.cloud.max_batch, MAX_BATCH_DELAY_S
        cloud = SimulatedCloud(world.cases.batches, *limits)
        self._wire = SimulatedLink(trace, cloud, f"{world.seed} {trace.name}")
        rng = random.Random(f"{world.seed} pauses")
        self._link = Link(clock=self.clock) if policy.is_agent else None
        self._client = (
            SednaClient(self._wire, self.clock)
            if policy.without_deadline
            else AgentClient(self._wire, self.clock, world.edge.max_attempts, rng, self._link)
        )
        self._backoff = Backoff(world.edge.retry_pause_s, self.clock, rng.uniform)
        self._pending: list[Outcome] = []
        self._checked_s, self._up = -math.inf, False
        if self._link is not None:
            self._check_health(self._link)

    def read(self, study: Study) -> None:
        """Run one study from its start to its report."""
        began_s = self.clock.now_s
        self.clock.now_s += study.before_s
        until_s = began_s + self._settings.deadline_s - self._settings.reserve_s
        link = self._link.estimate() if self._link is not None else LinkEstimate()
        plan = self._policy.plan(study, link, max(0.0, until_s - self.clock.now_s))
        side = self._settings.roi_side
        sizes = {i: math.prod(plan.size_of(i).shape_of((side, side, side))) for i in plan.send}
        answer = self._client.request(list(sizes.items()), until_s)
        answered = {number: plan.size_of(number) for number in answer.answered}
        self.clock.now_s += study.after_s
        numbers = findings(study, plan, answered, self._thresholds)
        found, false = study.found(numbers), study.false(numbers)
        outcome = Outcome(study, plan, self.clock.now_s - began_s, answered, found, false,
                          answer.rois, answer.sent_bytes, found, false)  # fmt: skip
        self.outcomes.append(outcome)
        if answer.answered:
            self._backoff.responded()
        if self._link is not None and outcome.pending:
            self._pending.append(outcome)

    def idle(self, until_s: float) -> None:
        """Check the link's health and amend reports, one at a time, until ``until_s``."""
        while self._link is not None and self.clock.now_s < until_s:
            self._check_health(self._link)
            due = [one for one in self._pending if self._backoff.due(one.study.name)]
            if due and self._link.estimate().available:
                self._amend(min(due, key=lambda one: one.attempts))
            else:
                self.clock.now_s = min(until_s, self.clock.now_s + 1.0)
        self.clock.now_s = max(self.clock.now_s, until_s)

    def _amend(self, outcome: Outcome) -> None:
        """Request the pending verdicts of a report in full size, and amend it."""
        numbers = outcome.pending[: self._settings.max_rois]
        outcome.attempts += 1
        budget_s = RetryBudget.of(self._settings).budget_s(self._backoff.failed_in_a_row)
        answer = self._client.request(
            [(number, self._settings.roi_side**3) for number in numbers],
            self.clock.now_s + budget_s,
            counts=False,
        )
        outcome.later_rois += answer.rois
        outcome.later_bytes += answer.sent_bytes
        if not answer.answered:
            self._backoff.no_response()
            return
        self._backoff.answered()
        outcome.answered |= dict.fromkeys(answer.answered, Size.FULL)
        amended = findings(outcome.study, outcome.plan, outcome.answered, self._thresholds)
        outcome.amended = outcome.study.found(amended)
        outcome.amended_false = outcome.study.false(amended)
        if not outcome.pending:
            self._pending.remove(outcome)

    def _check_health(self, link: Link) -> None:
        """Make a health check, as `edge.link.health` does, if one is due."""
        every_s = self._settings.health_check_s
        pause_s = every_s if self._up else min(every_s, DOWN_PAUSE_S)
        due = link.suspect.is_set() or self.clock.now_s - self._checked_s >= pause_s
        if not every_s or not due:
            return
        link.suspect.clear()
        timeout_s = link.response_timeout_s() if self._up else CONNECT_S
        took_s = self._wire.health_check_s(self.clock.now_s, timeout_s)
        if took_s is None:
            link.down("health check failed")
        else:
            link.up(took_s if self._up else None)
        self._up, self._checked_s = took_s is not None, self.clock.now_s


def findings(
    study: Study, plan: Plan, answered: Mapping[int, Size], thresholds: Thresholds
) -> list[int]:
    """Return the numbers of the candidates that `edge.merge` makes findings.

    The first index of a candidate is its number in the study: positions do not matter here.
    """
    answers = EscalationResult(_verdicts(study, answered))
    merged = merge(plan, answers, thresholds, study.weights, Geometry())
    return [round(finding.index_zyx[0]) for finding in merged.findings]


def _verdicts(study: Study, answered: Mapping[int, Size]) -> dict[int, Verdict]:
    return {
        number: Verdict(number, study.sightings[number].cloud[size], DIAMETER_MM, "cloud", 0.0, 0.0)
        for number, size in answered.items()
    }
