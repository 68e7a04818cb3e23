"""What all policies have in common in one comparison, and what became of each study."""

from __future__ import annotations

from dataclasses import dataclass, field

from cloud.settings import CloudSettings
from edge.decide import Plan, Thresholds
from edge.selection import Size
from edge.settings import EdgeSettings
from evaluation.policy_cases import Cases
from evaluation.policy_cloud import SimulatedCloud
from evaluation.policy_link import SimulatedLink
from evaluation.policy_studies import Study
from evaluation.trace import Trace


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
        cloud = SimulatedCloud(self.cases.batches, self.cloud.max_batch, self.cloud.max_wait_s)
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
