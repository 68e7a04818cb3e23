"""The vocabulary that every part shares: a volume in HU and where it lies in the patient.

Axis order is declared here once. Arrays are ``(z, y, x)``; spacings follow the array,
``(z, y, x)`` in mm; world points are ``(x, y, z)`` in DICOM patient coordinates (LPS), in mm.

A study as it was read: the volume, who and what it is of, and what else lay beside it.

A nodule whose place is known: what a reader marked, or what the phantom drew.

Turning a volume so that its axes lie nearest to the patient's: left, back, head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt

HuArray = npt.NDArray[np.int16]
UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]
Triple = tuple[float, float, float]

WINDOW_HU: tuple[float, float] = (-1000.0, 400.0)
"""The HU window that the networks see; uint8 0 is its lower end, 255 its upper end."""


def _identity() -> FloatArray:
    return np.eye(3)


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where an array lies in the patient.

    Attributes:
        spacing_mm: voxel size along the array's axes, ``(z, y, x)``.
        origin_mm: world point of the centre of voxel ``(0, 0, 0)``, ``(x, y, z)`` LPS.
        direction: 3 x 3; its columns are the world directions of the index axes x, y and z
            (the convention of SimpleITK).
    """

    spacing_mm: Triple = (1.0, 1.0, 1.0)
    origin_mm: Triple = (0.0, 0.0, 0.0)
    direction: FloatArray = field(default_factory=_identity)

    def to_world(self, index_zyx: npt.ArrayLike) -> FloatArray:
        """World points ``(..., 3)`` as ``(x, y, z)`` mm of fractional indices ``(..., 3)``."""
        steps = np.asarray(index_zyx, dtype=np.float64) * np.asarray(self.spacing_mm)
        return np.asarray(np.asarray(self.origin_mm) + steps[..., ::-1] @ self.direction.T)

    def to_index(self, points_mm: npt.ArrayLike) -> FloatArray:
        """Fractional indices ``(..., 3)`` as ``(z, y, x)`` of world points ``(x, y, z)`` mm."""
        offset = np.asarray(points_mm, dtype=np.float64) - np.asarray(self.origin_mm)
        steps = offset @ np.linalg.inv(self.direction).T
        return np.asarray(steps[..., ::-1] / np.asarray(self.spacing_mm))

    def cropped(self, start_zyx: npt.ArrayLike) -> Geometry:
        """The geometry of the sub-array that begins at ``start_zyx``."""
        x, y, z = (float(v) for v in self.to_world(start_zyx))
        return Geometry(self.spacing_mm, (x, y, z), self.direction)


@dataclass(frozen=True, eq=False)
class Volume:
    """One CT series in Hounsfield units, ``hu`` int16 ``(z, y, x)``, with its geometry.

    ``series_uid`` names it in logs and reports; ``description`` is free text for people.
    """

    hu: HuArray
    geometry: Geometry
    series_uid: str = ""
    description: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along ``(z, y, x)``."""
        z, y, x = self.hu.shape
        return z, y, x

    @property
    def extent_mm(self) -> Triple:
        """Size of the volume along ``(z, y, x)``, slice thickness included."""
        z, y, x = (n * s for n, s in zip(self.hu.shape, self.geometry.spacing_mm, strict=True))
        return z, y, x


def from_window(values: UInt8Array) -> HuArray:
    """Convert uint8 values of `WINDOW_HU` back to HU, rounded to int16."""
    low, high = WINDOW_HU
    hu = values.astype(np.float32) * ((high - low) / 255.0) + low
    return np.asarray(np.rint(hu).astype(np.int16))


@dataclass(frozen=True)
class StudyHeader:
    """What the file says of patient and examination; empty where it says nothing.

    None of it leaves the site. ``spacing_mm`` and the volume's geometry are the measured truth;
    these are the scanner's words.
    """

    patient_id: str = ""
    patient_name: str = ""
    sex: str = ""
    age: str = ""
    study_uid: str = ""
    study_date: str = ""
    accession: str = ""
    modality: str = "CT"
    manufacturer: str = ""
    kernel: str = ""
    series_description: str = ""
    transfer_syntax: str = ""


@dataclass(frozen=True, eq=False)
class Study:
    """One readable study: the chosen series as a volume, and the series passed over (as text)."""

    volume: Volume
    source: Path
    header: StudyHeader = field(default_factory=StudyHeader)
    other_series: tuple[str, ...] = ()


@dataclass(frozen=True)
class Nodule:
    """Ground truth: centre ``(x, y, z)`` LPS mm and diameter in mm; ``kind`` in a word or two."""

    centre_mm: Triple
    diameter_mm: float
    kind: str = ""

    def hit_by(self, point_mm: Triple | FloatArray) -> bool:
        """Whether a mark at ``point_mm`` counts as this nodule: nearer than half its diameter.

        The rule of LUNA16 (Setio et al., Medical Image Analysis 42:1-13, 2017).
        """
        distance = float(np.linalg.norm(np.asarray(point_mm) - np.asarray(self.centre_mm)))
        return distance < self.diameter_mm / 2


def to_patient_axes(hu: HuArray, geometry: Geometry) -> tuple[HuArray, Geometry]:
    """The same voxels at the same world points, with axes permuted and flipped.

    Afterwards x grows towards the patient's left, y to the back and z to the head, as nearly
    as the axes allow: nothing is resampled, an oblique volume stays oblique. Prone pictures,
    feet-first stacks and files in RAS order then all look alike to a network.
    """
    order = _nearest(geometry.direction)
    axes = tuple(2 - order[2 - axis] for axis in range(3))  # of the array, (z, y, x)
    direction = geometry.direction[:, order]
    z, y, x = (geometry.spacing_mm[axis] for axis in axes)
    turned = Geometry((z, y, x), geometry.origin_mm, direction)
    return _flipped(hu.transpose(axes), turned)


def _nearest(direction: FloatArray) -> list[int]:
    """For each of the world axes x, y, z the index axis (x, y, z) that lies nearest to it."""
    best = max(
        permutations(range(3)),
        key=lambda order: sum(abs(direction[world, axis]) for world, axis in enumerate(order)),
    )
    return list(best)


def _flipped(hu: HuArray, geometry: Geometry) -> tuple[HuArray, Geometry]:
    signs = np.where(np.diagonal(geometry.direction) < 0, -1, 1)  # of x, y, z
    backward = tuple(axis for axis in range(3) if signs[2 - axis] < 0)
    start = [hu.shape[axis] - 1 if axis in backward else 0 for axis in range(3)]
    x, y, z = (float(v) for v in geometry.to_world(start))
    turned = Geometry(geometry.spacing_mm, (x, y, z), geometry.direction * signs)
    return np.ascontiguousarray(np.flip(hu, backward)), turned
