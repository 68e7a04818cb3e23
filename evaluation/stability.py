"""``overread-eval robustness``: how much readings change where they should not.

The same nodule is read before and after a change of its lung box that leaves the nodule as it is,
and so are false positives of the edge: those of the highest rank, as many as there are nodules. The
edge's logit at a location is its strongest candidate's within half the diameter, and at least 4 mm.
Without a candidate it is the least that a candidate can have; without one before and after, the
location tells nothing of the edge. The second reader reads the region around the location.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from evaluation.accuracy.bootstrap import by_patient
from evaluation.accuracy.options import Marks, MoreScans, Scans, marked_scans
from evaluation.accuracy.readers import Screens, open_screening, open_second
from evaluation.accuracy.truth import Lesion, Truth, scan_name
from evaluation.run import SHARE, CloudModel, Model, Table, command, each
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.roi import cut_roi
from imaging.volume import (
    WINDOW_HU,
    FloatArray,
    Geometry,
    HuArray,
    Triple,
    UInt8Array,
    Volume,
    to_patient_axes,
    triple,
)
from models.calibration.guarantee import uncalibrated
from models.runtime.detection import Candidate
from models.runtime.screener import MIN_LOGIT, Screener
from models.runtime.second_reader import SecondReader

NODULE, FALSE_POSITIVE = "nodule", "false positive"

READERS = EDGE, SECOND = ("edge", "second reader")

CHANGES = CUT, SHIFT, MIRROR, NOISE = ("cut", "shift", "mirror", "noise")

SHIFTS_MM = (0.25, 0.5, 0.75)

MARGIN_MM = 5.0
"""A false positive is this far outside of every mark."""

_EPSILON = 1e-12
_BATCH = 8

CUT_MM = 50
"""Side of the box that is cut out of a scan."""

NOISE_HU = 20.0

LIMITS: Mapping[str, tuple[float, float]] = {CUT: (0.3, 1.0), SHIFT: (0.3, 1.0)}
"""The largest median and 95th percentile of the absolute change of a nodule's logit."""


@dataclass(frozen=True, eq=False)
class Readers:
    """Both readers, whose scores are the sigmoid of their networks' own logits."""

    edge: Screens
    second: SecondReader


@dataclass(frozen=True)
class Location:
    """A nodule or another location in a lung box: centre ``(z, y, x)`` in voxels, and diameter.

    One that is measured is of kind `NODULE` or `FALSE_POSITIVE`.
    """

    index_zyx: Triple
    diameter_mm: float
    kind: str = NODULE

    @property
    def reach_mm(self) -> float:
        """Return how far from its centre a candidate belongs to it."""
        return max(self.diameter_mm / 2, 4.0)


@dataclass(frozen=True, eq=False)
class Sample:
    """The lung box of a scan, with the locations in it, and all other marks."""

    folder: Path
    box: Preprocessed
    locations: tuple[Location, ...]
    excluded: tuple[Location, ...] = ()

    @property
    def name(self) -> str:
        """Return the scan's name, which is that of its patient too."""
        return scan_name(self.folder)

    def false_positives(self, found: Iterable[Candidate]) -> list[tuple[float, Location]]:
        """Return the candidates that lie on no mark, each with its score."""
        marks = (*self.locations, *self.excluded)
        return [
            (one.score, Location(one.index_zyx, one.diameter_mm, FALSE_POSITIVE))
            for one in found
            if all(
                _away_mm(mark.index_zyx, one) >= mark.diameter_mm / 2 + MARGIN_MM for mark in marks
            )
        ]


def _away_mm(index_zyx: Triple | FloatArray, one: Candidate) -> float:
    return float(np.linalg.norm(np.subtract(one.index_zyx, index_zyx)))


@dataclass(frozen=True)
class Reading:
    """The logits at one location; the edge's is None where it has no candidate there."""

    edge: float | None
    second: float


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
    return Sample(folder, box, _inside(box, truth.lesions), _inside(box, truth.ignored))


def _inside(box: Preprocessed, lesions: Iterable[Lesion]) -> tuple[Location, ...]:
    size, found = np.array(box.voxels.shape), list[Location]()
    for lesion in lesions:
        index = box.geometry.to_index(lesion.centre_mm)
        if (index >= 0).all() and (index < size).all():
            found.append(Location(triple(index), 2 * lesion.reach_mm))
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


def differences(sample: Sample, readers: Readers) -> Iterator[Difference]:
    """Yield the change of every logit of every location of a sample under every change."""
    every = tuple(range(len(sample.locations)))
    if not every:
        return
    before = read_locations(sample, sample.box, every, readers)
    for change, box, numbers in changed_boxes(sample):
        after = read_locations(sample, box, numbers or every, readers)
        for number, reading in after.items():
            yield from compared(change, sample, number, before[number], reading)


def changed_boxes(sample: Sample) -> Iterator[tuple[str, Preprocessed, tuple[int, ...]]]:
    """Yield the change, the box, and the numbers of the locations that it is made for.

    Changes of the whole box are made for all, and have no numbers.
    """
    box, volume = sample.box, read_study(sample.folder).volume
    for axis, shift_mm in product(range(3), SHIFTS_MM):
        yield SHIFT, shifted_grid(volume, box, axis, shift_mm), ()
    yield MIRROR, mirrored(box, 2), ()
    yield NOISE, noisy(box, np.random.default_rng([0, crc32(sample.name.encode())])), ()
    for number, location in enumerate(sample.locations):
        yield CUT, cut_around(box, location), (number,)


def read_locations(
    sample: Sample, box: Preprocessed, numbers: Sequence[int], readers: Readers
) -> Mapping[int, Reading]:
    """Read the locations of these numbers in ``box``, which is the sample's or made of it."""
    found = readers.edge(box)
    places = [sample.locations[number] for number in numbers]
    index = [box.geometry.to_index(sample.box.geometry.to_world(p.index_zyx)) for p in places]
    edge = list[float | None]()
    for place, at in zip(places, index, strict=True):
        near = [one.score for one in found if _away_mm(at, one) < place.reach_mm]
        edge.append(float(logits(np.array(max(near)))) if near else None)
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
    lost, edge = None if before.edge is None else after.edge is None, None
    if before.edge is not None or after.edge is not None:
        then, now = (MIN_LOGIT if one.edge is None else one.edge for one in (before, after))
        edge = now - then
    return (
        Difference(EDGE, *head, edge, lost),
        Difference(SECOND, *head, after.second - before.second),
    )


def part_of(box: Preprocessed, start: FloatArray, stop: FloatArray) -> Preprocessed:
    """Return the part of the box from voxel ``start`` to before ``stop``, ``(z, y, x)``."""
    part = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    voxels = np.ascontiguousarray(box.voxels[part])
    return replace(box, voxels=voxels, geometry=box.geometry.cropped(start))


def cut_around(box: Preprocessed, location: Location) -> Preprocessed:
    """Cut a box of `CUT_MM` around the location; less at the faces."""
    start = np.rint(location.index_zyx) - CUT_MM // 2
    stop = np.minimum(start + CUT_MM, box.voxels.shape)
    return part_of(box, np.maximum(start, 0.0), stop)


def shifted_grid(volume: Volume, box: Preprocessed, axis: int, shift_mm: float) -> Preprocessed:
    """Preprocess a scan again on a grid that lies ``shift_mm`` further along ``axis``.

    ``volume`` is the scan that ``box`` was made of. Its HU are sampled as for the box, by linear
    interpolation inside of the same lungs, as if these began that much later.
    """
    assert box.lungs is not None
    assert box.source is not None
    hu, source = to_patient_axes(volume.hu, volume.geometry)
    part = tuple(slice(a, b) for a, b in zip(box.lungs.start, box.lungs.stop, strict=True))
    step = np.zeros(3)
    step[axis] = shift_mm / box.geometry.spacing_mm[axis]
    geometry = box.geometry.cropped(step)
    # two voxels more on each side: nothing is sampled outside
    image = sitk.GetImageFromArray(np.pad(to_window(hu[part]), 2, mode="edge").astype(np.float32))
    image.SetSpacing(source.spacing_mm[::-1])
    first = source.to_index(geometry.origin_mm) - np.array(box.lungs.start) + 2
    grid = sitk.ResampleImageFilter()
    grid.SetSize(box.voxels.shape[::-1])
    grid.SetOutputSpacing(geometry.spacing_mm[::-1])
    grid.SetOutputOrigin((first * source.spacing_mm)[::-1].tolist())
    grid.SetInterpolator(sitk.sitkLinear)
    voxels = np.rint(sitk.GetArrayFromImage(grid.Execute(image))).astype(np.uint8)
    return replace(box, voxels=voxels, geometry=geometry)


def to_window(hu: HuArray | FloatArray) -> UInt8Array:
    """Return HU as uint8 of the window, rounded and clipped."""
    low, high = WINDOW_HU
    scaled = (np.asarray(hu, np.float32) - low) * (255.0 / (high - low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def mirrored(box: Preprocessed, axis: int) -> Preprocessed:
    """Return the mirror image along ``axis`` of the array ``(z, y, x)``."""
    start, signs = np.zeros(3), np.ones(3)
    start[axis], signs[2 - axis] = box.voxels.shape[axis] - 1, -1
    old = box.geometry
    geometry = Geometry(old.spacing_mm, triple(old.to_world(start)), old.direction * signs)
    return replace(box, voxels=np.ascontiguousarray(np.flip(box.voxels, axis)), geometry=geometry)


def noisy(box: Preprocessed, rng: np.random.Generator) -> Preprocessed:
    """Add Gaussian noise of `NOISE_HU` standard deviation to each voxel, clipped to the window."""
    low, high = WINDOW_HU
    noise = rng.standard_normal(box.voxels.shape, np.float32) * (NOISE_HU * 255 / (high - low))
    voxels = np.clip(np.rint(box.voxels + noise), 0, 255).astype(np.uint8)
    return replace(box, voxels=voxels)


@command(
    Table("changes", {
        "reader": "reader", "change": "change", "count": "number",
        "median": ("median", "{:.2f}"), "p95": ("95th percentile", "{:.2f}"),
        "mean.value": ("mean", "{:+.2f}"), "lost.value": ("lost", SHARE),
        "within": "within limits", "beside": ("false positives, median", "{:.2f}"),
    }, title="{nodules} nodules and as many false positives in whole scans"),
    "Change of the logit, before calibration: median and 95th percentile of its absolute value with"
    " 95 % intervals by bootstrap over patients, and its mean. Lost: of the locations where the"
    " edge had a candidate, those without one after the change.",
)  # fmt: skip
def robustness(
    scans: Scans,
    truth: Marks,
    more_scans: MoreScans = None,
    model: Model = None,
    hybrid: CloudModel = None,
) -> dict[str, Any]:
    """Change of logits of nodules in whole scans under cut, shift, mirror and noise."""
    folders, known = marked_scans(scans, more_scans, truth)
    readers = open_raw(model, hybrid)
    samples = [
        read_sample(folder, known[scan_name(folder)])
        for folder in each(folders, "scans from their files")
    ]
    seen = [readers.edge(sample.box) for sample in each(samples, "scans, unchanged")]
    found = [
        difference
        for sample in each(with_false_positives(samples, seen), "scans, changed")
        for difference in differences(sample, readers)
    ]
    return {
        "scans": [sample.name for sample in samples],
        "nodules": sum(len(sample.locations) for sample in samples),
        "least_logit": MIN_LOGIT,
        "limits": LIMITS,
        "changes": list(summaries(found)),
    }


def summaries(found: Sequence[Difference]) -> Iterator[dict[str, Any]]:
    """Yield the figures of nodules by reader and change, beside the median of false positives."""
    for reader, change in product(READERS, CHANGES):
        of = [one for one in found if (one.reader, one.change) == (reader, change)]
        nodules, beside = (
            _figures([one for one in of if one.kind == kind]) for kind in (NODULE, FALSE_POSITIVE)
        )
        if nodules["count"]:
            median = beside["median"] and beside["median"]["value"]
            within = _within(change, nodules)
            yield {
                "reader": reader,
                "change": change,
                **nodules,
                "within": within,
                "beside": median,
            }


def _within(change: str, figures: Mapping[str, Any]) -> bool | None:
    """Return whether the limits of a change hold; None where there is no limit."""
    if change not in LIMITS:
        return None
    pairs = zip(("median", "p95"), LIMITS[change], strict=True)
    return all(figures[key]["value"] <= limit for key, limit in pairs)


def _figures(group: Sequence[Difference]) -> dict[str, Any]:
    """Return number, and median, 95th percentile, mean and lost share with their intervals."""
    known = [one for one in group if one.logit is not None]
    asked = [one for one in group if one.lost is not None]
    change = np.array([one.logit for one in known], float)
    lost = np.array([one.lost for one in asked], float)

    def of_change(chosen: npt.NDArray[np.int64]) -> Sequence[float]:
        size = np.abs(change[chosen])
        return [np.median(size), np.quantile(size, 0.95), change[chosen].mean()]

    shown: dict[str, Any] = {
        "count": len(known),
        **dict.fromkeys(("median", "p95", "mean", "lost")),
    }
    if known:
        values = by_patient([one.patient for one in known], of_change)
        shown |= zip(("median", "p95", "mean"), (one.as_dict() for one in values), strict=True)
    if asked:
        (share,) = by_patient([one.patient for one in asked], lambda i: [lost[i].mean()])
        shown["lost"] = share.as_dict()
    return shown
