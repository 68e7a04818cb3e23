"""Lesion insertion: which donor goes where, and how its voxels are blended into the scan.

A donor is sampled on the scan's own grid and averaged over the scan's slices, so that it is no
sharper along z than its host. Its lung takes on the density of the lung around the location, soft
tissue keeps its own density, and between them a voxel is a mixture of both. The host's wall is
never made less dense. The host's vessels show through parts that are not solid, and end in solid
parts.

Every nodule is inserted once into the scans of a group, several in one copy of a scan; every mass
has a copy of its own. An insertion lies in lung, away from the wall, from known lesions, from other
insertions, and from the strongest detections in the scan itself. One seed draws all of it.

The free lung of a scan says how far each point in it is from wall and mediastinum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from imaging.morphology import opened
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, HuArray, Nodule, Triple, Volume, from_window, triple
from models.insertion.donors import SOFT_HU, Donor, Floats

APART_MM = 12.0
"""Least distance between an insertion and any other occupied location."""

MASS_MM: tuple[float, ...] = (30.0, 40.0, 50.0, 60.0)
"""Diameters of masses, which are magnified donors."""

MASS_FROM_MM = 15.0
"""Least diameter of a donor of masses: one magnified more than four times is not realistic."""

MASS_CLEAR: tuple[float, ...] = (1.0, 0.8, 0.6)
"""Clear lung around a mass as a part of its radius, tried in turn: it may reach into the wall."""

_TISSUE_HU = -400
_SOLID_HU = -100
_VESSEL_MM = 12.0
_SUB_MM = 1.0
"""Largest distance of the samples along z that are averaged over a slice."""

CELL = 2
"""Voxels of the lung box a cell, along each axis."""

_VESSEL_CELLS = 2.5
"""Radius of the thickest vessel that an insertion may lie across: 5 mm."""

_LUNG_HU = (-960.0, -600.0)
"""Range of the mean around a location in lung; windpipe and air outside the body lie below."""

_TRIES = 300


@dataclass(frozen=True)
class Occupied:
    """A location that is not free, ``(x, y, z)`` LPS mm, with the distance to keep from it."""

    centre_mm: Triple
    reach_mm: float


@dataclass(frozen=True, eq=False)
class FreeSpace:
    """The free lung of one lung box, in cells of `CELL` voxels ``(z, y, x)``.

    ``clear_mm`` is the distance of each cell to the nearest wall, 0 in it.
    """

    box: Preprocessed
    hu: HuArray
    clear_mm: npt.NDArray[np.float32]

    @classmethod
    def of(cls, box: Preprocessed) -> "FreeSpace":
        """Measure the free space of a lung box; beyond its faces is wall."""
        hu = from_window(np.ascontiguousarray(box.voxels[::CELL, ::CELL, ::CELL]))
        dense = (hu > _TISSUE_HU).astype(np.uint8)
        # opening removes vessels: what stays is wall, mediastinum and large nodules
        wall = np.pad(opened(dense, _VESSEL_CELLS), 1, constant_values=1)
        image = sitk.GetImageFromArray(wall)
        away = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=False)
        clear = np.maximum(sitk.GetArrayFromImage(away)[1:-1, 1:-1, 1:-1], 0) * CELL
        return cls(box, hu, clear.astype(np.float32))

    def find(
        self,
        clear_mm: float,
        reach_mm: float,
        occupied: Sequence[Occupied],
        rng: np.random.Generator,
    ) -> Triple | None:
        """Draw a location in lung, ``(x, y, z)`` LPS mm; None if none is found.

        It is ``clear_mm`` from the wall, and ``reach_mm`` from the ``occupied`` locations.
        """
        # tried in random order, each at a random place within its cell
        cells = np.argwhere(self.clear_mm >= max(clear_mm, 1.0))
        for cell in cells[rng.permutation(len(cells))[:_TRIES]]:
            index = (cell + 0.5) * CELL - 0.5 + rng.uniform(-0.5, 0.5, 3) * CELL
            point = self.box.geometry.to_world(index)
            free = all(
                np.linalg.norm(point - other.centre_mm) > reach_mm + other.reach_mm
                for other in occupied
            )
            mean_hu = float(self._around(cell, 5.0).mean())
            aerated = _LUNG_HU[0] < mean_hu < _LUNG_HU[1]
            if free and aerated and self.box.inside(index[None])[0]:
                return triple(point)
        return None

    def lung_hu(self, centre_mm: Triple, reach_mm: float) -> float:
        """Return the median of the aerated lung around a location."""
        cell = np.rint(self.box.geometry.to_index(centre_mm) / CELL).astype(int)
        around = self._around(cell, reach_mm + 6)
        lung = around[around < _LUNG_HU[1]]
        return float(np.median(lung)) if lung.size else float(np.median(around))

    def _around(self, cell: npt.NDArray[np.int64], reach_mm: float) -> HuArray:
        span = max(1, round(reach_mm / CELL))
        return self.hu[tuple(slice(max(c - span, 0), c + span + 1) for c in cell)]


@dataclass(frozen=True, eq=False)
class ScaledDonor:
    """A donor to be inserted at ``scale`` times its size; ``donor_id`` counts the donors."""

    donor_id: int
    donor: Donor
    scale: float = 1.0
    mass: bool = False

    @property
    def diameter_mm(self) -> float:
        """Return the diameter after scaling."""
        return self.donor.diameter_mm * self.scale

    @property
    def reach_mm(self) -> float:
        """Return how far it extends from its centre after scaling."""
        return self.donor.reach_mm * self.scale

    @property
    def clear_mm(self) -> tuple[float, ...]:
        """Return the distances from the wall that are tried in turn."""
        if self.mass:
            return tuple(share * self.diameter_mm / 2 for share in MASS_CLEAR)
        return (self.reach_mm + 2.0,)  # the least lung between a nodule and the wall


@dataclass(frozen=True, eq=False, kw_only=True)
class Insertion(ScaledDonor):
    """A donor at a location ``(x, y, z)`` LPS mm in a scan, in lung of ``lung_hu``."""

    centre_mm: Triple
    lung_hu: float

    def hit_by(self, point_mm: Triple) -> bool:
        """Tell whether a candidate there is on it: within half its diameter, or in its outline.

        LUNA16's rule alone would count a nodule of two lobes as missed by a candidate in one.
        """
        away = np.subtract(point_mm, self.centre_mm)
        z, y, x = np.rint(self.donor.centre_zyx + away[::-1] / self.scale).astype(int)
        cover = self.donor.cover
        inside = min(z, y, x) >= 0 and (np.array([z, y, x]) < cover.shape).all()
        outlined = inside and bool(cover[z, y, x] >= 0.5)
        return outlined or Nodule(self.centre_mm, self.diameter_mm).hit_by(point_mm)


class Host(Protocol):
    """What insertions need to know of a scan."""

    @property
    def space(self) -> FreeSpace:
        """The free lung of its lung box."""

    @property
    def occupied(self) -> tuple[Occupied, ...]:
        """Locations that are not free."""


HostT = TypeVar("HostT", bound=Host)


@dataclass(frozen=True, eq=False)
class SyntheticScan(Generic[HostT]):
    """A copy of a host with insertions: several nodules or one mass."""

    host: HostT
    insertions: tuple[Insertion, ...]


Planned = tuple[list[SyntheticScan[HostT]], list[ScaledDonor]]
"""The scans to be made, and the donors for which no host had room."""


def plan_nodules(
    hosts: Sequence[HostT], donors: Sequence[Donor], each: int, rng: np.random.Generator
) -> Planned[HostT]:
    """Plan scans with at most ``each`` nodules."""
    scaled = [ScaledDonor(number, donor) for number, donor in enumerate(donors)]
    return _plan(hosts, scaled, each, rng)


def plan_masses(
    hosts: Sequence[HostT], donors: Sequence[Donor], rng: np.random.Generator
) -> Planned[HostT]:
    """Plan scans with one mass each.

    Every donor of `MASS_FROM_MM` or more comes at each size of `MASS_MM`, none made smaller.
    """
    masses = [
        ScaledDonor(number, donor, size / donor.diameter_mm, mass=True)
        for number, donor in enumerate(donors)
        for size in MASS_MM
        if MASS_FROM_MM <= donor.diameter_mm <= size
    ]
    return _plan(hosts, masses, 1, rng)


def _plan(
    hosts: Sequence[HostT], donors: Sequence[ScaledDonor], each: int, rng: np.random.Generator
) -> Planned[HostT]:
    """Go round the hosts; what has no room in one is tried in the next."""
    scans: list[SyntheticScan[HostT]] = []
    not_placed: list[ScaledDonor] = []
    order = rng.permutation(len(donors))
    for number, start in enumerate(range(0, len(order), each)):
        # Large ones first: they find room the hardest.
        waiting = sorted(
            (donors[i] for i in order[start : start + each]), key=lambda one: -one.reach_mm
        )
        for turn in range(len(hosts)):
            host = hosts[(number + turn) % len(hosts)]
            placed, waiting = _fill(host, waiting, rng)
            if placed:
                scans.append(SyntheticScan(host, tuple(placed)))
            if not waiting:
                break
        not_placed += waiting
    return scans, not_placed


def _fill(
    host: Host, donors: Sequence[ScaledDonor], rng: np.random.Generator
) -> tuple[list[Insertion], list[ScaledDonor]]:
    """Return the insertions for which the host has room, and the other donors."""
    occupied, placed, waiting = list(host.occupied), [], []
    for donor in donors:
        # the widest clearance that finds room is taken; later insertions keep away from this one
        tries = (host.space.find(clear, donor.reach_mm, occupied, rng) for clear in donor.clear_mm)
        location = next((found for found in tries if found is not None), None)
        if location is None:
            waiting.append(donor)
            continue
        lung_hu = host.space.lung_hu(location, donor.reach_mm)
        placed.append(Insertion(**vars(donor), centre_mm=location, lung_hu=lung_hu))
        occupied.append(Occupied(location, donor.reach_mm + APART_MM))
    return placed, waiting


def insert(volume: Volume, insertions: Sequence[Insertion]) -> Volume:
    """Return a copy of the scan with all insertions; ``volume`` has the patient's axes."""
    hu = volume.hu.copy()
    for insertion in insertions:
        _insert_one(hu, volume.geometry, insertion)
    return replace(volume, hu=hu, measures=())


def _insert_one(hu: HuArray, geometry: Geometry, insertion: Insertion) -> None:
    # the first voxel that it may touch and the one after the last, (z, y, x) each
    middle = geometry.to_index(insertion.centre_mm)
    reach = (insertion.reach_mm + 5 * insertion.scale) / np.asarray(geometry.spacing_mm) + 1
    start = np.clip(np.floor(middle - reach), 0, hu.shape)
    stop = np.clip(np.ceil(middle + reach) + 1, 0, hu.shape)
    if (stop <= start).any():
        return
    box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    part = geometry.cropped(start)
    size = (int(stop[0] - start[0]), int(stop[1] - start[1]), int(stop[2] - start[2]))
    donor = insertion.donor
    # the donor's lung becomes as dense as the lung around the location; soft tissue and bone stay
    stretch = (SOFT_HU - insertion.lung_hu) / (SOFT_HU - donor.lung_hu)
    adapted = SOFT_HU - (SOFT_HU - donor.hu) * stretch
    density = np.where(donor.hu < SOFT_HU, adapted, donor.hu).astype(np.float32)
    # density times cover is sampled, not density: beyond the donor's edge there is none to mix in
    cover = _sampled(donor.cover, insertion, part, size)
    mixed = _sampled(donor.cover * density, insertion, part, size)
    host = hu[box].astype(np.float32)
    new = mixed + (1 - cover) * host
    # Wall never gets less dense. A vessel shows through unless the inserted part is solid.
    stays = (host > _TISSUE_HU) & (_wall(host, geometry) | (new < _SOLID_HU))
    hu[box] = np.rint(np.where(stays, np.maximum(new, host), new)).astype(np.int16)


def _wall(host: Floats, geometry: Geometry) -> npt.NDArray[np.bool_]:
    """Return dense tissue ``(z, y, x)`` thicker in its slice than any vessel of the lung."""
    _, y, x = geometry.spacing_mm
    disc = cv2.getStructuringElement(
        cv2.MORPH_ELLIPSE, (round(_VESSEL_MM / x) | 1, round(_VESSEL_MM / y) | 1)
    )
    dense = (host > _TISSUE_HU).astype(np.uint8)
    return np.stack([cv2.morphologyEx(plane, cv2.MORPH_OPEN, disc) for plane in dense]) > 0


def _sampled(
    voxels: Floats, insertion: Insertion, geometry: Geometry, size: tuple[int, int, int]
) -> Floats:
    """Return the donor's ``voxels`` on a grid of ``size`` (z, y, x), averaged over each slice."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((insertion.scale,) * 3)
    # the donor's grid, magnified, with its centre at the location
    corner = np.asarray(insertion.centre_mm) - insertion.scale * np.array(
        insertion.donor.centre_zyx[::-1]
    )
    image.SetOrigin([float(v) for v in corner])
    z, y, x = geometry.spacing_mm
    # several samples a slice along z, averaged: that is what a scanner's slice thickness does
    fine = int(np.ceil(z / _SUB_MM))
    first = geometry.to_world([(1 / fine - 1) / 2, 0, 0])
    grid = sitk.ResampleImageFilter()
    grid.SetSize((size[2], size[1], size[0] * fine))
    grid.SetOutputSpacing((x, y, z / fine))
    grid.SetOutputOrigin([float(v) for v in first])
    grid.SetOutputDirection(geometry.direction.ravel().tolist())
    grid.SetInterpolator(sitk.sitkLinear)
    found = sitk.GetArrayFromImage(grid.Execute(image))
    mean = found.reshape(size[0], fine, size[1], size[2]).mean(axis=1)
    return np.asarray(mean, np.float32)
