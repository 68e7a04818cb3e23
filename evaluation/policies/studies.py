"""Studies: whole scans after the edge's screening, with everything that a policy could learn.

A *real* study is a scan with all that is marked in it. A *semi-synthetic* one is a copy of a real
scan with nodules of other patients inserted (`evaluation.lesion_insertion`). It gives only the
sensitivity to these nodules: the false positives of its scan are counted once, in the real study.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edge.merge import MergeWeights
from edge.selection import Size
from evaluation.errors import EvaluationError
from imaging.volume import FloatArray
from models.runtime.detection import Candidate


@dataclass(frozen=True)
class Sighting:
    """One candidate of the edge.

    ``cloud`` is the cloud's probability by size of the ROI; ``nodule`` names the known nodule that
    it hits, if any. An ``ignored`` one counts neither as a hit nor as a false positive.
    """

    score: float
    diameter_mm: float
    cloud: Mapping[Size, float]
    nodule: str = ""
    ignored: bool = False

    @property
    def is_false(self) -> bool:
        """Return whether a finding here would be a false positive."""
        return not self.nodule and not self.ignored


@dataclass(frozen=True)
class Study:
    """One whole scan of split ``val`` (to fit) or ``test`` (to report).

    The ``name`` seeds its random numbers; ``host`` is the scan into which the nodules of a
    semi-synthetic study were inserted. ``nodules`` gives the patient of each nodule by name, also
    of those without a candidate. The sightings fall by score. ``before_s`` is the edge's time from
    files to candidates, ``after_s`` that from the last verdict to the written report.
    """

    name: str
    split: str
    nodules: Mapping[str, str]
    sightings: tuple[Sighting, ...]
    weights: MergeWeights
    before_s: float
    after_s: float
    host: str = ""

    @property
    def real(self) -> bool:
        """Return whether nothing was inserted into the scan."""
        return not self.host

    @cached_property
    def scores(self) -> FloatArray:
        """The edge's scores, ``(candidates,)``."""
        return np.array([one.score for one in self.sightings], np.float64)

    @cached_property
    def merged(self) -> FloatArray:
        """The fused scores with each ROI in full size, ``(candidates,)``."""
        return np.array([self.merged_at(i, Size.FULL) for i in range(len(self.sightings))])

    @cached_property
    def is_nodule(self) -> npt.NDArray[np.bool_]:
        """Whether each candidate hits a nodule, ``(candidates,)``."""
        return np.array([bool(one.nodule) for one in self.sightings], bool)

    @cached_property
    def is_false(self) -> npt.NDArray[np.bool_]:
        """Whether each candidate would be a false positive, ``(candidates,)``."""
        return np.array([one.is_false for one in self.sightings], bool)

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """The edge's candidates; instead of its position each has its number as first index."""
        return tuple(
            Candidate((0.0, 0.0, 0.0), (float(i), 0.0, 0.0), one.diameter_mm, one.score)
            for i, one in enumerate(self.sightings)
        )

    @cached_property
    def best(self) -> FloatArray:
        """The edge's highest score on each nodule, ``-inf`` without a candidate, ``(nodules,)``."""
        best = dict.fromkeys(self.nodules, -np.inf)
        for one in self.sightings:
            if one.nodule:
                best[one.nodule] = max(best[one.nodule], one.score)
        return np.array(list(best.values()), np.float64)

    def merged_at(self, number: int, size: Size) -> float:
        """Return the fused score of a candidate whose ROI was sent in that size.

        Raises:
            EvaluationError: the cases lack the cloud's score at that size.
        """
        one = self.sightings[number]
        if size not in one.cloud:
            raise EvaluationError(
                f"cases lack score {one.score:.3f} at size {size.value}: read them again"
            )
        return self.weights.merged(one.score, one.cloud[size], one.diameter_mm)

    def found(self, numbers: Sequence[int]) -> set[str]:
        """Return the nodules among these candidates."""
        return {self.sightings[i].nodule for i in numbers} - {""}

    def false(self, numbers: Sequence[int]) -> int:
        """Count the false positives among these candidates."""
        return sum(self.sightings[i].is_false for i in numbers)


def repeated(studies: Sequence[Study], *, rounds: int, seed: int) -> tuple[Study, ...]:
    """Return the studies ``rounds`` times, each time in another random order."""
    rng, made = random.Random(seed), list[Study]()
    for number in range(rounds):
        order = rng.sample(studies, len(studies))
        made += [replace(one, name=f"{number} {one.name}") for one in order]
    return tuple(made)


def real_scans(studies: Sequence[Study]) -> int:
    """Return in how many studies false positives count.

    Raises:
        EvaluationError: in none.
    """
    count = sum(one.real for one in studies)
    if not count:
        raise EvaluationError(f"{len(studies)} studies without a real scan: no false positive")
    return count
