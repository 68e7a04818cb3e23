"""Runs one policy over one trace: study after study in simulated time, amendments between them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from edge.amend.amender import Backoff, Persistence
from edge.decide import Plan
from edge.escalation.rois import Escalated
from edge.link.estimate import LinkEstimate
from edge.link.health import ANSWER_S, LOST_EVERY_S
from edge.link.link import Link
from edge.merge import merge
from edge.selection import Size
from edge.store.pending import still_owed
from evaluation.policy_ask import Asks, ByDeadline, Clock, Patient, Regions
from evaluation.policy_cases import Cases
from evaluation.policy_rules import Policy
from evaluation.policy_studies import Study
from evaluation.policy_world import Told, World
from evaluation.trace import Trace
from imaging.volume import Geometry
from protos.messages import Verdict

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
            self._wire, self.clock, world.edge.attempts, rng, self._belief
        )
        if policy.patient:
            self._asks = Patient(self._wire, self.clock)
        self._backoff = Backoff(world.edge.owed_pause_s, self.clock, rng.uniform)
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
        return still_owed(one.plan, Escalated(_verdicts(one.study, one.answered)))

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
        every_s = self._edge.watch_s if self._there else min(self._edge.watch_s, LOST_EVERY_S)
        soon = belief.doubted.is_set() or self.clock.now_s - self._looked_s >= every_s
        if not self._edge.watch_s or not soon:
            return
        belief.doubted.clear()
        patience_s = belief.patience_s() if self._there else ANSWER_S
        took_s = self._wire.knock_s(self.clock.now_s, patience_s)
        if took_s is None:
            belief.lost("a knock was not answered")
        else:
            belief.found(took_s if self._there else None)
        self._there, self._looked_s = took_s is not None, self.clock.now_s


def findings(study: Study, plan: Plan, answered: Mapping[int, Size], cases: Cases) -> list[int]:
    """The places of the report's findings, as `edge.merge` has them.

    Where a candidate lies does not matter to it: here its place in the study stands there.
    """
    answers = Escalated(_verdicts(study, answered))
    merged = merge(plan, answers, cases.thresholds, cases.weights, Geometry())
    return [round(finding.index_zyx[0]) for finding in merged.findings]


def _verdicts(study: Study, answered: Mapping[int, Size]) -> dict[int, Verdict]:
    return {
        place: Verdict(place, study.sightings[place].cloud[size], NOWHERE_MM, "cloud", 0.0, 0.0)
        for place, size in answered.items()
    }
