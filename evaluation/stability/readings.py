"""Read each location before and after each change, and compare the logits.

The logits are those of the networks, before calibration. The edge's at a location is its strongest
candidate's within half the diameter, and at least 4 mm. Without a candidate it is the least that a
candidate can have. A location without a candidate before and after tells nothing of the edge. The
second reader reads the region around the location, and the one around the edge's candidate.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from zlib import crc32

import numpy as np

from evaluation.accuracy.readers import RoiReader, Screens, open_screening, open_second
from evaluation.stability import changes
from evaluation.stability.locations import Sample
from imaging.preprocess import Preprocessed
from imaging.read import read_study
from imaging.roi import cut_roi
from imaging.volume import FloatArray, Triple, triple
from models.calibration.guarantee import uncalibrated
from models.insertion.donors import Donor
from models.runtime.screener import LEAST_LOGIT, Screener
from models.runtime.second_reader import SecondReader

EDGE, CENTRE, CANDIDATE = "edge", "second reader", "second reader, at the edge's candidate"

CHANGES = CUT, SHIFT, MIRROR, FLIP, NOISE, ERASE, PASTE = (
    "cut", "shift", "mirror", "other mirrors", "noise", "erase", "paste",
)  # fmt: skip

READERS = (EDGE, CENTRE, CANDIDATE)

SHIFTS_MM = (0.25, 0.5, 0.75)

AXES = ("z", "y", "x")

_EPSILON = 1e-12
_BATCH = 8


@dataclass(frozen=True, eq=False)
class Readers:
    """Both readers, whose scores are the sigmoid of their networks' own logits."""

    edge: Screens
    second: RoiReader


@dataclass(frozen=True)
class Reading:
    """The logits at one location; NaN where the edge has no candidate there."""

    edge: float
    centre: float
    candidate: float

    @property
    def found(self) -> bool:
        """Return whether the edge has a candidate at the location."""
        return bool(np.isfinite(self.edge))


@dataclass(frozen=True, eq=False)
class Pair:
    """A lung box before and after a change, for the locations of these numbers in the sample."""

    change: str
    detail: str
    before: Preprocessed
    after: Preprocessed
    locations: tuple[int, ...]


@dataclass(frozen=True)
class Difference:
    """The change of one logit; ``lost`` is None where the edge had no candidate before.

    ``logit`` is None where there is nothing to compare: the edge had no candidate before or after.
    """

    reader: str
    change: str
    detail: str
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


def differences(
    sample: Sample, readers: Readers, donors: Sequence[Donor], seed: int
) -> Iterator[Difference]:
    """Yield the change of every logit of every location of a sample under every change."""
    if not sample.locations:
        return
    first = read_locations(sample, sample.box, range(len(sample.locations)), readers)
    for pair in pairs(sample, donors, seed):
        before = first
        if pair.before is not sample.box:
            before = read_locations(sample, pair.before, pair.locations, readers)
        after = read_locations(sample, pair.after, pair.locations, readers)
        for number in pair.locations:
            yield from compared(pair, sample, number, before[number], after[number])


def pairs(sample: Sample, donors: Sequence[Donor], seed: int) -> Iterator[Pair]:
    """Yield every change of a sample, for all its locations together or for one of them."""
    box, every = sample.box, tuple(range(len(sample.locations)))

    def rng(change: str, number: int = 0) -> np.random.Generator:
        return np.random.default_rng([seed, crc32(f"{sample.name} {change} {number}".encode())])

    # changes of the whole box
    volume = read_study(sample.folder).volume if sample.folder else None
    for axis, shift_mm in product(range(3), SHIFTS_MM):
        if volume is None:
            before, moved = changes.shifted_cubes(box, axis, shift_mm)
        else:
            before, moved = box, changes.shifted_grid(volume, box, axis, shift_mm)
        yield Pair(SHIFT, f"{shift_mm} mm", before, moved, every)
    yield Pair(MIRROR, "", box, changes.mirrored(box, 2), every)
    # a scan upside down is no scan
    for axis in () if sample.folder else (0, 1):
        yield Pair(FLIP, f"along {AXES[axis]}", box, changes.mirrored(box, axis), every)
    yield Pair(NOISE, "", box, changes.noisy(box, rng(NOISE)), every)
    # changes around one location
    others = [donor for donor in donors if donor.patient != sample.patient]
    for number, location in enumerate(sample.locations):
        nodules = [one for one in sample.nodules if one.index_zyx != location.index_zyx]
        made: dict[str, Preprocessed | None] = {
            CUT: changes.cut_around(box, location)
            if sample.folder
            else changes.cut_sides(box, location, rng(CUT, number)),
            ERASE: changes.erased(box, location, nodules, rng(ERASE, number)),
            PASTE: changes.pasted(box, location, nodules, others, rng(PASTE, number)),
        }
        for change, after in made.items():
            if after is not None:
                yield Pair(change, "", box, after, (number,))


def read_locations(
    sample: Sample, box: Preprocessed, numbers: Iterable[int], readers: Readers
) -> dict[int, Reading]:
    """Read the locations of these numbers in ``box``, which is the sample's or made of it."""
    found = readers.edge(box)
    rois: dict[Triple, float] = {}
    at: dict[int, tuple[Triple, Triple | None, float]] = {}
    for number in numbers:
        location = sample.locations[number]
        index = box.geometry.to_index(sample.box.geometry.to_world(location.index_zyx))
        near = [
            one
            for one in found
            if np.linalg.norm(np.subtract(one.index_zyx, index)) < location.reach_mm
        ]
        best = max(near, key=lambda one: one.score, default=None)
        logit = np.nan if best is None else float(logits(np.array(best.score)))
        candidate = None if best is None else triple(np.rint(best.index_zyx))
        at[number] = (triple(np.rint(index)), candidate, logit)
    # the second reader reads each region once: most candidates lie at the location itself
    wanted = list(
        {one for centre, candidate, _ in at.values() for one in (centre, candidate) if one}
    )
    for first in range(0, len(wanted), _BATCH):
        batch = wanted[first : first + _BATCH]
        voxels = np.stack([cut_roi(box.voxels, one, readers.second.roi_shape) for one in batch])
        chances = logits(readers.second.read(voxels).probability)
        rois.update(zip(batch, chances.tolist(), strict=True))
    return {
        number: Reading(logit, rois[centre], rois[candidate] if candidate else np.nan)
        for number, (centre, candidate, logit) in at.items()
    }


def logits(score: FloatArray) -> FloatArray:
    """Return the logits of scores that are the sigmoid of a logit."""
    clipped = np.clip(score, _EPSILON, 1 - _EPSILON)
    return np.asarray(np.log(clipped / (1 - clipped)))


def compared(
    pair: Pair, sample: Sample, number: int, before: Reading, after: Reading
) -> list[Difference]:
    """Return the change at one location for each reader."""
    head = (pair.change, pair.detail, sample.locations[number].kind, sample.patient)
    lost = not after.found if before.found else None
    edge = None
    if before.found or after.found:
        least = (LEAST_LOGIT if not one.found else one.edge for one in (after, before))
        edge = next(least) - next(least)
    both = before.found and after.found
    return [
        Difference(EDGE, *head, edge, lost),
        Difference(CENTRE, *head, after.centre - before.centre),
        Difference(CANDIDATE, *head, after.candidate - before.candidate if both else None),
    ]
