"""Studies made of cases: the nodules of one patient among the false positives of a whole scan.

Real scans with all their nodules annotated are too few to choose thresholds by. So each study is
one patient's cubes, with all candidates of both readers, laid into a whole scan of the same split.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edge.merge import MergeWeights
from edge.selection import Size
from evaluation.errors import EvaluationError
from evaluation.policies.cases import Cases, Piece, Sighting
from imaging.volume import FloatArray
from models.runtime.detection import Candidate


@dataclass(frozen=True)
class Study:
    """One study after the edge's screening, with the names of all its known nodules.

    The ``name`` seeds its random numbers; the sightings fall by score. ``before_s`` is the edge's
    time up to the decision, ``after_s`` that after the last verdict.
    """

    name: str
    sightings: tuple[Sighting, ...]
    nodules: tuple[str, ...]
    weights: MergeWeights
    before_s: float
    after_s: float
    patient: str = ""

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
        return self.weights.merged(one.score, one.cloud[size])

    def found(self, numbers: Sequence[int]) -> set[str]:
        """Return the nodules among these candidates."""
        return {self.sightings[i].nodule for i in numbers} - {""}

    def false(self, numbers: Sequence[int]) -> int:
        """Count the false positives among these candidates."""
        return sum(self.sightings[i].is_false for i in numbers)


def studies_of(cases: Cases, split: str, *, rounds: int, seed: int) -> tuple[Study, ...]:
    """Return every patient of the split ``rounds`` times, in random order, over scans in turn.

    Raises:
        EvaluationError: the split lacks whole scans or cubes.
    """
    scans = [piece for piece in cases.of(split) if piece.whole]
    patients = defaultdict[str, list[Piece]](list)
    for piece in cases.of(split):
        if not piece.whole:
            patients[piece.patient].append(piece)
    if not scans or not patients:
        raise EvaluationError(f"split {split!r}: studies need a whole scan and cubes of nodules")
    rng, made = random.Random(f"{seed} {split}"), list[Study]()
    for number in range(rounds):
        names = sorted(patients)
        rng.shuffle(names)
        for i, name in enumerate(names):
            scan, cubes = scans[(i + number) % len(scans)], patients[name]
            # the scan's own lesion is left out: it would count many times
            found = [one for one in scan.sightings if not one.nodule]
            found += [one for cube in cubes for one in cube.sightings]
            made.append(
                Study(
                    f"{number} {name}",
                    tuple(sorted(found, key=lambda one: -one.score)),
                    tuple(nodule for cube in cubes for nodule in cube.nodules),
                    cases.weights,
                    scan.before_s,
                    scan.after_s,
                    name,
                )
            )
    return tuple(made)
