"""The body of a phantom: a patient drawn from a seed, chest wall, abdomen, bones, mediastinum.

The numbers of the chest are profiles along z in the reference body: half widths and the front and
back of the cavity at the height of apex, carina, heart and liver dome, from the anatomy of an adult
in full inspiration.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from imaging.phantom.fields import Field, Lattice, ellipsoid, joined, over_slope, tube
from imaging.phantom.layers import AIR_HU, Layer
from imaging.volume import Triple

_Z = (-260.0, -150.0, -50.0, 0.0, 40.0, 70.0, 90.0, 125.0)
_HALF_WIDTH = (130.0, 136.0, 131.0, 124.0, 113.0, 99.0, 88.0, 52.0)
_FRONT = (-84.0, -90.0, -86.0, -75.0, -60.0, -46.0, -35.0, -14.0)
_BACK = (64.0, 79.0, 85.0, 82.0, 75.0, 66.0, 59.0, 46.0)
_PITCH_MM = 25.0
"""Distance of ribs, and of vertebrae."""
_CLAVICLE = ((20.0, -58.0, 48.0), (62.0, -62.0, 70.0), (105.0, -34.0, 84.0), (152.0, 4.0, 98.0))

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
    ([(12, -10, -10), (-14, 0, -16), (-32, 6, -22)], (12, 11, 8)),
    ([(13, -10, -6), (30, 8, -2), (42, 18, -12), (45, 25, -24)], (12, 11, 9.5, 7)),
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


@dataclass(frozen=True)
class Patient:
    """One random patient.

    Attributes:
        scale: size along ``(x, y, z)`` relative to the reference adult.
        female: whether there are breasts.
        fat_mm: thickness of the fat under the skin at the flank.
        blood_hu: HU of blood: 40 without contrast medium, up to about 280 with it.
        lung_hu: HU of the parenchyma half-way between front and back.
        gravity_hu_per_mm: how much denser the parenchyma gets towards the back.
        heart: size of the heart relative to the reference.
        dome_mm: rise of the right and of the left diaphragm dome against the reference.
    """

    scale: Triple
    female: bool
    fat_mm: float
    blood_hu: float
    lung_hu: float
    gravity_hu_per_mm: float
    heart: float
    dome_mm: tuple[float, float]


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw a patient: half are women, half have contrast medium."""
    female = bool(rng.random() < 0.5)
    size = 0.94 if female else 1.0
    height, width, depth = size * rng.uniform(0.93, 1.06, 3)
    return Patient(
        scale=(float(width), float(depth), float(height)),
        female=female,
        fat_mm=float(rng.gamma(4.0, 4.0) + 3.0),
        blood_hu=float(rng.uniform(120, 280) if rng.random() < 0.5 else rng.uniform(35, 48)),
        lung_hu=float(rng.uniform(-885, -835)),
        gravity_hu_per_mm=float(rng.uniform(0.15, 0.5)),
        heart=float(rng.uniform(0.9, 1.14)),
        dome_mm=(float(rng.uniform(-10, 12)), float(rng.uniform(-10, 12))),
    )


class Thorax(NamedTuple):
    """Distance fields: the space inside the ribs, that below the diaphragm, and the body.

    ``depth`` is the position between the front (-1) and the back (1) of the cavity.
    """

    cavity: Field
    diaphragm: Field
    skin: Field
    depth: Field


def make_thorax(lattice: Lattice, patient: Patient) -> Thorax:
    """Make the chest wall of one patient."""
    x, y, z = lattice.axes
    front, back = _profile(z, _FRONT), _profile(z, _BACK)
    # the spine dents the back of the cavity
    notch = 18 * np.exp(-((x / 19) ** 2)) * np.clip(y / 40, 0, 1)
    depth = ((2 * (y + notch) - front - back) / (back - front)).astype(np.float32)
    cavity = _norm(x / _profile(z, _HALF_WIDTH), depth, 2.25) - 1
    diaphragm = z - _diaphragm_z(lattice, patient, depth)
    return Thorax(
        cavity=over_slope(cavity, lattice),
        diaphragm=over_slope(diaphragm, lattice, steepest=4.0),
        skin=_skin(lattice, patient),
        depth=depth,
    )


def wall_layers(lattice: Lattice, patient: Patient, thorax: Thorax, grain: Field) -> list[Layer]:
    """Layer skin, fat and muscles, with fat between them and in the cavity, and the diaphragm."""
    x, y, z = lattice.axes
    cavity, fat = thorax.cavity, (-102 + 7 * grain).astype(np.float32)
    # muscles fill what is below the fat and near the ribs: thicker at the upper chest, in front of
    # it, at the shoulders, and beside the spine
    upper, front, rear = (np.clip(part, 0, 1) for part in ((z + 40) / 60, -y / 50, (y - 40) / 30))
    thick = 17 + 13 * upper * (1 - rear) + 12 * upper * front + 60 * np.clip((z - 75) / 30, 0, 1)
    thick = thick + rear * (8 + 12 * np.exp(-(((np.abs(x) - 34) / 22) ** 2)))
    under = thorax.skin + patient.fat_mm * np.clip(0.75 + 0.004 * (y - 20), 0.45, 1.1)
    muscle = np.maximum(under, cavity - thick).astype(np.float32)
    midriff = np.maximum(np.abs(np.maximum(thorax.diaphragm, cavity) + 1) - 1.2, cavity)
    sheets = (np.maximum(np.abs(cavity - depth) - 0.8, muscle) for depth in (13.5, 29))
    return [
        Layer(thorax.skin, fat, shell_hu=20.0),
        Layer(muscle, (52 + 9 * grain).astype(np.float32)),
        *(Layer(sheet, -85.0) for sheet in sheets),
        Layer(cavity, fat),
        Layer(midriff, 52.0),
    ]


def abdomen_layers(
    lattice: Lattice, patient: Patient, thorax: Thorax, grain: Field, rng: np.random.Generator
) -> list[Layer]:
    """Layer liver and a stomach with gas, whose size is random."""
    inside = np.maximum(thorax.diaphragm, thorax.cavity)
    lobes = [((-62, -8, -178), (92, 86, 92)), ((14, -52, -150), (66, 38, 46))]
    liver = np.maximum(joined([ellipsoid(lattice, *lobe) for lobe in lobes], 20.0), inside + 3)
    fill = float(rng.uniform(0.75, 1.1))
    stomach = ellipsoid(lattice, (66, -12, -150), (42 * fill, 46 * fill, 44 * fill))
    stomach = np.maximum.reduce([stomach, inside + 4, 4 - liver])
    gas = np.maximum(stomach + 4, lattice.axes[1] + np.float32(rng.uniform(0, 25)))
    enhanced = 45.0 if patient.blood_hu > 60 else 0.0
    return [
        Layer(liver, (58 + enhanced + 5 * grain).astype(np.float32)),
        Layer(stomach, 30.0),
        Layer(gas, -960.0),
    ]


def bone_layers(lattice: Lattice, thorax: Thorax, grain: Field) -> list[Layer]:
    """Layer ribs with their cartilage, spine, sternum and shoulders, spongy inside a hard shell."""
    spongy = (190 + 45 * grain).astype(np.float32)
    x, y, z = lattice.axes
    # ribs are bands on the cavity wall that slope down to the front, where they are cartilage;
    # `phase` counts them down the wall, and its distance from a whole number is that from a rib
    index = (98 - z) / _PITCH_MM
    forward = np.arctan2(np.abs(x) / 130, thorax.depth) / np.float32(np.pi)
    phase = index - forward * (70 + 8 * np.clip(index, 0, 8)) / _PITCH_MM
    off = (phase - np.clip(np.rint(phase), 0, 11)) * (_PITCH_MM * 0.8)
    section = np.sqrt(((thorax.cavity - 6.5) / 4.0) ** 2 + (off / 6.5) ** 2) - 1
    band = np.maximum(section * 4.2, 15 - np.abs(x))
    front_end = np.where(y < 0, np.abs(x) - 48 - 30 * np.clip((-20 - z) / 80, 0, 1), 30)
    ribs, cartilage = np.maximum(band, -front_end), np.maximum(band, front_end)
    half = np.interp(z, (-108, -90, 0, 42), (10, 17, 15, 31))
    middle = np.interp(z, (-110, -60, 0, 44), (-101, -98, -84, -63))
    plate = (_norm(np.abs(x) / half, (y - middle) / 6.2, 4.0) - 1) * 6.2
    sternum = np.maximum(plate, np.maximum(z - 44, -110 - z))
    bones = (
        (ribs, spongy, 620.0), (sternum, spongy - 60, 380.0),
        (_shoulders(lattice, thorax), spongy, 640.0),
    )  # fmt: skip
    return [
        Layer(cartilage.astype(np.float32), (95 + 20 * grain).astype(np.float32)),
        *_spine_layers(lattice, spongy),
        *(Layer(np.asarray(field, np.float32), hu, shell) for field, hu, shell in bones),
    ]


def _spine(lattice: Lattice, behind_mm: float, half_width: float, half_depth: float) -> Field:
    """Make an elliptic column along the spine, behind the centre of the vertebral bodies."""
    x, y, z = lattice.axes
    middle = np.interp(z, (-260, -180, -100, -20, 60, 130), (46, 54, 58, 55, 45, 34)) + behind_mm
    near = np.sqrt((x / half_width) ** 2 + ((y - middle) / half_depth) ** 2)
    return np.asarray((near - 1) * min(half_width, half_depth), dtype=np.float32)


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
    behind = np.minimum(_spine(lattice, 0, 20.5, 18), _spine(lattice, 25, 21.5, 20))
    layers = [
        Layer(oesophagus, 40.0),
        Layer(heart, 90.0 if is_enhanced else 50.0),
        Layer(blood, patient.blood_hu),
        Layer(airway - 1.6, 20.0),
        Layer(airway, AIR_HU),
    ]
    return joined([soft - 2.5, behind, _fat(lattice)], 9.0), layers


def _spine_layers(lattice: Lattice, spongy: Field) -> list[Layer]:
    """Layer bodies and discs, and the arches: a ring around the canal, with three processes."""
    z = lattice.axes[2]
    level = z - np.rint(z / _PITCH_MM) * _PITCH_MM  # 0 in a disc
    waist = (1.6 * np.clip(np.abs(level) / 12, 0, 1)).astype(np.float32)
    bodies, canal = _spine(lattice, 0, 18, 15.5) + waist, _spine(lattice, 25, 9.5, 8)
    across = np.maximum(_spine(lattice, 28, 38, 4), 12 - np.abs(level))
    back = np.maximum(_spine(lattice, 43, 2.8, 15), 9 - np.abs(level))
    ring = np.maximum(np.abs(canal - 2) - 2.6, 4 - np.abs(level))
    arches = joined([part.astype(np.float32) for part in (ring, across, back)], 4.0)
    discs = np.maximum(bodies, np.abs(level) - 2.2).astype(np.float32)
    return [
        Layer(bodies, spongy, shell_hu=460.0),
        Layer(discs, 85.0),
        Layer(arches, spongy + 120, shell_hu=560.0),
        Layer(canal, 28.0),
    ]


def _shoulders(lattice: Lattice, thorax: Thorax) -> Field:
    """Make shoulder blades as plates on the wall, clavicles, and the upper ends of the arms."""
    x, y, z = lattice.axes
    plate = np.abs(thorax.cavity - 23 - 0.05 * (z + 10)) - 1.7
    reach = np.maximum(74.5 - 0.15 * z - np.abs(x), 6 - y)
    height = np.maximum(-64 + 0.5 * np.maximum(np.abs(x) - 95, 0) - z, z - 96)
    parts = [np.maximum(np.maximum(plate, reach), height).astype(np.float32)]
    for side in (-1, 1):
        clavicle = [(side * x, y, z) for x, y, z in _CLAVICLE]
        parts.append(tube(lattice, clavicle, (7.5, 5.5, 5.5, 6.5)))
        parts.append(ellipsoid(lattice, (side * 150, 24, 88), (15, 18, 20)))
        arm = [(side * 172.0, 8.0, 84.0), (side * 172.0, -10.0, 190.0)]
        parts.append(tube(lattice, arm, (21, 12)))
    return joined(parts, 5.0)


def _profile(z: Field, values: tuple[float, ...]) -> Field:
    return np.interp(z, _Z, values).astype(np.float32)


def _norm(across: npt.ArrayLike, depth: npt.ArrayLike, power: float) -> Field:
    """Compute the norm whose unit circle is a superellipse: the rounder, the nearer to 2."""
    total = np.power(np.abs(across), power) + np.power(np.abs(depth), power)
    return np.asarray(np.power(total, 1 / power), dtype=np.float32)


def _diaphragm_z(lattice: Lattice, patient: Patient, depth: Field) -> Field:
    """Compute the height of two domes that fall steeply at the wall, deepest behind."""
    x = lattice.axes[0]
    # `fall` is 1 on top of a dome and 0 at the wall
    aside = np.abs(x) - 52
    reach = _norm(np.where(aside > 0, aside / 84, aside / 150), depth, 2.1)
    fall = (1 - np.clip(reach, 0, 1) ** 2) ** 0.8
    # the height at the wall, and that of the domes: the right one is higher, the heart lies between
    base = np.interp(depth, (-1, -0.5, 0.1, 0.6, 1), (-118, -142, -164, -178, -188))
    right, left = -82 + patient.dome_mm[0], -95 + patient.dome_mm[1]
    top = right + (left - right) / (1 + np.exp(-x / 14)) - 8 * np.exp(-(((x - 8) / 30) ** 2))
    return np.asarray(base + (top - base) * fall, dtype=np.float32)


def _skin(lattice: Lattice, patient: Patient) -> Field:
    x, y, z = lattice.axes
    fat = np.float32(patient.fat_mm)
    # half width, front and back of the body: the cavity's, plus muscle, plus fat, plus shoulders
    side = np.maximum(_profile(z, _HALF_WIDTH) + 26 + fat * 0.8, 150)
    side = side + np.interp(z, (-100, 0, 40, 80, 110, 140), (2, 6, 14, 42, 78, 96))
    belly = np.clip((-z - 90) / 120, 0, 1)
    front = np.minimum(_profile(z, _FRONT), -38) - 22 - fat * (0.5 + 0.8 * belly)
    back = np.maximum(_profile(z, _BACK), 68) + 40 + fat * 0.6
    depth = (2 * y - front - back) / (back - front)
    furrow = 1 + 0.05 * np.exp(-((x / 14) ** 2)) * (depth > 0)
    body = over_slope(_norm(x / side, depth * furrow, 2.7) - 1, lattice)
    if not patient.female:
        return body
    radii = (62, 26 + patient.fat_mm * 0.7, 58)
    breasts = [
        ellipsoid(lattice, (side * 78, -98 - patient.fat_mm * 0.4, -52), radii) for side in (-1, 1)
    ]
    return joined([body, *breasts], 18.0)


def _fat(lattice: Lattice) -> Field:
    """Make the fat of the mediastinum: wide around the vessels, narrow behind the sternum."""
    x, y, z = lattice.axes
    upper = np.interp(y, (-90, -62, -34, 8, 36, 60), (2, 4, 29, 29, 18, 20))
    lower = np.interp(y, (-95, -70, -40, 5, 30, 60), (6, 9, 18, 14, 9, 18))
    neck = np.clip((z - 55) / 60, 0, 1) * np.interp(y, (-60, -10, 30, 60), (18, 8, 2, 0))
    half = lower + (upper - lower) * np.clip((z + 50) / 35, 0, 1) + neck
    return np.asarray(np.abs(x - 2) - half, dtype=np.float32)
