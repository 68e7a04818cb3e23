"""Heart, great vessels, trachea and oesophagus, and the envelope that the lungs lie against."""

from dataclasses import dataclass

import numpy as np

from imaging.phantom.body import Bones, Patient
from imaging.phantom.fields import Field, Lattice, ellipsoid, joined, tube

_TRACHEA = ((0.0, 0.0, 150.0), (0.0, 6.0, 70.0), (2.0, 15.0, 15.0), (0.0, 18.0, 0.0))
_RIGHT_BRONCHUS = ((0.0, 18.0, 0.0), (-18.0, 19.0, -14.0), (-34.0, 19.0, -26.0))
_LEFT_BRONCHUS = ((0.0, 18.0, 0.0), (22.0, 22.0, -17.0), (42.0, 24.0, -29.0))
_AORTA = (
    (2.0, -18.0, -52.0), (-16.0, -26.0, -20.0), (-16.0, -22.0, 8.0), (-6.0, -12.0, 27.0),
    (8.0, 4.0, 33.0), (19.0, 20.0, 27.0), (26.0, 32.0, 5.0), (26.0, 37.0, -40.0),
    (22.0, 36.0, -110.0), (10.0, 30.0, -170.0), (3.0, 24.0, -270.0),
)  # fmt: skip
_AORTA_RADII = (15.0, 16.0, 15.0, 14.0, 13.0, 12.5, 12.5, 12.0, 11.5, 11.0, 10.0)
_OESOPHAGUS = (
    (4.0, 24.0, 150.0), (4.0, 32.0, 20.0), (7.0, 34.0, -60.0), (14.0, 26.0, -112.0),
    (28.0, 8.0, -135.0),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Mediastinum:
    """Distance fields of the organs between the lungs.

    ``blood`` is great vessels and the chambers of the heart, ``heart`` includes its wall,
    ``airway`` is the lumen of trachea and main bronchi, ``envelope`` all between the lungs.
    """

    blood: Field
    heart: Field
    oesophagus: Field
    nodes: Field
    airway: Field
    envelope: Field


def make_mediastinum(lattice: Lattice, patient: Patient, bones: Bones) -> Mediastinum:
    """Make the mediastinum of one patient."""
    heart, chambers = _heart(lattice, patient.heart)
    vessels = _great_vessels(lattice)
    wide = tube(lattice, _TRACHEA, (8.8, 8.8, 8.8, 8.2))
    right = tube(lattice, _RIGHT_BRONCHUS, (7.5, 7.0, 6.2))
    left = tube(lattice, _LEFT_BRONCHUS, (7.0, 6.5, 6.2))
    airway = joined([wide, right, left], 3.0)
    oesophagus = tube(lattice, _OESOPHAGUS, (7, 7, 7, 8, 9))
    soft = joined([heart, vessels, oesophagus, airway - 2], 6.0)
    spine = np.minimum(bones.vertebrae - 4, bones.canal - 12)
    return Mediastinum(
        blood=np.minimum(vessels, chambers),
        heart=heart,
        oesophagus=oesophagus,
        nodes=_nodes(lattice),
        airway=airway,
        envelope=joined([soft - 2.5, spine, _column(lattice)], 9.0),
    )


def _heart(lattice: Lattice, r: float) -> tuple[Field, Field]:
    """Make the heart of relative size ``r`` with its wall, and the blood inside."""

    def part(x: float, y: float, z: float, radii: tuple[float, float, float], long: bool) -> Field:
        axis = (0.72, -0.48, -0.5) if long else None
        scaled = (radii[0] * r, radii[1] * r, radii[2] * r)
        return ellipsoid(lattice, (x * r, y * r - 4, z * r - 13), scaled, axis)

    left = part(34, -32, -76, (56, 36, 36), True)
    left_blood = part(31, -30, -73, (43, 23, 23), True)
    right = part(10, -52, -74, (48, 27, 37), True)
    atrium = part(-24, -28, -64, (25, 30, 38), False)
    left_atrium = part(2, 8, -44, (33, 17, 22), False)
    wall = joined([left, right, atrium, left_atrium], 12.0)
    blood = np.minimum(np.minimum(left_blood, right + 4), np.minimum(atrium + 2, left_atrium + 1))
    return wall, blood


def _great_vessels(lattice: Lattice) -> Field:
    parts = [
        tube(lattice, _AORTA, _AORTA_RADII),
        tube(lattice, [(12, -46, -52), (14, -30, -20), (13, -12, -8)], (14, 14.5, 14)),
        tube(
            lattice, [(12, -10, -10), (-14, 0, -16), (-34, 4, -22), (-46, 8, -36)], (12, 11, 10, 7)
        ),
        tube(lattice, [(13, -10, -6), (30, 8, -2), (42, 18, -12), (46, 26, -32)], (12, 11, 9.5, 7)),
        tube(lattice, [(-26, -20, 56), (-26, -14, 0), (-27, -16, -46)], (9, 9.5, 10)),
        tube(lattice, [(-24, -4, -85), (-24, 4, -140), (-20, 14, -260)], (12, 12, 12)),
        tube(lattice, [(-8, -14, 28), (-14, -14, 60), (-22, -12, 120)], (7, 6.5, 5)),
        tube(lattice, [(4, 0, 32), (10, -4, 62), (18, -2, 130)], (5, 4.5, 4)),
        tube(lattice, [(14, 14, 31), (20, 8, 62), (40, 0, 112), (90, -10, 118)], (5.5, 5.5, 5, 5)),
        tube(
            lattice, [(-26, -22, 52), (4, -30, 44), (26, -24, 62), (44, -20, 110)], (7, 7, 6.5, 5)
        ),
        tube(lattice, [(-26, -20, 54), (-32, -18, 76), (-50, -18, 112)], (7, 6.5, 6)),
        tube(
            lattice, [(-9, 26, -240), (-8, 34, -20), (-12, 28, 4), (-24, 2, 12)], (4, 4.5, 4.5, 4)
        ),
    ]
    parts += [
        tube(lattice, [(side * 18, 8, -44), (side * 36, y, z)], (8, 6))
        for side, y, z in ((-1, 16, -54), (1, 18, -52), (-1, -4, -30), (1, -2, -28))
    ]
    return joined(parts, 2.5)


def _nodes(lattice: Lattice) -> Field:
    """Make lymph nodes in the fat: beside the trachea, under the carina, at the hila."""
    nodes = (
        ((-16, 4, 22), (4, 5, 7)), ((4, 26, -18), (8, 5, 7)), ((20, 2, 12), (4, 4, 5)),
        ((-44, 10, -14), (6, 6, 9)), ((48, 20, -22), (5, 6, 8)), ((-6, -40, 20), (9, 4, 14)),
    )  # fmt: skip
    parts = [ellipsoid(lattice, centre, radii) for centre, radii in nodes]
    return np.asarray(np.minimum.reduce(parts), dtype=np.float32)


def _column(lattice: Lattice) -> Field:
    """Make the fat of the mediastinum: wide around the vessels, narrow behind the sternum."""
    x, y, z = lattice.body
    upper = np.interp(y, (-90, -62, -34, 8, 36, 60), (2, 4, 29, 29, 18, 20))
    lower = np.interp(y, (-95, -70, -40, 5, 30, 60), (6, 9, 18, 14, 9, 18))
    above = np.clip((z + 50) / 35, 0, 1)
    neck = np.clip((z - 55) / 60, 0, 1) * np.interp(y, (-60, -10, 30, 60), (18, 8, 2, 0))
    half = lower + (upper - lower) * above + neck
    return np.asarray((np.abs(x - 2) - half) * lattice.mean_scale, dtype=np.float32)
