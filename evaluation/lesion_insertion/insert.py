"""A nodule into a scan: sampled on the scan's own grid, blended into the lung that is there.

The donor is averaged over the scan's slices, so that it is no sharper along z than its host. Its
lung takes on the density of the lung around the place and soft tissue keeps its own: between them
a voxel is a mixture of both. The host's wall is never made less dense; its vessels shine through
what is not solid, and end in what is.

Copies of a scan with different implants, all from one seed.

Every nodule is implanted once into the scans of a group, some to a copy; so is every mass, one to
a copy. An implant lies in lung, away from the wall, from known lesions, from the others of its
copy, and from the places that the untouched scan is most suspected for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from evaluation.lesion_insertion.donors import SOFT_HU, Donor, Floats
from evaluation.lesion_insertion.hosts import Host, Room, Taken
from imaging.volume import FloatArray, Geometry, HuArray, Triple, Volume

_TISSUE_HU = -400


_SOLID_HU = -100


_VESSEL_MM = 12.0


_SUB_MM = 1.0
"""Samples along z lie no further apart than this before they are averaged over a slice."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """One donor to be implanted, ``scale`` times as large as it is.

    ``donor_id`` is its number among the donors.
    """

    donor_id: int
    donor: Donor
    scale: float = 1.0

    @property
    def diameter_mm(self) -> float:
        """As it is wanted."""
        return self.donor.diameter_mm * self.scale

    @property
    def reach_mm(self) -> float:
        """How far it extends from its centre, as it is wanted."""
        return self.donor.reach_mm * self.scale


@dataclass(frozen=True, eq=False, kw_only=True)
class Implant(Wanted):
    """It has its place ``(x, y, z)`` LPS mm in a scan; ``lung_hu`` is the lung around it."""

    centre_mm: Triple
    lung_hu: float


def implanted(volume: Volume, implants: list[Implant]) -> Volume:
    """A copy of the scan with all `implants`; ``volume`` has the patient's axes."""
    hu = volume.hu.copy()
    for implant in implants:
        _implant(hu, volume.geometry, implant)
    return Volume(hu, volume.geometry, volume.series_uid, volume.description)


def _implant(hu: HuArray, geometry: Geometry, implant: Implant) -> None:
    start, stop = _bounds(hu.shape, geometry, implant)
    if (stop <= start).any():
        return
    box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    part = geometry.cropped(start)
    size = (int(stop[0] - start[0]), int(stop[1] - start[1]), int(stop[2] - start[2]))
    donor = implant.donor
    density = _adapted(donor, implant.lung_hu)
    cover = _sampled(donor.cover, implant, part, size)
    mixed = _sampled(donor.cover * density, implant, part, size)
    host = hu[box].astype(np.float32)
    new = mixed + (1 - cover) * host
    stays = (host > _TISSUE_HU) & (_wall(host, geometry) | (new < _SOLID_HU))
    hu[box] = np.rint(np.where(stays, np.maximum(new, host), new)).astype(np.int16)


def _wall(host: Floats, geometry: Geometry) -> npt.NDArray[np.bool_]:
    """Dense tissue ``(z, y, x)`` that is thicker within its slice than any vessel of the lung."""
    _, y, x = geometry.spacing_mm
    disc = cv2.getStructuringElement(
        cv2.MORPH_ELLIPSE, (round(_VESSEL_MM / x) | 1, round(_VESSEL_MM / y) | 1)
    )
    dense = (host > _TISSUE_HU).astype(np.uint8)
    return np.stack([cv2.morphologyEx(plane, cv2.MORPH_OPEN, disc) for plane in dense]) > 0


def _adapted(donor: Donor, lung_hu: float) -> Floats:
    """The donor's HU with its lung as dense as ``lung_hu``; soft tissue and bone stay."""
    stretch = (SOFT_HU - lung_hu) / (SOFT_HU - donor.lung_hu)
    below = SOFT_HU - (SOFT_HU - donor.hu) * stretch
    return np.where(donor.hu < SOFT_HU, below, donor.hu).astype(np.float32)


def _bounds(
    shape: tuple[int, ...], geometry: Geometry, implant: Implant
) -> tuple[FloatArray, FloatArray]:
    """First voxel and the one after the last that the implant may touch, ``(z, y, x)`` each."""
    middle = geometry.to_index(implant.centre_mm)
    reach = (implant.reach_mm + 5 * implant.scale) / np.asarray(geometry.spacing_mm) + 1
    start = np.clip(np.floor(middle - reach), 0, shape)
    return start, np.clip(np.ceil(middle + reach) + 1, 0, shape)


def _sampled(
    voxels: Floats, implant: Implant, geometry: Geometry, size: tuple[int, int, int]
) -> Floats:
    """The donor's ``voxels`` on a grid of ``size`` ``(z, y, x)``, each slice the mean over it."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((implant.scale,) * 3)
    corner = np.asarray(implant.centre_mm) - implant.scale * np.array(
        implant.donor.centre_zyx[::-1]
    )
    image.SetOrigin([float(v) for v in corner])
    z, y, x = geometry.spacing_mm
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


WALL_MM = 2.0
"""Between a nodule and the wall there is so much lung."""

APART_MM = 12.0
"""Between two implants, and between an implant and whatever else is taken."""

MASS_MM: tuple[float, ...] = (30.0, 40.0, 50.0, 60.0)


MASS_FROM_MM = 15.0
"""Smaller nodules make no masses: magnified more than four times they are like nothing real."""

MASS_CLEAR: tuple[float, ...] = (1.0, 0.8, 0.6)
"""A mass may reach into the wall where there is no room else: clear lung as a part of its reach."""


@dataclass(frozen=True, eq=False)
class Ready:
    """A host that is ready for implants: its room, and what is taken there."""

    host: Host
    room: Room
    taken: tuple[Taken, ...]


@dataclass(frozen=True, eq=False)
class Copy:
    """What is implanted into one copy of a host."""

    ready: Ready
    implants: tuple[Implant, ...]
    masses: bool = False


def masses(donors: Sequence[Donor]) -> list[Wanted]:
    """Every donor of `MASS_FROM_MM` and more at every size of `MASS_MM`; none is made smaller."""
    return [
        Wanted(number, donor, size / donor.diameter_mm)
        for number, donor in enumerate(donors)
        for size in MASS_MM
        if MASS_FROM_MM <= donor.diameter_mm <= size
    ]


def plan_nodules(
    hosts: Sequence[Ready], donors: Sequence[Donor], each: int, rng: np.random.Generator
) -> tuple[list[Copy], list[Wanted]]:
    """Copies with `each` nodules at most, and the nodules for which no scan had room."""
    wanted = [Wanted(number, donor) for number, donor in enumerate(donors)]
    return _planned(hosts, wanted, each, _place_nodule, rng, masses=False)


def plan_masses(
    hosts: Sequence[Ready], donors: Sequence[Donor], rng: np.random.Generator
) -> tuple[list[Copy], list[Wanted]]:
    """Copies with one mass each, and the masses for which no scan had room."""
    return _planned(hosts, masses(donors), 1, _place_mass, rng, masses=True)


Placer = Callable[[Ready, Wanted, Sequence[Taken], np.random.Generator], Implant | None]


def _planned(
    hosts: Sequence[Ready],
    wanted: Sequence[Wanted],
    each: int,
    place: Placer,
    rng: np.random.Generator,
    *,
    masses: bool,
) -> tuple[list[Copy], list[Wanted]]:
    """Goes round the hosts; what found no room in one is tried in the next of them."""
    copies: list[Copy] = []
    left: list[Wanted] = []
    for start, group in _groups(wanted, each, rng):
        waiting = sorted(group, key=lambda one: -one.reach_mm)
        for turn in range(len(hosts)):
            ready = hosts[(start + turn) % len(hosts)]
            put, waiting = _fill(ready, waiting, place, rng)
            if put:
                copies.append(Copy(ready, tuple(put), masses))
            if not waiting:
                break
        left += waiting
    return copies, left


def _groups(
    wanted: Sequence[Wanted], each: int, rng: np.random.Generator
) -> Iterator[tuple[int, list[Wanted]]]:
    order = rng.permutation(len(wanted))
    for number, start in enumerate(range(0, len(order), each)):
        yield number, [wanted[i] for i in order[start : start + each]]


def _fill(
    ready: Ready, wanted: Iterable[Wanted], place: Placer, rng: np.random.Generator
) -> tuple[list[Implant], list[Wanted]]:
    taken, put, waiting = list(ready.taken), [], []
    for one in wanted:
        implant = place(ready, one, taken, rng)
        if implant is None:
            waiting.append(one)
        else:
            put.append(implant)
            taken.append(Taken(implant.centre_mm, implant.reach_mm + APART_MM))
    return put, waiting


def _place_nodule(
    ready: Ready, one: Wanted, taken: Sequence[Taken], rng: np.random.Generator
) -> Implant | None:
    return _placed(ready, one, one.reach_mm + WALL_MM, taken, rng)


def _place_mass(
    ready: Ready, one: Wanted, taken: Sequence[Taken], rng: np.random.Generator
) -> Implant | None:
    for share in MASS_CLEAR:
        found = _placed(ready, one, share * one.diameter_mm / 2, taken, rng)
        if found is not None:
            return found
    return None


def _placed(
    ready: Ready, one: Wanted, clear_mm: float, taken: Sequence[Taken], rng: np.random.Generator
) -> Implant | None:
    place = ready.room.place(clear_mm, one.reach_mm, taken, rng)
    if place is None:
        return None
    lung_hu = ready.room.lung_hu(place, one.reach_mm)
    return Implant(one.donor_id, one.donor, one.scale, centre_mm=place, lung_hu=lung_hu)
