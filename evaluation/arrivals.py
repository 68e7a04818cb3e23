"""Studies as they reach a cloud from many sites: open loop, nobody waits for anybody's answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from protos.messages import Priority


@dataclass(frozen=True)
class Arrival:
    """One study's escalation: when it is sent, by which edge, and what it asks.

    ``at_s`` counts from the beginning, ``rois`` are sent at once and due after ``budget_s``.
    """

    at_s: float
    edge: int
    rois: int
    budget_s: float
    priority: Priority = Priority.ROUTINE


@dataclass(frozen=True)
class Traffic:
    """What studies are like: each number of ``rois`` and each of ``budgets_s`` equally likely."""

    edges: int = 16
    rois: tuple[int, ...] = (1, 2, 3, 4)
    budgets_s: tuple[float, ...] = (0.5, 1.0, 2.0)
    stat_share: float = 0.1

    @property
    def mean_rois(self) -> float:
        """ROIs of a study, on average."""
        return sum(self.rois) / len(self.rois)


def poisson(traffic: Traffic, rois_per_s: float, span_s: float, seed: int) -> list[Arrival]:
    """The arrivals of ``span_s`` seconds: a Poisson process of ``rois_per_s`` on average."""
    rng = np.random.default_rng(seed)
    arrivals, at_s = [], 0.0
    while (at_s := at_s + rng.exponential(traffic.mean_rois / rois_per_s)) < span_s:
        stat = rng.random() < traffic.stat_share
        arrivals.append(
            Arrival(
                at_s,
                int(rng.integers(traffic.edges)),
                int(rng.choice(traffic.rois)),
                float(rng.choice(traffic.budgets_s)),
                Priority.STAT if stat else Priority.ROUTINE,
            )
        )
    return arrivals
