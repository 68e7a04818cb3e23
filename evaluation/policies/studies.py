"""Studies made of cases: the alarms of a whole scan, and the nodules of a patient with their cubes.

Real scans with all their nodules marked are too few to choose thresholds by. So each study is a
patient of the cubes, with everything that both readers saw there, laid into one whole scan of the
same split: what a chest with these nodules would bring before the decision.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edge.merge import MergeWeights
from edge.selection import Size
from evaluation.errors import EvaluationError
from evaluation.policies.cases import Cases, Piece, Sighting
from imaging.volume import FloatArray
from models.runtime.detection import Candidate


@dataclass(frozen=True)
class Study:
    """One study as the edge's screening leaves it.

    Attributes:
        name: for the random numbers that belong to it.
        sightings: its candidates, by falling score.
        nodules: names of all its known ones.
        weights: of the merger.
        before_s, after_s: what the edge takes up to the decision, and after the last verdict.
        patient: whose nodules they are.
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
        """The edge's, ``(candidates,)``."""
        return np.array([one.score for one in self.sightings], np.float64)

    @cached_property
    def merged(self) -> FloatArray:
        """Edge and cloud together, each region sent in full, ``(candidates,)``."""
        return np.array([self.merged_at(i, Size.FULL) for i in range(len(self.sightings))])

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """As the edge takes them; where they lie does not matter, so their number stands there."""
        return tuple(
            Candidate((0.0, 0.0, 0.0), (float(i), 0.0, 0.0), one.diameter_mm, one.score)
            for i, one in enumerate(self.sightings)
        )

    def merged_at(self, place: int, size: Size) -> float:
        """The merged probability of a candidate whose region was sent in that size.

        Raises:
            EvaluationError: the cases do not know the cloud's word on it.
        """
        one = self.sightings[place]
        if size not in one.cloud:
            raise EvaluationError(f"the cases lack {one.score:.3f} at size {size.value}: read anew")
        return self.weights.merged(one.score, one.cloud[size])

    def found(self, places: Sequence[int]) -> set[str]:
        """The nodules among candidates."""
        return {self.sightings[i].nodule for i in places} - {""}

    def false(self, places: Sequence[int]) -> int:
        """The false alarms among candidates."""
        ones = (self.sightings[i] for i in places)
        return sum(not one.nodule and not one.ignored for one in ones)


def studies_of(cases: Cases, split: str, *, rounds: int, seed: int) -> tuple[Study, ...]:
    """Every patient of the split ``rounds`` times, in random order, over its scans in turn."""
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
            scan = scans[(i + number) % len(scans)]
            made.append(_study(number, name, scan, patients[name], cases.weights))
    return tuple(made)


def _study(
    number: int, patient: str, scan: Piece, cubes: Sequence[Piece], weights: MergeWeights
) -> Study:
    """The patient's cubes in the scan, whose own lesion is left out: it would count many times."""
    alarms = [one for one in scan.sightings if not one.nodule]
    seen = [one for cube in cubes for one in cube.sightings]
    return Study(
        f"{number} {patient}",
        tuple(sorted((*alarms, *seen), key=lambda one: -one.score)),
        tuple(nodule for cube in cubes for nodule in cube.nodules),
        weights,
        scan.before_s,
        scan.after_s,
        patient,
    )
