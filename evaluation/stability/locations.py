"""The locations that are read: nodules of cubes and whole scans, and false positives of the edge.

The false positives are those of the highest rank: the strongest, as many as there are nodules.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evaluation.accuracy.data import UNKNOWN_RADIUS_MM, read_cubes, read_table
from evaluation.accuracy.truth import MUST_BE_FOUND, Lesion, Truth, scan_name
from evaluation.stability.changes import Ball
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import Geometry, triple
from models.runtime.detection import Candidate

NODULE, FALSE_POSITIVE = "nodule", "false positive"

FACE = 10
"""False positives this near to a cube's face, in voxels, do not count."""

MARGIN_MM = 5.0
"""A false positive is this far outside of every mark."""


@dataclass(frozen=True)
class Location(Ball):
    """A location that is measured, of kind `NODULE` or `FALSE_POSITIVE`."""

    kind: str = NODULE

    @property
    def reach_mm(self) -> float:
        """Return how far from its centre a candidate belongs to it."""
        return max(self.diameter_mm / 2, 4.0)


@dataclass(frozen=True, eq=False)
class Sample:
    """A cube, or the lung box of a scan, with the locations in it.

    ``nodules`` are all that are known in it, and ``excluded`` all other marks. ``folder`` is that
    of the scan, None for a cube.
    """

    name: str
    patient: str
    box: Preprocessed
    nodules: tuple[Ball, ...]
    excluded: tuple[Ball, ...]
    locations: tuple[Location, ...]
    folder: Path | None = None

    def false_positives(self, found: Iterable[Candidate]) -> list[Location]:
        """Return the candidates that lie on no mark, and in a cube not near its faces."""
        low = 0.0 if self.folder else float(FACE)
        high = np.array(self.box.voxels.shape) - low
        return [
            Location(one.index_zyx, one.diameter_mm, FALSE_POSITIVE)
            for one in found
            if (np.array(one.index_zyx) >= low).all()
            and (np.array(one.index_zyx) < high).all()
            and not any(
                mark.distance_mm(one.index_zyx) < mark.diameter_mm / 2 + MARGIN_MM
                for mark in (*self.nodules, *self.excluded)
            )
        ]


def read_cube_samples(folder: Path, splits: tuple[str, ...], most: int, seed: int) -> list[Sample]:
    """Return the cubes of ``splits``, or ``most`` of them as drawn by ``seed``, if it is not 0."""
    cubes = read_cubes(folder, splits)
    if most:
        drawn = np.random.default_rng(seed).permutation(len(cubes))[:most]
        cubes = [cubes[number] for number in sorted(drawn)]
    neighbours = _neighbours(folder)
    samples = []
    for cube in cubes:
        location = Location(cube.centre_zyx, cube.diameter_mm)
        nodules, excluded = neighbours[cube.name]
        box = Preprocessed(cube.voxels, Geometry())
        samples.append(
            Sample(cube.name, cube.patient, box, (location, *nodules), tuple(excluded), (location,))
        )
    return samples


def read_scan_sample(folder: Path, truth: Truth) -> Sample:
    """Return the lung box of a whole scan; its lesions inside of the box are locations."""
    box = preprocess(read_study(folder).volume, folder)
    lesions, ignored = (_inside(box, known) for known in (truth.lesions, truth.ignored))
    locations = tuple(Location(one.index_zyx, one.diameter_mm) for one in lesions)
    return Sample(scan_name(folder), scan_name(folder), box, lesions, ignored, locations, folder)


def _inside(box: Preprocessed, lesions: Iterable[Lesion]) -> tuple[Ball, ...]:
    """Return the lesions whose centres lie in the box."""
    size, found = np.array(box.voxels.shape), list[Ball]()
    for lesion in lesions:
        index = box.geometry.to_index(lesion.centre_mm)
        if (index >= 0).all() and (index < size).all():
            found.append(Ball(triple(index), 2 * lesion.reach_mm))
    return tuple(found)


def with_false_positives(
    samples: Sequence[Sample], seen: Sequence[Sequence[Candidate]]
) -> list[Sample]:
    """Add the strongest false positives of all samples, as many as they have nodules.

    ``seen`` are the edge's candidates in each.
    """
    found = [
        (candidate.score, number, location)
        for number, (sample, candidates) in enumerate(zip(samples, seen, strict=True))
        for candidate in candidates
        for location in sample.false_positives([candidate])
    ]
    found.sort(key=lambda one: -one[0])
    count = sum(len(sample.locations) for sample in samples)
    added = defaultdict[int, list[Location]](list)
    for _, number, location in found[:count]:
        added[number].append(location)
    return [
        replace(sample, locations=(*sample.locations, *added[number]))
        for number, sample in enumerate(samples)
    ]


def _neighbours(folder: Path) -> dict[str, tuple[list[Ball], list[Ball]]]:
    """Read ``marks.csv`` by the cube's name: other nodules, and what is excluded.

    Without such a file both are empty.
    """
    found = defaultdict[str, tuple[list[Ball], list[Ball]]](lambda: ([], []))
    path = folder / "marks.csv"
    if path.is_file():
        table = read_table(path, ("split", "row", "kind", "z", "y", "x", "diameter_mm"))
        numbers = zip(
            *(table.numbers(n) for n in ("row", "z", "y", "x", "diameter_mm")), strict=True
        )
        rows = zip(table.text("split"), table.text("kind"), numbers, strict=True)
        for split, kind, (row, z, y, x, diameter) in rows:
            # an unknown diameter is LUNA16's
            diameter_mm = float(diameter) if diameter > 0 else 2 * UNKNOWN_RADIUS_MM
            nodules, excluded = found[f"{split}/{int(row)}"]
            ball = Ball((float(z), float(y), float(x)), diameter_mm)
            (nodules if kind in MUST_BE_FOUND else excluded).append(ball)
    return found
