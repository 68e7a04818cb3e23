"""``overread-eval robustness``: how much readings change where they should not.

The same nodule is read before and after a change of its lung box that leaves the nodule as it is.
The edge's logit is that of its strongest candidate within half the diameter, and at least 4 mm.
Without a candidate it is the least that a candidate can have; without one before and after, the
nodule tells nothing of the edge. The second reader reads the region around the nodule.
"""

from collections.abc import Iterator, Mapping, Sequence
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
from evaluation.accuracy.truth import Truth, scan_name
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
from models.runtime.screener import MIN_LOGIT, Screener
from models.runtime.second_reader import SecondReader

READERS = EDGE, SECOND = ("edge", "second reader")
CHANGES = CUT, SHIFT, MIRROR, NOISE = ("cut", "shift", "mirror", "noise")

SHIFTS_MM = (0.25, 0.5, 0.75)
CUT_MM = 50
"""Side of the box that is cut out of a scan."""
NOISE_HU = 20.0
LIMITS: Mapping[str, tuple[float, float]] = {CUT: (0.3, 1.0), SHIFT: (0.3, 1.0)}
"""The largest median and 95th percentile of the absolute change of a nodule's logit."""

_EPSILON = 1e-12
_BATCH = 8


@dataclass(frozen=True, eq=False)
class Readers:
    """Both readers, whose scores are the sigmoid of their networks' own logits."""

    edge: Screens
    second: SecondReader


@dataclass(frozen=True)
class Location:
    """A nodule in a lung box: centre ``(z, y, x)`` in voxels, and diameter."""

    index_zyx: Triple
    diameter_mm: float


@dataclass(frozen=True, eq=False)
class Sample:
    """The lung box of a scan, with the nodules in it."""

    folder: Path
    box: Preprocessed
    locations: tuple[Location, ...]

    @property
    def name(self) -> str:
        """Return the scan's name, which is that of its patient too."""
        return scan_name(self.folder)


@dataclass(frozen=True)
class Difference:
    """The change of one logit; ``lost`` is None where the edge had no candidate before.

    ``logit`` is None where there is nothing to compare: the edge had no candidate before or after.
    """

    reader: str
    change: str
    patient: str
    logit: float | None
    lost: bool | None = None


def open_raw(model: str | None, hybrid: str | None) -> Readers:
    """Open both readers without their calibration."""
    edge, second = (
        replace(reader.session, artifact=uncalibrated(reader.session.artifact))
        for reader in (open_screening(model), open_second(hybrid))
    )
    return Readers(Screener(edge).screen, SecondReader(second))


def read_sample(folder: Path, truth: Truth) -> Sample:
    """Return the lung box of a whole scan; its lesions inside of the box are locations."""
    box = preprocess(read_study(folder).volume, folder)
    placed = [(box.geometry.to_index(one.centre_mm), 2 * one.reach_mm) for one in truth.lesions]
    inside = tuple(
        Location(triple(index), diameter_mm)
        for index, diameter_mm in placed
        if (index >= 0).all() and (index < box.voxels.shape).all()
    )
    return Sample(folder, box, inside)


def differences(sample: Sample, readers: Readers) -> Iterator[Difference]:
    """Yield the change of every logit of every location of a sample under every change."""
    before = read_locations(sample, sample.box, sample.locations, readers)
    for change, box, numbers in changed_boxes(sample):
        places = [sample.locations[number] for number in numbers]
        after = read_locations(sample, box, places, readers)
        for then, now in zip(before[list(numbers)], after, strict=True):
            was, stays = np.isfinite((then[0], now[0]))
            logit = np.subtract(*np.nan_to_num((now, then), nan=MIN_LOGIT))
            seen = float(logit[0]) if was or stays else None
            yield Difference(EDGE, change, sample.name, seen, not stays if was else None)
            yield Difference(SECOND, change, sample.name, float(logit[1]))


def changed_boxes(sample: Sample) -> Iterator[tuple[str, Preprocessed, Sequence[int]]]:
    """Yield the change, the box, and the numbers of the locations that it is made for."""
    every = range(len(sample.locations))
    if not every:
        return
    box, volume = sample.box, read_study(sample.folder).volume
    for axis, shift_mm in product(range(3), SHIFTS_MM):
        yield SHIFT, shifted_grid(volume, box, axis, shift_mm), every
    yield MIRROR, mirrored(box, 2), every
    yield NOISE, noisy(box, np.random.default_rng([0, crc32(sample.name.encode())])), every
    for number in every:
        yield CUT, cut_around(box, sample.locations[number]), (number,)


def read_locations(
    sample: Sample, box: Preprocessed, places: Sequence[Location], readers: Readers
) -> FloatArray:
    """Return the logits of both readers ``(n, 2)`` at ``places`` of the sample.

    That of the edge is NaN where it has no candidate. ``box`` is the sample's or made of it.
    """
    candidates = readers.edge(box)
    found = np.full((len(places), 2), np.nan)
    rois = list[UInt8Array]()
    for row, place in enumerate(places):
        at = box.geometry.to_index(sample.box.geometry.to_world(place.index_zyx))
        reach_mm = max(place.diameter_mm / 2, 4.0)
        away_mm = [np.linalg.norm(np.subtract(one.index_zyx, at)) for one in candidates]
        near = [one.score for one, mm in zip(candidates, away_mm, strict=True) if mm < reach_mm]
        if near:
            found[row, 0] = logits(np.array(max(near)))
        rois.append(cut_roi(box.voxels, triple(np.rint(at)), readers.second.roi_shape))
    for first in range(0, len(rois), _BATCH):
        batch = readers.second.read(np.stack(rois[first : first + _BATCH]))
        found[first : first + _BATCH, 1] = logits(batch.probability)
    return found


def logits(score: FloatArray) -> FloatArray:
    """Return the logits of scores that are the sigmoid of a logit."""
    clipped = np.clip(score, _EPSILON, 1 - _EPSILON)
    return np.asarray(np.log(clipped / (1 - clipped)))


def part_of(box: Preprocessed, start: FloatArray, stop: FloatArray) -> Preprocessed:
    """Return the part of the box from voxel ``start`` to before ``stop``, ``(z, y, x)``."""
    part = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    voxels = np.ascontiguousarray(box.voxels[part])
    return replace(box, voxels=voxels, geometry=box.geometry.cropped(start))


def cut_around(box: Preprocessed, location: Location) -> Preprocessed:
    """Cut a box of `CUT_MM` around the location; less at the faces."""
    start = np.rint(location.index_zyx) - CUT_MM // 2
    return part_of(box, np.maximum(start, 0.0), np.minimum(start + CUT_MM, box.voxels.shape))


def shifted_grid(volume: Volume, box: Preprocessed, axis: int, shift_mm: float) -> Preprocessed:
    """Preprocess a scan again on a grid that lies ``shift_mm`` further along ``axis``.

    ``volume`` is the scan that ``box`` was made of. Its HU are sampled as for the box, by linear
    interpolation inside of the same lungs, as if these began that much later.
    """
    assert box.lungs is not None
    hu, source = to_patient_axes(volume.hu, volume.geometry)
    part = tuple(slice(a, b) for a, b in zip(box.lungs.start, box.lungs.stop, strict=True))
    step = np.zeros(3)
    step[axis] = shift_mm / box.geometry.spacing_mm[axis]
    geometry = box.geometry.cropped(step)
    # two voxels more on each side: nothing is sampled outside
    image = sitk.GetImageFromArray(np.pad(_levels(hu[part]), 2, mode="edge"))
    image.SetSpacing(source.spacing_mm[::-1])
    first = source.to_index(geometry.origin_mm) - np.array(box.lungs.start) + 2
    origin = (first * source.spacing_mm)[::-1].tolist()
    size, spacing = box.voxels.shape[::-1], geometry.spacing_mm[::-1]
    made = sitk.Resample(image, size, sitk.Transform(), sitk.sitkLinear, origin, spacing)
    voxels = np.rint(sitk.GetArrayFromImage(made)).astype(np.uint8)
    return replace(box, voxels=voxels, geometry=geometry)


def _levels(hu: HuArray) -> FloatArray:
    """Return HU as levels of the window, whole numbers from 0 to 255."""
    low, high = WINDOW_HU
    scaled = (np.asarray(hu, np.float32) - low) * (255.0 / (high - low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255))


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
    return replace(box, voxels=np.clip(np.rint(box.voxels + noise), 0, 255).astype(np.uint8))


@command(
    Table("changes", {
        "reader": "reader", "change": "change", "count": "number",
        "median": ("median", "{:.2f}"), "p95": ("95th percentile", "{:.2f}"),
        "mean.value": ("mean", "{:+.2f}"), "lost.value": ("lost", SHARE),
        "within": "within limits",
    }, title="{nodules} nodules in whole scans"),
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
    found = [
        difference
        for sample in each(samples, "scans, changed")
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
    """Yield the figures by reader and change."""
    for reader, change in product(READERS, CHANGES):
        row = _figures([one for one in found if (one.reader, one.change) == (reader, change)])
        if row["count"]:
            pairs = zip(("median", "p95"), LIMITS.get(change, ()), strict=False)
            within = all(row[key]["value"] <= limit for key, limit in pairs)
            row["within"] = within if change in LIMITS else None
            yield {"reader": reader, "change": change, **row}


def _figures(group: Sequence[Difference]) -> dict[str, Any]:
    """Return number, and median, 95th percentile, mean and lost share with their intervals."""
    known = [one for one in group if one.logit is not None]
    asked = [one for one in group if one.lost is not None]
    change = np.array([one.logit for one in known], float)
    lost = np.array([one.lost for one in asked], float)

    def of_change(chosen: npt.NDArray[np.int64]) -> Sequence[float]:
        size = np.abs(change[chosen])
        return [np.median(size), np.quantile(size, 0.95), change[chosen].mean()]

    names = "median", "p95", "mean", "lost"
    shown: dict[str, Any] = {"count": len(known), **dict.fromkeys(names)}
    if known:
        values = by_patient([one.patient for one in known], of_change)
        shown |= zip(names, (one.as_dict() for one in values), strict=False)
    if asked:
        (share,) = by_patient([one.patient for one in asked], lambda i: [lost[i].mean()])
        shown["lost"] = share.as_dict()
    return shown
