"""Preprocess a volume in HU for the networks: the lung box at 1 mm, uint8 of the window."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from imaging.acquisition import Acquisition, acquisition_of
from imaging.appearance import oddities
from imaging.coverage import Coverage, coverage_of
from imaging.errors import IrregularGeometry
from imaging.lung_tissue import LungPart, at_lung, opaque_share, parts_of
from imaging.lungs import Lungs, find_lungs
from imaging.plausibility import implausible
from imaging.sides import between, zones
from imaging.slices import SliceMeasures, measures_of, of_each
from imaging.volume import (
    WINDOW_HU,
    Geometry,
    HuArray,
    Limitation,
    Triple,
    UInt8Array,
    Volume,
    to_patient_axes,
    triple,
)

TARGET_MM = 1.0
MAX_BOX_MM = 600.0
"""Longest side of a lung box; the lungs of a tall adult are 450 mm wide and high."""


@dataclass(frozen=True)
class ChestMeasures:
    """What a volume shows of chest and scanner; the networks do not need it.

    Attributes:
        coverage: how much of the lungs the volume shows; None if it was not measured.
        opaque_share: the part of the lungs that is not aerated; None if it was not measured.
        parts: the air of both sides of the chest; empty if it was not measured.
        implausible: what no adult's whole chest shows, each with its subject.
        odd: what of the images is not as a scanner makes a chest.
        acquisition: what the voxels tell of scanner and protocol; None if it was not measured.
        between: see `imaging.sides.between`; ``zones``: see `imaging.sides.zones`.
    """

    coverage: Coverage | None = None
    opaque_share: float | None = None
    parts: tuple[LungPart, ...] = ()
    implausible: tuple[tuple[str, str], ...] = ()
    odd: tuple[Limitation, ...] = ()
    acquisition: Acquisition | None = None
    between: tuple[tuple[float, float], ...] = ()
    zones: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """The lung box as the networks see it.

    Attributes:
        voxels: uint8 ``(z, y, x)`` of the window `WINDOW_HU`, 1 mm within half a voxel of rounding.
        geometry: its position in the patient (x to the left, y to the back, z to the head).
        lungs: the lungs in the voxels of ``source``; None if the box is all lung.
        source: the geometry of ``lungs``.
        measure: makes `measures`; None where nothing is measured.
        proceed: lets another process measure meanwhile, where one does that.
    """

    voxels: UInt8Array
    geometry: Geometry
    lungs: Lungs | None = None
    source: Geometry | None = None
    measure: Callable[[], ChestMeasures] | None = None
    proceed: Callable[[], None] | None = None

    @cached_property
    def measures(self) -> ChestMeasures:
        """What the volume shows of chest and scanner: made when it is asked for first."""
        return self.measure() if self.measure else ChestMeasures()

    @property
    def inner(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The lowest and the highest index ``(z, y, x)`` on a slice of the source, in the box."""
        margin = (
            (self.source or self.geometry).spacing_mm[0] / self.geometry.spacing_mm[0] - 1
        ) / 2
        z, y, x = (side - 1.0 for side in self.voxels.shape)
        return (margin, 0.0, 0.0), (z - margin, y, x)

    def inside(
        self, index_zyx: npt.NDArray[np.float64], diameter_mm: npt.NDArray[np.float64] | None = None
    ) -> npt.NDArray[np.bool_]:
        """Tell which fractional box indices ``(n, 3)`` lie in the lung region, bool ``(n,)``.

        Candidates of ``diameter_mm`` ``(n,)`` must lie at lung tissue, too.
        """
        if self.lungs is None or self.source is None or len(index_zyx) == 0:
            return np.ones(len(index_zyx), dtype=bool)
        at = self.source.to_index(self.geometry.to_world(index_zyx))
        inside = self.lungs.contains(at)
        if diameter_mm is not None and inside.any():
            sizes = diameter_mm[inside]
            inside[inside] = at_lung(self.lungs, self.source.spacing_mm, at[inside], sizes)
        return inside


Room = Callable[[tuple[int, ...]], UInt8Array]
"""Makes an array of uint8 of a shape."""


def _room(shape: tuple[int, ...]) -> UInt8Array:
    return np.empty(shape, np.uint8)


def preprocess(volume: Volume, source: Path | str = "volume", room: Room = _room) -> Preprocessed:
    """Cut out and resample the lung box of a CT volume; ``room`` makes its array.

    Raises:
        NoLung: the volume holds no lung; the error names ``source``.
        IrregularGeometry: its lungs would be larger than any.
    """
    hu, whole = to_patient_axes(volume.hu, volume.geometry)
    # those of a volume in other axes are not those of these slices
    known = volume.measures if hu is volume.hu else ()
    lungs = find_lungs(hu, whole.spacing_mm, source, known)
    sides = [
        (b - a) * mm for a, b, mm in zip(lungs.start, lungs.stop, whole.spacing_mm, strict=True)
    ]
    if max(sides) > MAX_BOX_MM:
        size = " x ".join(f"{side:.0f}" for side in sides)
        reason = f"its lungs would be {size} mm (z, y, x), at most {MAX_BOX_MM:g} mm each"
        raise IrregularGeometry(f"{reason}: check the spacing, export it again", source)
    box = tuple(slice(a, b) for a, b in zip(lungs.start, lungs.stop, strict=True))
    voxels, geometry = resample(hu[box], whole.cropped(lungs.start), room)
    measure = partial(_measured, hu, whole.spacing_mm, lungs, known)
    return Preprocessed(voxels, geometry, lungs, whole, measure)


def _measured(
    hu: HuArray, spacing_mm: Triple, lungs: Lungs, known: Sequence[SliceMeasures]
) -> ChestMeasures:
    return ChestMeasures(
        coverage_of(lungs, spacing_mm[0]),
        opaque_share(lungs),
        parts_of(lungs),
        implausible(lungs, spacing_mm),
        oddities(hu, spacing_mm, lungs, known or measures_of(hu, spacing_mm[1:])),
        acquisition_of(hu, spacing_mm, lungs),
        between(lungs),
        zones(lungs),
    )


def resample(hu: HuArray, geometry: Geometry, room: Room = _room) -> tuple[UInt8Array, Geometry]:
    """Resample HU at any spacing to 1 mm, uint8 of the window, by trilinear interpolation.

    The window is applied first, which saves three quarters of the memory traffic and of the time.
    Then OpenCV resizes each slice in its plane (pixel areas aligned), and slices are blended
    along z.
    """
    z, y, x = (
        max(1, round(n * s / TARGET_MM)) for n, s in zip(hu.shape, geometry.spacing_mm, strict=True)
    )
    shape = z, y, x
    flat = of_each(lambda image: _flat(image, (shape[2], shape[1])), hu)
    out = room(shape)
    with ThreadPoolExecutor(2) as pool:
        centres = (np.arange(shape[0]) + 0.5) * (hu.shape[0] / shape[0]) - 0.5
        at = np.clip(centres, 0, hu.shape[0] - 1)  # positions of the new slices in the old ones
        list(pool.map(lambda part: _blend(flat, at, out, part), np.array_split(range(shape[0]), 2)))
    # the new grid covers the same box with a whole number of voxels, so its spacing is not quite
    # 1 mm; its first centre moves by the difference of the half voxels
    scale = [n / m for n, m in zip(hu.shape, shape, strict=True)]
    spacing_mm = triple(s * f for s, f in zip(geometry.spacing_mm, scale, strict=True))
    origin_mm = triple(geometry.to_world([0.5 * f - 0.5 for f in scale]))
    return out, Geometry(spacing_mm, origin_mm, geometry.direction)


def _flat(image: HuArray, size_xy: tuple[int, int]) -> cv2.typing.MatLike:
    """Window one slice and resize it in its plane."""
    low, high = WINDOW_HU
    scale = 255.0 / (high - low)
    # the second operand has weight 0: this is OpenCV's fused scale, round and saturate
    windowed = cv2.addWeighted(image, scale, image, 0, -low * scale, dtype=cv2.CV_8U)
    return cv2.resize(windowed, size_xy, interpolation=cv2.INTER_LINEAR)


def _blend(
    flat: list[cv2.typing.MatLike],
    at: npt.NDArray[np.float64],
    out: UInt8Array,
    part: Iterable[int],
) -> None:
    """Write the slices ``part`` of ``out``, each interpolated from the two around it."""
    for z in part:
        below = int(at[z])
        share = float(at[z] - below)
        above = min(below + 1, len(flat) - 1)
        cv2.addWeighted(flat[below], 1 - share, flat[above], share, 0, dst=out[z])
