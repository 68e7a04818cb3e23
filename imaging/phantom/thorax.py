"""The chest wall and the upper abdomen as distance fields: cavity, diaphragm, skin, organs.

The numbers are profiles along z in the reference body: half widths and the front and back of the
cavity at the height of apex, carina, heart and liver dome, from the anatomy of an adult in full
inspiration.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imaging.phantom.fields import Field, Lattice, ellipsoid, joined
from imaging.phantom.patient import Patient

_Z = (-260.0, -200.0, -150.0, -100.0, -50.0, 0.0, 40.0, 70.0, 90.0, 105.0, 125.0)
_HALF_WIDTH = (130.0, 135.0, 136.0, 135.0, 131.0, 124.0, 113.0, 99.0, 88.0, 76.0, 52.0)
_FRONT = (-84.0, -88.0, -90.0, -90.0, -86.0, -75.0, -60.0, -46.0, -35.0, -26.0, -14.0)
_BACK = (64.0, 72.0, 79.0, 84.0, 85.0, 82.0, 75.0, 66.0, 59.0, 53.0, 46.0)
_SHOULDER_Z = (-260.0, -100.0, 0.0, 40.0, 80.0, 110.0, 140.0)
_SHOULDER = (0.0, 2.0, 6.0, 14.0, 42.0, 78.0, 96.0)
_NOTCH_MM = 18.0
_ROUNDNESS = 2.25


@dataclass(frozen=True, eq=False)
class Thorax:
    """Distance fields of the chest wall.

    Attributes:
        cavity: the space inside the ribs.
        diaphragm: the space below the diaphragm.
        skin: the body.
        muscle: the body without the fat under its skin.
        depth: position between the front (-1) and the back (1) of the cavity.
    """

    cavity: Field
    diaphragm: Field
    skin: Field
    muscle: Field
    depth: Field


def make_thorax(lattice: Lattice, patient: Patient) -> Thorax:
    """Make the chest wall of one patient."""
    x, _, z = lattice.body
    depth = _depth(lattice, _profile(z, _FRONT), _profile(z, _BACK))
    cavity = _radial(np.abs(x) / _profile(z, _HALF_WIDTH), depth, lattice, _ROUNDNESS)
    skin = _skin(lattice, patient)
    return Thorax(
        cavity=cavity,
        diaphragm=_diaphragm(lattice, patient),
        skin=skin,
        muscle=_muscle(lattice, patient, cavity, skin),
        depth=depth,
    )


def cupula(lattice: Lattice) -> Field:
    """Compute the distance to the space below the two pleural cupulas, the top of the lungs."""
    x, y, z = lattice.body
    top = 114 - 0.017 * (np.abs(x) - 46) ** 2 - 0.010 * (y - 14) ** 2
    return _over_slope(z - top, lattice, limit=2.0)


def _profile(z: Field, values: tuple[float, ...], heights: tuple[float, ...] = _Z) -> Field:
    return np.interp(z, heights, values).astype(np.float32)


def _depth(lattice: Lattice, front: Field | float, back: Field | float) -> Field:
    """Compute the position between front (-1) and back (1); the spine dents the back."""
    x, y, _ = lattice.body
    notch = _NOTCH_MM * np.exp(-((x / 19) ** 2)) * np.clip(y / 40, 0, 1)
    depth = (y + notch - (front + back) / 2) / ((back - front) / 2)
    return np.asarray(depth, dtype=np.float32)


def _radial(across: Field, depth: Field, lattice: Lattice, power: float) -> Field:
    """Compute the distance to a superellipse with its surface where the norm is 1."""
    return _over_slope(_norm(across, depth, power) - 1, lattice)


def _norm(across: Field, depth: Field, power: float) -> Field:
    total = np.power(np.abs(across), power) + np.power(np.abs(depth), power)
    return np.asarray(np.power(total, 1 / power), dtype=np.float32)


def _over_slope(value: Field, lattice: Lattice, limit: float = 0.0) -> Field:
    """Divide the value by its own slope: to first order the distance to where it is zero.

    ``limit`` bounds the slope from above where a height field drops steeply; 0 sets none.
    """
    steps = [float(s) for s in lattice.step_mm[::-1]]
    slopes = np.gradient(value, *steps)
    slope = np.sqrt(sum(s * s for s in slopes))
    if limit:
        slope = np.minimum(slope, np.float32(limit))
    return np.asarray(value / np.maximum(slope, np.float32(2e-3)), dtype=np.float32)


def _diaphragm(lattice: Lattice, patient: Patient) -> Field:
    """Make two domes that fall steeply at the wall, deepest behind; negative below them."""
    x, _, z = lattice.body
    depth = _depth(lattice, np.interp(-140, _Z, _FRONT), np.interp(-140, _Z, _BACK))
    # `fall` is 1 on top of a dome and 0 at the wall
    aside = np.abs(x) - np.float32(52)
    reach = _norm(np.where(aside > 0, aside / 84, aside / 150).astype(np.float32), depth, 2.1)
    fall = (1 - np.clip(reach, 0, 1) ** 2) ** 0.8
    # the height at the wall, and that of the domes: the right one is higher, the heart lies between
    base = np.interp(depth, (-1, -0.5, 0.1, 0.6, 1), (-118, -142, -164, -178, -188))
    right, left = -82 + patient.dome_mm[0], -95 + patient.dome_mm[1]
    top = right + (left - right) / (1 + np.exp(-x / 14))
    top = top - 8 * np.exp(-(((x - 8) / 30) ** 2))
    height = base + (top - base) * fall
    return _over_slope((z - height).astype(np.float32), lattice, limit=4.0)


def _skin(lattice: Lattice, patient: Patient) -> Field:
    x, y, z = lattice.body
    fat = np.float32(patient.fat_mm)
    arms = np.float32(1.0 if patient.arms_up else 0.8)
    # half widths, front and back of the body: the cavity's, plus muscle, plus fat, plus shoulders
    side = _profile(z, _HALF_WIDTH) + 26 + fat * (0.7 + 0.3 * np.clip(-z / 100, 0, 1))
    side = np.maximum(side, 150) + arms * _profile(z, _SHOULDER, _SHOULDER_Z)
    belly = np.clip((-z - 90) / 120, 0, 1)
    front = np.minimum(_profile(z, _FRONT), -38) - 22 - fat * (0.5 + 0.8 * belly)
    back = np.maximum(_profile(z, _BACK), 68) + 40 + fat * 0.6
    depth = (y - (front + back) / 2) / ((back - front) / 2)
    furrow = 1 + 0.05 * np.exp(-((x / 14) ** 2)) * (depth > 0)
    body = _radial(np.abs(x) / side, (depth * furrow).astype(np.float32), lattice, 2.7)
    if not patient.female:
        return body
    thick = 26 + patient.fat_mm * 0.7
    breasts = [
        ellipsoid(lattice, (side * 78, -98 - patient.fat_mm * 0.4, -52), (62, thick, 58))
        for side in (-1, 1)
    ]
    return joined([body, *breasts], 18.0)


def _muscle(lattice: Lattice, patient: Patient, cavity: Field, skin: Field) -> Field:
    """Fill what is below the subcutaneous fat and near the ribs; the thickness varies around."""
    x, y, z = lattice.body
    fat = patient.fat_mm * np.clip(0.75 + 0.004 * (y - 20), 0.45, 1.1)
    upper = np.clip((z + 40) / 60, 0, 1)
    front = np.clip(-y / 50, 0, 1)
    rear = np.clip((y - 40) / 30, 0, 1)
    # thickness over the ribs: upper chest, pectoral muscles in front, and the back's muscles
    thick: npt.NDArray[np.float32] = 17 + 13 * upper * (1 - rear) + 12 * upper * front
    thick = thick - 6 * front * (1 - upper) * np.clip(np.abs(x) / 60, 0, 1)
    thick = thick + rear * (8 + 12 * np.exp(-(((np.abs(x) - 34) / 22) ** 2)))
    thick = thick + 60 * np.clip((z - 75) / 30, 0, 1)
    return np.asarray(np.maximum(skin + fat, cavity - thick * patient.muscle), dtype=np.float32)


def make_abdomen(
    lattice: Lattice, thorax: Thorax, rng: np.random.Generator
) -> tuple[Field, Field, Field, Field, Field]:
    """Make liver, spleen, stomach, and the fluid in it with gas above, which are random."""
    inside = np.maximum(thorax.diaphragm, thorax.cavity)
    right = ellipsoid(lattice, (-62, -8, -178), (92, 86, 92))
    lobe = ellipsoid(lattice, (14, -52, -150), (66, 38, 46))
    liver = np.maximum(joined([right, lobe], 20.0), inside + 3)
    spleen = np.maximum(ellipsoid(lattice, (100, 44, -168), (36, 44, 56)), inside + 3)
    fill = float(rng.uniform(0.75, 1.1))
    stomach = ellipsoid(lattice, (66, -12, -150), (42 * fill, 46 * fill, 44 * fill))
    stomach = np.maximum(np.maximum(stomach, inside + 4), 4 - np.minimum(liver, spleen))
    fluid = stomach + 4
    level = (lattice.body[1] + float(rng.uniform(0, 25))) * lattice.mean_scale
    return liver, spleen, stomach, fluid, np.maximum(fluid, level).astype(np.float32)
