"""Heart, great vessels, trachea and oesophagus, and the envelope that the lungs lie against."""

import numpy as np

from imaging.phantom.body import Patient, spine
from imaging.phantom.fields import Field, Lattice, ellipsoid, joined, tube
from imaging.phantom.layers import AIR_HU, Layer

_AIRWAY = (
    ([(0, 0, 150), (0, 6, 70), (2, 15, 15), (0, 18, 0)], (8.8, 8.8, 8.8, 8.2)),
    ([(0, 18, 0), (-18, 19, -14), (-34, 19, -26)], (7.5, 7, 6.2)),
    ([(0, 18, 0), (22, 22, -17), (42, 24, -29)], (7, 6.5, 6.2)),
)
"""Trachea, right and left main bronchus: points of the reference body, and radii in mm."""
_OESOPHAGUS = [(4, 24, 150), (4, 32, 20), (7, 34, -60), (14, 26, -112), (28, 8, -135)]
_VESSELS = (
    # the aorta: ascending, arch, descending
    ([(2, -18, -52), (-16, -26, -20), (-16, -22, 8), (-6, -12, 27), (8, 4, 33)],
     (15, 16, 15, 14, 13)),
    ([(8, 4, 33), (19, 20, 27), (26, 32, 5), (26, 37, -40), (22, 36, -110), (3, 24, -270)],
     (13, 12.5, 12.5, 12, 11.5, 10)),
    # the pulmonary trunk, right and left pulmonary artery
    ([(12, -46, -52), (14, -30, -20), (13, -12, -8)], (14, 14.5, 14)),
    ([(12, -10, -10), (-14, 0, -16), (-34, 4, -22), (-46, 8, -36)], (12, 11, 10, 7)),
    ([(13, -10, -6), (30, 8, -2), (42, 18, -12), (46, 26, -32)], (12, 11, 9.5, 7)),
    # upper and lower vena cava, and the veins that join above
    ([(-50, -18, 112), (-26, -20, 56), (-26, -14, 0), (-27, -16, -46)], (6, 9, 9.5, 10)),
    ([(-24, -4, -85), (-24, 4, -140), (-20, 14, -260)], (12, 12, 12)),
    ([(-26, -22, 52), (4, -30, 44), (26, -24, 62), (44, -20, 110)], (7, 7, 6.5, 5)),
    # arteries from the arch to head and arms
    ([(-8, -14, 28), (-14, -14, 60), (-22, -12, 120)], (7, 6.5, 5)),
    ([(4, 0, 32), (10, -4, 62), (18, -2, 130)], (5, 4.5, 4)),
    ([(14, 14, 31), (20, 8, 62), (40, 0, 112), (90, -10, 118)], (5.5, 5.5, 5, 5)),
    # pulmonary veins, two of each lung
    ([(-18, 8, -44), (-36, 16, -54)], (8, 6)), ([(-18, 8, -44), (-36, -4, -30)], (8, 6)),
    ([(18, 8, -44), (36, 18, -52)], (8, 6)), ([(18, 8, -44), (36, -2, -28)], (8, 6)),
)  # fmt: skip


def make_mediastinum(lattice: Lattice, patient: Patient) -> tuple[Field, list[Layer]]:
    """Make the envelope of all between the lungs, and layer what is in its fat."""
    r, is_enhanced = patient.heart, patient.blood_hu > 60
    left = tube(lattice, [(12 * r, -20, -54 * r), (54 * r, -48 * r, -96 * r)], (36 * r, 25 * r))
    right = tube(
        lattice, [(-4 * r, -40 * r, -60 * r), (44 * r, -64 * r, -98 * r)], (29 * r, 19 * r)
    )
    atria = [
        ellipsoid(lattice, (-24 * r, -28 * r - 4, -64 * r - 13), (25 * r, 30 * r, 38 * r)),
        ellipsoid(lattice, (2 * r, 8 * r - 4, -44 * r - 13), (33 * r, 17 * r, 22 * r)),
    ]
    heart = joined([left, right, *atria], 12.0)
    vessels = joined([tube(lattice, *vessel) for vessel in _VESSELS], 2.5)
    # the blood of the heart is in the wall of each chamber, that of the left one is the thickest
    blood = np.minimum.reduce([vessels, left + 11, right + 4, atria[0] + 2, atria[1] + 1])
    airway = joined([tube(lattice, *part) for part in _AIRWAY], 3.0)
    oesophagus = tube(lattice, _OESOPHAGUS, (7, 7, 7, 8, 9))
    soft = joined([heart, vessels, oesophagus, airway - 2], 6.0)
    behind = np.minimum(spine(lattice, 0, 20.5, 18), spine(lattice, 25, 21.5, 20))
    layers = [
        Layer(oesophagus, 40.0),
        Layer(heart, 90.0 if is_enhanced else 50.0),
        Layer(blood, patient.blood_hu),
        Layer(airway - 1.6, 20.0),
        Layer(airway, AIR_HU),
    ]
    return joined([soft - 2.5, behind, _fat(lattice)], 9.0), layers


def _fat(lattice: Lattice) -> Field:
    """Make the fat of the mediastinum: wide around the vessels, narrow behind the sternum."""
    x, y, z = lattice.axes
    upper = np.interp(y, (-90, -62, -34, 8, 36, 60), (2, 4, 29, 29, 18, 20))
    lower = np.interp(y, (-95, -70, -40, 5, 30, 60), (6, 9, 18, 14, 9, 18))
    neck = np.clip((z - 55) / 60, 0, 1) * np.interp(y, (-60, -10, 30, 60), (18, 8, 2, 0))
    half = lower + (upper - lower) * np.clip((z + 50) / 35, 0, 1) + neck
    return np.asarray(np.abs(x - 2) - half, dtype=np.float32)
