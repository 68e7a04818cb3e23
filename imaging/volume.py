"""The data types that every package shares: volume, geometry, study and nodule.

Axis order is declared here once. Arrays are ``(z, y, x)``; spacings follow the array,
``(z, y, x)`` in mm; world points are ``(x, y, z)`` in DICOM patient coordinates (LPS), in mm.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imaging.slices import SliceMeasures

HuArray = npt.NDArray[np.int16]
UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]
Triple = tuple[float, float, float]

WINDOW_HU: tuple[float, float] = (-1000.0, 400.0)
"""The HU window that the networks see; uint8 0 is its lower end, 255 its upper end."""


def triple(values: Iterable[float]) -> Triple:
    """Convert three numbers to a tuple of floats; a text raises TypeError."""
    if isinstance(values, str | bytes):  # its letters would pass for numbers
        raise TypeError(f"expected three numbers, got {values!r}")
    a, b, c = (float(v) for v in values)
    return a, b, c


@dataclass(frozen=True, eq=False)
class Geometry:
    """Position and orientation of an array in the patient.

    Attributes:
        spacing_mm: voxel size along the array's axes, ``(z, y, x)``.
        origin_mm: world point of the centre of voxel ``(0, 0, 0)``, ``(x, y, z)`` LPS.
        direction: 3 x 3; its columns are the world directions of the index axes x, y and z
            (the convention of SimpleITK).
    """

    spacing_mm: Triple = (1.0, 1.0, 1.0)
    origin_mm: Triple = (0.0, 0.0, 0.0)
    direction: FloatArray = field(default_factory=lambda: np.eye(3))

    def to_world(self, index_zyx: npt.ArrayLike) -> FloatArray:
        """Convert fractional indices ``(..., 3)`` to world points ``(x, y, z)`` in mm."""
        steps = np.asarray(index_zyx, dtype=np.float64) * np.asarray(self.spacing_mm)
        return np.asarray(np.asarray(self.origin_mm) + steps[..., ::-1] @ self.direction.T)

    def to_index(self, points_mm: npt.ArrayLike) -> FloatArray:
        """Convert world points ``(..., 3)`` in mm to fractional indices ``(z, y, x)``."""
        offset = np.asarray(points_mm, dtype=np.float64) - np.asarray(self.origin_mm)
        steps = offset @ np.linalg.inv(self.direction).T
        return np.asarray(steps[..., ::-1] / np.asarray(self.spacing_mm))

    def cropped(self, start_zyx: npt.ArrayLike) -> "Geometry":
        """Compute the geometry of the sub-array that begins at ``start_zyx``."""
        return Geometry(self.spacing_mm, triple(self.to_world(start_zyx)), self.direction)


@dataclass(frozen=True, eq=False)
class Volume:
    """One CT series in Hounsfield units, ``hu`` int16 ``(z, y, x)``, with its geometry.

    ``series_uid`` names it in logs and reports; ``description`` is free text for people.
    ``measures`` are those of its slices, where they are known.
    """

    hu: HuArray
    geometry: Geometry
    series_uid: str = ""
    description: str = ""
    measures: tuple[SliceMeasures, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along ``(z, y, x)``."""
        z, y, x = self.hu.shape
        return z, y, x

    @property
    def extent_mm(self) -> Triple:
        """Size of the volume along ``(z, y, x)``, slice thickness included."""
        return triple(n * s for n, s in zip(self.hu.shape, self.geometry.spacing_mm, strict=True))


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels ``(z, y, x)`` of an array: how many, and where they lie in the patient."""

    shape: tuple[int, ...]
    geometry: Geometry


def from_window(values: UInt8Array) -> HuArray:
    """Convert uint8 values of `WINDOW_HU` back to HU, rounded to int16."""
    low, high = WINDOW_HU
    hu = values.astype(np.float32) * ((high - low) / 255.0) + low
    return np.asarray(np.rint(hu).astype(np.int16))


@dataclass(frozen=True)
class StudyHeader:
    """Patient and examination as the file states them; empty or 0 where it states nothing.

    The thickness is the largest of the slices. None of it leaves the site.
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
    contrast: str = ""
    series_description: str = ""
    transfer_syntax: str = ""
    slice_thickness_mm: float = 0.0


@dataclass(frozen=True)
class ImageRef:
    """The image of one slice as viewers and archives name it.

    ``number`` is the InstanceNumber, ``frame`` counts from 1 in a file of several frames. Both are
    None, and ``sop_instance_uid`` is empty, where the file does not state them.
    """

    number: int | None = None
    sop_instance_uid: str = ""
    frame: int | None = None


UNNAMED = ImageRef()
"""The image of a slice that no file names."""


class LimitationKind(Enum):
    """What about a study lies outside the conditions for which the models were calibrated."""

    COVERAGE = "coverage"  # part of the lungs is not in the volume
    DIFFUSE = "diffuse disease"
    PATIENT = "patient"
    ACQUISITION = "acquisition"
    PLAUSIBILITY = "plausibility"  # it does not look like an adult's chest in HU
    ORIENTATION = "orientation"


@dataclass(frozen=True)
class Limitation:
    """A reason why the report of a study guarantees nothing; ``text`` is a sentence."""

    kind: LimitationKind
    text: str


@dataclass(frozen=True, eq=False)
class Study:
    """One readable study: the chosen series as a volume.

    Attributes:
        other_series: a line for each series that was not read.
        limitations: what reading the files showed.
        images: the image of each slice, in the order of the volume's z; empty for a volume file.
        frame_of_reference_uid: of the coordinates in mm; empty where the files do not state it.
        rule: name of the caller's rule that took the series (`imaging.selection`); empty for none.
        headers: makes the headers of the images, as `imaging.dicom.source` keeps them; None for a
            volume file.
        stored: the voxels as a volume file or an array orders them; None for DICOM.

    >>> study = overread.read_study("ct/")
    >>> len(study.images), study.volume.hu.dtype.name
    (112, 'int16')
    """

    volume: Volume
    source: Path
    header: StudyHeader = field(default_factory=StudyHeader)
    other_series: tuple[str, ...] = ()
    limitations: tuple[Limitation, ...] = ()
    images: tuple[ImageRef, ...] = ()
    frame_of_reference_uid: str = ""
    rule: str = ""
    headers: Callable[[], bytes] | None = None
    stored: Grid | None = None

    @property
    def grid(self) -> Grid:
        """The voxels as the source orders them; of DICOM, those of `volume`."""
        return self.stored or Grid(self.volume.shape, self.volume.geometry)


@dataclass(frozen=True)
class Nodule:
    """A true nodule: centre ``(x, y, z)`` LPS mm, diameter in mm, ``kind`` in a few words."""

    centre_mm: Triple
    diameter_mm: float
    kind: str = ""

    def hit_by(self, point_mm: Triple | FloatArray) -> bool:
        """Tell whether a finding at ``point_mm`` counts as this nodule: within half its diameter.

        The rule of LUNA16 (Setio et al., Medical Image Analysis 42:1-13, 2017).
        """
        distance = float(np.linalg.norm(np.asarray(point_mm) - np.asarray(self.centre_mm)))
        return distance < self.diameter_mm / 2


def to_patient_axes(given: HuArray, geometry: Geometry) -> tuple[HuArray, Geometry]:
    """Permute and flip the axes to the patient's; every voxel keeps its world point.

    Afterwards x grows towards the patient's left, y to the back and z to the head, as nearly
    as the axes allow: nothing is resampled, an oblique volume stays oblique. Prone patients,
    feet-first stacks and files in RAS order then all look alike to a network. An array that has
    these axes, and whole slices one by one, is returned as it is.
    """
    # for each of the world axes x, y, z the nearest index axis
    order = max(
        map(list, permutations(range(3))),
        key=lambda order: sum(abs(geometry.direction[w, axis]) for w, axis in enumerate(order)),
    )
    axes = tuple(2 - order[2 - axis] for axis in range(3))  # of the array, (z, y, x)
    direction = geometry.direction[:, order]
    spacing_mm = triple(geometry.spacing_mm[axis] for axis in axes)
    turned, hu = Geometry(spacing_mm, geometry.origin_mm, direction), given.transpose(axes)
    # flip every axis that runs against the patient's
    signs = np.where(np.diagonal(direction) < 0, -1, 1)  # of x, y, z
    backward = tuple(axis for axis in range(3) if signs[2 - axis] < 0)
    start = [hu.shape[axis] - 1 if axis in backward else 0 for axis in range(3)]
    flipped = Geometry(spacing_mm, triple(turned.to_world(start)), direction * signs)
    if axes == (0, 1, 2) and not backward and hu[:1].flags.c_contiguous:
        return given, flipped
    return np.ascontiguousarray(np.flip(hu, backward)), flipped
