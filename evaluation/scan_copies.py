"""Copies of a scan with different implants, all from one seed.

Every nodule is implanted once into the scans of a group, some to a copy; so is every mass, one to
a copy. An implant lies in lung, away from the wall, from known lesions, from the others of its
copy, and from the places that the untouched scan is most suspected for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.scan_donor import Donor
from evaluation.scan_host import Host
from evaluation.scan_implant import Implant, Wanted
from evaluation.scan_room import Room, Taken

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
