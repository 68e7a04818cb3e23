"""What batches, stages, instances, Ray and early answers gain.

The same studies are sent to services that differ in one setting, in turn, A B C A B C. Measured are
the ROIs a second at saturation, and the answers of a study that is alone: the time of the last, and
the mean of all. An edge that merges each answer as it arrives waits for that mean; one that merges
when all are there waits for the last.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evaluation.load.overload import SINGLE, Plan
from evaluation.load.services import Service
from evaluation.load.traffic import Outcomes
from evaluation.run import each

BATCHES = "batches"
"""The service that all but `SINGLE` are compared with."""


@dataclass
class Figures:
    """The figures of one service in each round.

    ``per_s`` are ROIs a second at saturation; ``last_s`` and ``mean_s`` the seconds of the last
    answer, and of the mean one, of a study that is alone.
    """

    per_s: list[float] = field(default_factory=list)
    last_s: list[float] = field(default_factory=list)
    mean_s: list[float] = field(default_factory=list)


def gains(started: Sequence[Service], plan: Plan, rois: int) -> dict[str, Any]:
    """Measure every service in each round, with studies of ``rois`` ROIs; return the figures."""
    found = asyncio.run(_compare(started, plan, rois))
    engines = {one.mode: one.ran_on()["engine"] for one in started}
    about = {"rois_a_study": rois, "rounds": plan.rounds, "span_s": plan.span_s}
    return {**about, "services": rows(found, engines)}


async def _compare(started: Sequence[Service], plan: Plan, rois: int) -> dict[str, Figures]:
    found = defaultdict[str, Figures](Figures)
    for service in each([*started] * plan.rounds, "services"):
        one = found[service.mode]
        async with service.connect(16) as edges:
            outcomes = await edges.saturate(rois, plan.span_s, budget_s=60.0, at_once=plan.at_once)
            one.per_s.append(len(outcomes.in_time) / outcomes.span_s)
            alone = await edges.saturate(rois, plan.span_s / 2, budget_s=60.0, at_once=1)
        last_s, mean_s = answer_times(alone, rois)
        one.last_s.append(last_s)
        one.mean_s.append(mean_s)
    return dict(found)


def answer_times(outcomes: Outcomes, rois: int) -> tuple[float, float]:
    """Return the medians over studies of the last answer's seconds and of the mean of all.

    The studies came one after another, so each is the next ``rois`` outcomes.
    """
    took_s = np.array([one.took_s for one in outcomes.rois]).reshape(-1, rois)
    return float(np.median(took_s.max(axis=1))), float(np.median(took_s.mean(axis=1)))


def rows(figures: Mapping[str, Figures], engines: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the medians over the rounds; ratios are taken round by round.

    ``added_ms`` is the time of the last answer over that of `BATCHES`.
    """
    found = []
    for name, one in figures.items():
        base = figures[SINGLE if name in (SINGLE, BATCHES) else BATCHES]
        added_s = np.subtract(one.last_s, figures[BATCHES].last_s)
        found.append(
            {
                "name": name,
                "engine": engines[name],
                "rois_per_s": float(np.median(one.per_s)),
                "throughput_ratio": float(np.median(np.divide(one.per_s, base.per_s))),
                "last_ms": float(np.median(one.last_s)) * 1e3,
                "added_ms": float(np.median(added_s)) * 1e3,
                "mean_ms": float(np.median(one.mean_s)) * 1e3,
                "merging": float(np.median(np.divide(one.mean_s, one.last_s))) - 1.0,
            }
        )
    return found
