"""Ribs, spine, sternum, shoulder blades and clavicles as distance fields."""

from dataclasses import dataclass

import numpy as np

from imaging.phantom.fields import Field, Lattice, ellipsoid, joined, tube
from imaging.phantom.patient import Patient
from imaging.phantom.thorax import Thorax

_RIB_TOP_MM, _RIB_PITCH_MM, _RIBS = 98.0, 25.0, 12
_DISC_PITCH_MM = 25.0
_SPINE_Z = (-260.0, -180.0, -100.0, -20.0, 60.0, 130.0)
_SPINE_Y = (46.0, 54.0, 58.0, 55.0, 45.0, 34.0)
_CLAVICLE = ((20.0, -58.0, 48.0), (62.0, -62.0, 70.0), (105.0, -34.0, 84.0), (152.0, 4.0, 98.0))


@dataclass(frozen=True, eq=False)
class Bones:
    """Distance fields of the bones."""

    ribs: Field
    cartilage: Field
    vertebrae: Field
    discs: Field
    arches: Field
    canal: Field
    shoulder: Field
    sternum: Field


def make_bones(lattice: Lattice, patient: Patient, thorax: Thorax) -> Bones:
    """Make the bones of one patient."""
    ribs, cartilage = _ribs(lattice, thorax)
    vertebrae, discs = _vertebrae(lattice)
    return Bones(
        ribs=ribs,
        cartilage=cartilage,
        vertebrae=vertebrae,
        discs=discs,
        arches=_arches(lattice),
        canal=_column(lattice, behind=25, half_width=9.5, half_depth=8),
        shoulder=_shoulder(lattice, patient, thorax),
        sternum=_sternum(lattice),
    )


def _ribs(lattice: Lattice, thorax: Thorax) -> tuple[Field, Field]:
    """Make bands on the cavity wall that slope down to the front, where they are cartilage."""
    x, y, z = lattice.body
    # `phase` counts ribs down the wall; its distance from a whole number is that from a rib
    forward = np.arctan2(np.abs(x) / 130, thorax.depth) / np.float32(np.pi)
    index = (_RIB_TOP_MM - z) / _RIB_PITCH_MM
    drop = forward * (70 + 8 * np.clip(index, 0, 8))
    phase = index - drop / _RIB_PITCH_MM
    off = (phase - np.clip(np.rint(phase), 0, _RIBS - 1)) * (_RIB_PITCH_MM * 0.8)
    section = np.sqrt(((thorax.cavity - 6.5) / 4.0) ** 2 + (off / 6.5) ** 2) - 1
    band = (section * 4.2).astype(np.float32)
    front_end = (np.abs(x) - 48 - 30 * np.clip((-20 - z) / 80, 0, 1)).astype(np.float32)
    in_front = np.where(y < 0, front_end, np.float32(30))
    band = np.maximum(band, 15 - np.abs(x))
    bone, cartilage = np.maximum(band, -in_front), np.maximum(band, in_front)
    return bone.astype(np.float32), cartilage.astype(np.float32)


def _spine_depth(z: Field) -> Field:
    return np.interp(z, _SPINE_Z, _SPINE_Y).astype(np.float32)


def _column(lattice: Lattice, behind: float, half_width: float, half_depth: float) -> Field:
    """Make an elliptic column along the spine, ``behind`` the centre of the vertebral bodies."""
    x, y, z = lattice.body
    offset = y - _spine_depth(z) - behind
    near = np.sqrt((x / half_width) ** 2 + (offset / half_depth) ** 2)
    return np.asarray(
        (near - 1) * min(half_width, half_depth) * lattice.mean_scale, dtype=np.float32
    )


def _disc_phase(z: Field) -> Field:
    """Compute the distance in mm from the centre of the nearest disc."""
    phase = z / _DISC_PITCH_MM
    return np.asarray(np.abs(phase - np.rint(phase)) * _DISC_PITCH_MM, dtype=np.float32)


def _vertebrae(lattice: Lattice) -> tuple[Field, Field]:
    x, y, z = lattice.body
    waist = 1.6 * np.clip(_disc_phase(z) / 12, 0, 1)
    width = 16.5 + np.clip(-z / 100, -1, 2) * 2.5
    offset = y - _spine_depth(z)
    near = np.sqrt((x / width) ** 2 + (offset / (width * 0.86)) ** 2)
    body = ((near - 1) * width * 0.9 + waist).astype(np.float32)
    return body, np.maximum(body, _disc_phase(z) - 2.2)


def _arches(lattice: Lattice) -> Field:
    """Make the ring around the canal and the processes of every vertebra."""
    x, y, z = lattice.body
    phase = z / _DISC_PITCH_MM + 0.5
    level = (phase - np.rint(phase)) * _DISC_PITCH_MM
    behind = y - _spine_depth(z)
    # the ring: a thick wall of the canal at the height of each vertebra
    ring = np.abs(_column(lattice, 25, 11.5, 10)) - 2.6
    ring = np.maximum(ring, np.abs(level) - 9)
    # the transverse processes: plates that lean backwards to both sides
    wing = np.maximum(np.abs(behind - 27 - 0.25 * np.abs(x)) - 4, np.abs(x) - 36)
    wing = np.maximum(np.maximum(wing, np.abs(level) - 6), 9 - np.abs(x))
    # the spinous processes: thin plates in the middle that hang down backwards
    sag = level + 0.7 * (behind - 36)
    sag = sag - np.rint(sag / _DISC_PITCH_MM) * _DISC_PITCH_MM
    spur = np.maximum(np.abs(x) - 2.8, np.abs(behind - 45) - 13)
    spur = np.maximum(spur, np.abs(sag) - 7)
    return joined([f.astype(np.float32) for f in (ring, wing, spur)], 4.0)


def _sternum(lattice: Lattice) -> Field:
    """Make a plate, wide above (manubrium), bent forward at the joint with its body."""
    x, y, z = lattice.body
    half = np.interp(z, (-108, -90, -20, 0, 20, 42), (10, 18, 16, 15, 26, 31))
    middle = np.interp(z, (-110, -60, 0, 44), (-101, -98, -84, -63))
    near = (np.abs(x) / half) ** 4 + (np.abs(y - middle) / 6.2) ** 4
    plate = (near**0.25 - 1) * 6.2
    ends = np.maximum(z - 44 - 0.15 * np.abs(x), -110 - z)
    return np.asarray(np.maximum(plate, ends) * lattice.mean_scale, dtype=np.float32)


def _shoulder(lattice: Lattice, patient: Patient, thorax: Thorax) -> Field:
    """Make shoulder blades as bent plates on the wall, clavicles, and the bones of the arms."""
    x, y, z = lattice.body
    lift = 14.0 if patient.arms_up else 0.0
    plate = np.abs(thorax.cavity - 23 - 0.05 * (z + 10)) - 1.7
    reach = np.maximum(62 + 0.15 * (lift + 70 - z) - np.abs(x), 6 - y)
    height = np.maximum(-78 + lift + 0.5 * np.maximum(np.abs(x) - 95, 0) - z, z - 82 - lift)
    parts = [np.maximum(np.maximum(plate, reach), height).astype(np.float32)]
    for side in (-1, 1):
        spur = [(side * 70.0, 82.0, 48.0), (side * 125.0, 62.0, 74.0), (side * 158.0, 20.0, 88.0)]
        clavicle = [(side * x, y, z) for x, y, z in _CLAVICLE]
        parts += [tube(lattice, spur, (4, 5, 7)), tube(lattice, clavicle, (7.5, 5.5, 5.5, 6.5))]
        parts.append(ellipsoid(lattice, (side * 150, 24, 74 + lift), (15, 18, 20)))
        hand = (side * 172.0, -10.0, 190.0) if patient.arms_up else (side * 205.0, 10.0, -150.0)
        parts.append(tube(lattice, [(side * 172.0, 8.0, 84.0), hand], (21, 12)))
    return joined(parts, 5.0)
