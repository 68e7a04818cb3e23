"""Cases that nobody read: scores drawn at random, good enough to run policies on."""

import random
from dataclasses import replace

from edge.decide import Thresholds
from edge.merge import MergeWeights
from edge.selection import Size
from evaluation.policies.cases import SPLITS, Cases
from evaluation.policies.studies import Sighting, Study

THRESHOLDS = Thresholds(possible=0.5, finding=0.5, dismiss=0.15, report=0.85)
WEIGHTS = MergeWeights(0.0, 0.5, 1.0)
BATCHES = ((1, 0.02), (8, 0.09))


def sighting(
    score: float, cloud: float, nodule: str = "", *, diameter_mm: float = 6.0, ignored: bool = False
) -> Sighting:
    """A candidate with the same score of the cloud at every size."""
    return Sighting(score, diameter_mm, dict.fromkeys(Size, cloud), nodule, ignored)


def study(*sightings: Sighting, nodules: str = "", name: str = "made") -> Study:
    """A real study; each letter of ``nodules`` is one of its own patient."""
    patients = {one: f"patient {one}" for one in nodules}
    return Study(name, "test", patients, sightings, WEIGHTS, 1.0, 0.1)


def made_cases(patients: int = 12, false_positives: int = 20, seed: int = 0) -> Cases:
    """For val and test: two scans with a nodule each, and copies with two nodules of a patient."""
    rng = random.Random(seed)
    studies = [one for split in SPLITS for one in _studies(split, patients, false_positives, rng)]
    return Cases(
        tuple(studies), 0.05, BATCHES, THRESHOLDS, "no guarantee", ("edge", "cloud"), "none",
        complete=True,
    )  # fmt: skip


def _studies(split: str, patients: int, false_positives: int, rng: random.Random) -> list[Study]:
    real = []
    for i in range(2):
        name = f"{split} scan {i}"
        false = [
            sighting(rng.uniform(0.05, 0.6), rng.uniform(0.0, 0.4)) for _ in range(false_positives)
        ]
        found = (sighting(0.9, 0.9, f"{name}/0"), *sorted(false, key=lambda one: -one.score))
        real.append(Study(name, split, {f"{name}/0": name}, found, WEIGHTS, 0.8, 0.3))
    return real + [_copy(real[i % 2], f"{split} patient {i}", rng) for i in range(patients)]


def _copy(host: Study, patient: str, rng: random.Random) -> Study:
    """A copy of the scan with two nodules inserted; nothing else counts in it."""
    nodules = [f"{patient}/{i}" for i in range(2)]
    own = [replace(one, nodule="", ignored=True) for one in host.sightings]
    own += [sighting(rng.uniform(0.1, 1.0), rng.uniform(0.6, 1.0), one) for one in nodules]
    return replace(
        host,
        name=f"{host.name} with {patient}",
        host=host.name,
        nodules=dict.fromkeys(nodules, patient),
        sightings=tuple(sorted(own, key=lambda one: -one.score)),
    )
