"""Runs one policy over one trace: study after study in simulated time, amendments between them.

How a policy asks: as the agent does, within the deadline, or as Sedna does, until it is over.

`ByDeadline` follows `edge.escalation.client` and `edge.escalation.attempt` in simulated time, with the agent's own
`edge.link.link.Link` if it is given one; it never asks first, for nobody else keeps that cloud busy.
`Patient` is the client of Sedna's joint inference (github.com/kubeedge/sedna,
`lib/sedna/service/client.py`): one request with everything, five attempts three seconds apart, no
deadline. The time-out of 300 s that its code names is given to nobody there; here it holds.

What all policies have in common in one comparison, and what became of each study.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cloud.settings import CloudSettings
from edge.amend.amender import Backoff, Persistence
from edge.decide import Plan, Thresholds
from edge.escalation.client import RECONNECT_PAUSE_S
from edge.escalation.rois import EscalationResult
from edge.link.estimate import LinkEstimate
from edge.link.health import DOWN_PAUSE_S
from edge.link.link import CONNECT_S, Link
from edge.merge import merge
from edge.selection import Size
from edge.settings import EdgeSettings
from edge.store.pending import still_owed
from evaluation.links.trace import Trace
from evaluation.policies.cases import Cases
from evaluation.policies.network import SimulatedCloud, SimulatedLink, Spoken
from evaluation.policies.routing import Policy
from evaluation.policies.studies import Study
from imaging.volume import Geometry
from protos.messages import Verdict

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
        silence_s = self._belief.response_timeout_s() if self._belief is not None else math.inf
        spoken = self._wire.stream(self._clock.now_s, sizes, until_s, silence_s=silence_s)
        self._clock.now_s = spoken.ended_s
        return spoken

    def _pause_s(self, attempt: int) -> float:
        most_s = RECONNECT_PAUSE_S * 2 ** (attempt - 1)
        return self._rng.uniform(0.0, most_s) if attempt else 0.0

    def _learn(self, spoken: Spoken, began_s: float, sizes: Sequence[int], *, counts: bool) -> None:
        """Tell the link as `edge.escalation.attempt` does; at a deadline it hears of no queue."""
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
            self._belief.failed("no response from the cloud")
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


@dataclass(frozen=True)
class World:
    """All that the policies have in common.

    Attributes:
        cases: readers, thresholds and the cloud's cost.
        edge: settings of the agent.
        cloud: settings of the cloud.
        every_s: a study comes so often, on average, at random.
        seed: of everything that is random.
    """

    cases: Cases
    edge: EdgeSettings
    cloud: CloudSettings
    every_s: float
    seed: int

    @property
    def thresholds(self) -> Thresholds:
        """Of the edge's manifest."""
        return self.cases.thresholds

    def wire(self, trace: Trace) -> SimulatedLink:
        """The trace with a cloud behind it."""
        cloud = SimulatedCloud(
            self.cases.batches, self.cloud.max_batch, self.cloud.max_batch_delay_s
        )
        return SimulatedLink(trace, cloud, f"{self.seed} {trace.name}")


@dataclass
class Told:
    """What became of one study, at its answer and after all amendments.

    Attributes:
        study, plan: as they were decided on.
        took_s: from taking the study up to its answer.
        answered: sizes of the regions with a verdict, by place.
        found, false: nodules and false alarms of the answer.
        rois, sent_bytes: sent for the answer; ``later_`` for amendments.
        amended, amended_false: nodules and false alarms of the last version.
        askings: for amendments.
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
    askings: int = 0


STEP_S = 1.0
"""An idle edge looks for work this often."""

LAST_S = 120.0
"""Of idleness after the last study, in which its debts may be settled."""

NOWHERE_MM = 10.0


def run(world: World, policy: Policy, trace: Trace, studies: Sequence[Study]) -> list[Told]:
    """What became of each study."""
    bench = _Bench(world, policy, trace)
    rng, arrives_s = random.Random(f"{world.seed} arrivals"), 0.0
    for study in studies:
        bench.idle(arrives_s)
        bench.read(study)
        arrives_s += rng.expovariate(1 / world.every_s)
    bench.idle(bench.clock.now_s + LAST_S)
    return bench.told


class _Bench:
    """One edge with its link, from the first study to the last debt."""

    def __init__(self, world: World, policy: Policy, trace: Trace) -> None:
        self.clock, self.told = Clock(), list[Told]()
        self._world, self._policy, self._edge = world, policy, world.edge
        self._wire, rng = world.wire(trace), random.Random(f"{world.seed} pauses")
        self._belief = Link(clock=self.clock) if policy.controlled else None
        self._asks: Asks = ByDeadline(
            self._wire, self.clock, world.edge.max_attempts, rng, self._belief
        )
        if policy.patient:
            self._asks = Patient(self._wire, self.clock)
        self._backoff = Backoff(world.edge.retry_pause_s, self.clock, rng.uniform)
        self._debts: list[Told] = []
        self._looked_s, self._there = -math.inf, False
        if self._belief is not None:
            self._look(self._belief)

    def read(self, study: Study) -> None:
        """One study, from the moment it is taken up to its answer."""
        began_s = self.clock.now_s
        self.clock.now_s += study.before_s
        until_s = began_s + self._edge.deadline_s - self._edge.reserve_s
        link = self._belief.estimate() if self._belief is not None else LinkEstimate()
        plan = self._policy.plans(study, link, max(0.0, until_s - self.clock.now_s))
        asked = self._asks.ask(self._regions(plan), until_s)
        answered = {place: plan.size_of(place) for place in asked.answered}
        self.clock.now_s += study.after_s
        found, false = self._findings(study, plan, answered)
        one = Told(study, plan, self.clock.now_s - began_s, answered, found, false,
                   asked.rois, asked.sent_bytes, found, false)  # fmt: skip
        self.told.append(one)
        if asked.answered:
            self._backoff.heard()
        if self._belief is not None and self._owed(one):
            self._debts.append(one)

    def idle(self, until_s: float) -> None:
        """Looks after the link and settles debts, one at a time, until the next study comes."""
        while self._belief is not None and self.clock.now_s < until_s:
            self._look(self._belief)
            debt = self._due()
            if debt is not None and self._belief.estimate().available:
                self._settle(debt)
            else:
                self.clock.now_s = min(until_s, self.clock.now_s + STEP_S)
        self.clock.now_s = max(self.clock.now_s, until_s)

    def _regions(self, plan: Plan) -> Regions:
        side = self._edge.roi_side
        return [(i, math.prod(plan.size_of(i).shape_of((side, side, side)))) for i in plan.send]

    def _findings(
        self, study: Study, plan: Plan, answered: Mapping[int, Size]
    ) -> tuple[set[str], int]:
        """Nodules and false alarms of the report with these verdicts."""
        places = findings(study, plan, answered, self._world.cases)
        return study.found(places), study.false(places)

    def _due(self) -> Told | None:
        """The debt that was asked for least, of those that may be asked for now."""
        due = (one for one in self._debts if self._backoff.due(one.study.name))
        return min(due, key=lambda one: one.askings, default=None)

    def _owed(self, one: Told) -> tuple[int, ...]:
        return still_owed(one.plan, EscalationResult(_verdicts(one.study, one.answered)))

    def _settle(self, debt: Told) -> None:
        """Asks for what a report owes, in full, and amends it."""
        places = self._owed(debt)[: self._edge.max_rois]
        regions = [(place, self._edge.roi_side**3) for place in places]
        debt.askings += 1
        budget_s = Persistence.of(self._edge).budget_s(self._backoff.in_vain)
        asked = self._asks.ask(regions, self.clock.now_s + budget_s, counts=False)
        debt.later_rois += asked.rois
        debt.later_bytes += asked.sent_bytes
        if not asked.answered:
            self._backoff.unheard()
            return
        self._backoff.answered()
        debt.answered |= dict.fromkeys(asked.answered, Size.FULL)
        debt.amended, debt.amended_false = self._findings(debt.study, debt.plan, debt.answered)
        if not self._owed(debt):
            self._debts.remove(debt)

    def _look(self, belief: Link) -> None:
        """Knocks, as `edge.link.health` does, if it is time to."""
        every_s = (
            self._edge.health_check_s
            if self._there
            else min(self._edge.health_check_s, DOWN_PAUSE_S)
        )
        soon = belief.suspect.is_set() or self.clock.now_s - self._looked_s >= every_s
        if not self._edge.health_check_s or not soon:
            return
        belief.suspect.clear()
        patience_s = belief.response_timeout_s() if self._there else CONNECT_S
        took_s = self._wire.knock_s(self.clock.now_s, patience_s)
        if took_s is None:
            belief.down("a knock was not answered")
        else:
            belief.up(took_s if self._there else None)
        self._there, self._looked_s = took_s is not None, self.clock.now_s


def findings(study: Study, plan: Plan, answered: Mapping[int, Size], cases: Cases) -> list[int]:
    """The places of the report's findings, as `edge.merge` has them.

    Where a candidate lies does not matter to it: here its place in the study stands there.
    """
    answers = EscalationResult(_verdicts(study, answered))
    merged = merge(plan, answers, cases.thresholds, cases.weights, Geometry())
    return [round(finding.index_zyx[0]) for finding in merged.findings]


def _verdicts(study: Study, answered: Mapping[int, Size]) -> dict[int, Verdict]:
    return {
        place: Verdict(place, study.sightings[place].cloud[size], NOWHERE_MM, "cloud", 0.0, 0.0)
        for place, size in answered.items()
    }
