"""Cases that nobody read: scores drawn at random, good enough to run policies on."""

import random

from edge.decide import Thresholds
from edge.merge import MergeWeights
from edge.selection import Size
from evaluation.policies.cases import Cases, Piece, Sighting

THRESHOLDS = Thresholds(dismiss=0.15, report=0.85, alone=0.3, final=0.5)
WEIGHTS = MergeWeights(0.0, 0.5, 1.0)
BATCHES = ((1, 0.02), (8, 0.09))


def sighting(
    score: float, cloud: float, nodule: str = "", *, diameter_mm: float = 6.0, ignored: bool = False
) -> Sighting:
    """A candidate with the same score of the cloud at every size."""
    return Sighting(score, diameter_mm, dict.fromkeys(Size, cloud), nodule, ignored)


def made_cases(patients: int = 12, false_positives: int = 20, seed: int = 0) -> Cases:
    """For val and test: two scans of false positives, and patients of two nodules each."""
    rng = random.Random(seed)
    pieces = [
        piece
        for split in ("val", "test")
        for piece in (*_scans(split, false_positives, rng), *_cubes(split, patients, rng))
    ]
    return Cases(
        tuple(pieces), 0.05, BATCHES, THRESHOLDS, WEIGHTS, "no guarantee", ("edge", "cloud"), "none"
    )


def _scans(split: str, false_positives: int, rng: random.Random) -> list[Piece]:
    return [
        Piece(
            f"{split} scan {i}",
            split,
            f"{split} scan {i}",
            (f"{split} lesion {i}",),
            (
                sighting(0.9, 0.9, f"{split} lesion {i}"),
                *(
                    sighting(rng.uniform(0.05, 0.6), rng.uniform(0.0, 0.4))
                    for _ in range(false_positives)
                ),
            ),
            before_s=0.8,
            after_s=0.3,
        )
        for i in range(2)
    ]


def _cubes(split: str, patients: int, rng: random.Random) -> list[Piece]:
    return [
        Piece(
            f"{split}/{patient} {i}",
            split,
            f"{split} patient {patient}",
            (f"{split}/{patient} {i}",),
            (sighting(rng.uniform(0.1, 1.0), rng.uniform(0.6, 1.0), f"{split}/{patient} {i}"),),
        )
        for patient in range(patients)
        for i in range(2)
    ]
