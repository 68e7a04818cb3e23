"""Read each location before and after each change, and compare the logits.

Locations are the nodules of whole scans, and as many false positives of the edge: those of the
highest rank. The logits are those of the networks, before calibration. The edge's at a location is
its strongest candidate's within half the diameter, and at least 4 mm. Without a candidate it is the
least that a candidate can have. A location without a candidate before and after tells nothing of
the edge. The second reader reads the region around the location.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from zlib import crc32

import numpy as np

from evaluation.accuracy.readers import RoiReader, Screens, open_screening, open_second
from evaluation.accuracy.truth import Lesion, Truth, scan_name
from evaluation.stability import changes
from evaluation.stability.changes import Ball
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.roi import cut_roi
from imaging.volume import FloatArray, triple
from models.calibration.guarantee import uncalibrated
from models.runtime.detection import Candidate
from models.runtime.screener import LEAST_LOGIT, Screener
from models.runtime.second_reader import SecondReader

NODULE, FALSE_POSITIVE = "nodule", "false positive"

READERS = EDGE, SECOND = ("edge", "second reader")

CHANGES = CUT, SHIFT, MIRROR, NOISE = ("cut", "shift", "mirror", "noise")

SHIFTS_MM = (0.25, 0.5, 0.75)

MARGIN_MM = 5.0
"""A false positive is this far outside of every mark."""

_EPSILON = 1e-12
_BATCH = 8


@dataclass(frozen=True, eq=False)
class Readers:
    """Both readers, whose scores are the sigmoid of their networks' own logits."""

    edge: Screens
    second: RoiReader


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
    """The lung box of a scan, with the locations in it.

    ``nodules`` are all that are known in it, and ``excluded`` all other marks.
    """

    folder: Path
    box: Preprocessed
    nodules: tuple[Ball, ...]
    excluded: tuple[Ball, ...]
    locations: tuple[Location, ...]

    @property
    def name(self) -> str:
        """Return the scan's name, which is that of its patient too."""
        return scan_name(self.folder)

    def false_positives(self, found: Iterable[Candidate]) -> list[tuple[float, Location]]:
        """Return the candidates that lie on no mark, each with its score."""
        return [
            (one.score, Location(one.index_zyx, one.diameter_mm, FALSE_POSITIVE))
            for one in found
            if not any(
                mark.distance_mm(one.index_zyx) < mark.diameter_mm / 2 + MARGIN_MM
                for mark in (*self.nodules, *self.excluded)
            )
        ]


@dataclass(frozen=True)
class Reading:
    """The logits at one location; the edge's is NaN where it has no candidate there."""

    edge: float
    second: float

    @property
    def found(self) -> bool:
        """Return whether the edge has a candidate at the location."""
        return bool(np.isfinite(self.edge))


@dataclass(frozen=True)
class Difference:
    """The change of one logit; ``lost`` is None where the edge had no candidate before.

    ``logit`` is None where there is nothing to compare: the edge had no candidate before or after.
    """

    reader: str
    change: str
    kind: str
    patient: str
    logit: float | None
    lost: bool | None = None


def open_raw(model: str | None, hybrid: str | None) -> Readers:
    """Open both readers without their calibration."""
    edge, second = open_screening(model), open_second(hybrid)
    plain = [
        replace(one.session, artifact=uncalibrated(one.session.artifact)) for one in (edge, second)
    ]
    return Readers(Screener(plain[0]).screen, SecondReader(plain[1]))


def read_sample(folder: Path, truth: Truth) -> Sample:
    """Return the lung box of a whole scan; its lesions inside of the box are locations."""
    box = preprocess(read_study(folder).volume, folder)
    lesions, ignored = (_inside(box, known) for known in (truth.lesions, truth.ignored))
    locations = tuple(Location(one.index_zyx, one.diameter_mm) for one in lesions)
    return Sample(folder, box, lesions, ignored, locations)


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
        (score, number, location)
        for number, (sample, candidates) in enumerate(zip(samples, seen, strict=True))
        for score, location in sample.false_positives(candidates)
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


def differences(sample: Sample, readers: Readers, seed: int) -> Iterator[Difference]:
    """Yield the change of every logit of every location of a sample under every change."""
    every = tuple(range(len(sample.locations)))
    if not every:
        return
    before = read_locations(sample, sample.box, every, readers)
    for change, box, numbers in changed_boxes(sample, seed):
        after = read_locations(sample, box, numbers or every, readers)
        for number, reading in after.items():
            yield from compared(change, sample, number, before[number], reading)


def changed_boxes(sample: Sample, seed: int) -> Iterator[tuple[str, Preprocessed, tuple[int, ...]]]:
    """Yield the change, the box, and the numbers of the locations that it is made for.

    Changes of the whole box are made for all, and have no numbers.
    """
    box, volume = sample.box, read_study(sample.folder).volume
    for axis, shift_mm in product(range(3), SHIFTS_MM):
        yield SHIFT, changes.shifted_grid(volume, box, axis, shift_mm), ()
    yield MIRROR, changes.mirrored(box, 2), ()
    yield NOISE, changes.noisy(box, np.random.default_rng([seed, crc32(sample.name.encode())])), ()
    for number, location in enumerate(sample.locations):
        yield CUT, changes.cut_around(box, location), (number,)


def read_locations(
    sample: Sample, box: Preprocessed, numbers: Sequence[int], readers: Readers
) -> Mapping[int, Reading]:
    """Read the locations of these numbers in ``box``, which is the sample's or made of it."""
    found = readers.edge(box)
    places = [sample.locations[number] for number in numbers]
    index = [box.geometry.to_index(sample.box.geometry.to_world(p.index_zyx)) for p in places]
    edge = []
    for place, at in zip(places, index, strict=True):
        near = [
            one.score
            for one in found
            if np.linalg.norm(np.subtract(one.index_zyx, at)) < place.reach_mm
        ]
        edge.append(float(logits(np.array(max(near)))) if near else np.nan)
    second = list[float]()
    for first in range(0, len(index), _BATCH):
        batch = index[first : first + _BATCH]
        rois = [cut_roi(box.voxels, triple(np.rint(at)), readers.second.roi_shape) for at in batch]
        second += logits(readers.second.read(np.stack(rois)).probability).tolist()
    return dict(zip(numbers, map(Reading, edge, second), strict=True))


def logits(score: FloatArray) -> FloatArray:
    """Return the logits of scores that are the sigmoid of a logit."""
    clipped = np.clip(score, _EPSILON, 1 - _EPSILON)
    return np.asarray(np.log(clipped / (1 - clipped)))


def compared(
    change: str, sample: Sample, number: int, before: Reading, after: Reading
) -> tuple[Difference, Difference]:
    """Return the change at one location for each reader."""
    head = (change, sample.locations[number].kind, sample.name)
    lost = not after.found if before.found else None
    edge = None
    if before.found or after.found:
        then, now = (one.edge if one.found else LEAST_LOGIT for one in (before, after))
        edge = now - then
    return (
        Difference(EDGE, *head, edge, lost),
        Difference(SECOND, *head, after.second - before.second),
    )
