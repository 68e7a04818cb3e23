"""The policies that know no link: which candidates are asked about, and which reported unasked.

``routes(study)`` says it for the candidates of one study. Sedna's filters are described after its
library (Apache-2.0, github.com/kubeedge/sedna, `hard_example_mining` and `joint_inference`): a
filter judges the edge's result hard or not, a hard one goes to the cloud, whose word then counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.decide import Thresholds
from evaluation.policy_studies import Study
from imaging.volume import FloatArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Routes:
    """For each candidate ``(n,)``; what is neither is dismissed."""

    asked: BoolArray
    reported: BoolArray


Routing = Callable[[Study], Routes]


def edge_only(alone: float) -> Routing:
    """Nothing is asked about."""

    def routes(study: Study) -> Routes:
        reported = study.scores >= alone
        return Routes(np.zeros_like(reported), reported)

    return routes


def cloud_only() -> Routing:
    """Everything proposed is asked about."""

    def routes(study: Study) -> Routes:
        asked = np.ones(study.scores.shape, bool)
        return Routes(asked, ~asked)

    return routes


def band(low: float, high: float) -> Routing:
    """What scores from ``low`` to below ``high`` is asked about, what is above reported."""

    def routes(study: Study) -> Routes:
        reported = study.scores >= high
        return Routes((study.scores >= low) & ~reported, reported)

    return routes


def threshold_filter(threshold: float, alone: float) -> Routing:
    """Sedna's ``Threshold``: a study is hard if its candidates score below that on average.

    Of a hard one all candidates are sent; without candidates none is hard.
    """

    def routes(study: Study) -> Routes:
        hard = study.scores.size > 0 and float(study.scores.mean()) < threshold
        return cloud_only()(study) if hard else edge_only(alone)(study)

    return routes


def entropy_filter(threshold: float, alone: float) -> Routing:
    """Sedna's ``CrossEntropy``: hard is what leaves 1 - entropy / ln 2 below the threshold.

    It is made for a classification, so that it judges each candidate for itself.
    """

    def routes(study: Study) -> Routes:
        asked = certainty(study.scores) < threshold
        return Routes(asked, ~asked & (study.scores >= alone))

    return routes


def oracle(thresholds: Thresholds) -> Routing:
    """Asks where it knows that the cloud puts the edge's own word right, and nowhere else."""

    def routes(study: Study) -> Routes:
        nodule = np.array([bool(one.nodule) for one in study.sightings], bool)
        false = np.array([not one.nodule and not one.ignored for one in study.sightings], bool)
        edge, both = study.scores >= thresholds.alone, study.merged >= thresholds.final
        asked = (nodule & ~edge & both) | (false & edge & ~both)
        return Routes(asked, ~asked & edge)

    return routes


def certainty(chance: FloatArray) -> FloatArray:
    """1 - entropy of "nodule or not" in bits, ``(n,)``: 1 where it is certain, 0 at one half."""
    terms = [np.where(p > 0, -p * np.log2(np.maximum(p, 1e-12)), 0.0) for p in (chance, 1 - chance)]
    return np.asarray(1 - (terms[0] + terms[1]))
