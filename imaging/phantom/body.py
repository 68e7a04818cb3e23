"""The body of a phantom: a patient drawn from a seed, chest wall, abdomen and bones.

The patient has size, build, blood and lungs. The rest are distance fields. The numbers of the chest
are profiles along z in the reference body: half widths and the front and back of the cavity at the
height of apex, carina, heart and liver dome, from the anatomy of an adult in full inspiration.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imaging.phantom.fields import Field, Lattice, ellipsoid, joined, tube
from imaging.volume import Triple

_Z = (-260.0, -200.0, -150.0, -100.0, -50.0, 0.0, 40.0, 70.0, 90.0, 105.0, 125.0)
_HALF_WIDTH = (130.0, 135.0, 136.0, 135.0, 131.0, 124.0, 113.0, 99.0, 88.0, 76.0, 52.0)
_FRONT = (-84.0, -88.0, -90.0, -90.0, -86.0, -75.0, -60.0, -46.0, -35.0, -26.0, -14.0)
_BACK = (64.0, 72.0, 79.0, 84.0, 85.0, 82.0, 75.0, 66.0, 59.0, 53.0, 46.0)
_SHOULDER_Z = (-260.0, -100.0, 0.0, 40.0, 80.0, 110.0, 140.0)
_SHOULDER = (0.0, 2.0, 6.0, 14.0, 42.0, 78.0, 96.0)
_NOTCH_MM = 18.0
_ROUNDNESS = 2.25
_RIB_TOP_MM, _RIB_PITCH_MM, _RIBS = 98.0, 25.0, 12
_DISC_PITCH_MM = 25.0
_SPINE_Z = (-260.0, -180.0, -100.0, -20.0, 60.0, 130.0)
_SPINE_Y = (46.0, 54.0, 58.0, 55.0, 45.0, 34.0)
_CLAVICLE = ((20.0, -58.0, 48.0), (62.0, -62.0, 70.0), (105.0, -34.0, 84.0), (152.0, 4.0, 98.0))


@dataclass(frozen=True)
class Patient:
    """One random patient.

    Attributes:
        scale: size along ``(x, y, z)`` relative to the reference adult.
        female: whether there are breasts.
        arms_up: whether the arms lie beside the head; otherwise they lie beside the body.
        fat_mm: thickness of the fat under the skin at the flank.
        muscle: thickness of the muscles relative to the reference.
        blood_hu: HU of blood: 40 without contrast medium, up to about 280 with it.
        lung_hu: HU of the parenchyma half-way between front and back.
        gravity_hu_per_mm: how much denser the parenchyma gets towards the back.
        emphysema: 0 none to 1 severe.
        heart: size of the heart relative to the reference.
        dome_mm: rise of the right and of the left diaphragm dome against the reference.
        calcium: 0 none to 1 many calcified spots in the costal cartilage.
    """

    scale: Triple
    female: bool
    arms_up: bool
    fat_mm: float
    muscle: float
    blood_hu: float
    lung_hu: float
    gravity_hu_per_mm: float
    emphysema: float
    heart: float
    dome_mm: tuple[float, float]
    calcium: float


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw a patient: half are women, half have contrast medium, few have their arms down."""
    female = bool(rng.random() < 0.5)
    size = 0.94 if female else 1.0
    height, width, depth = size * rng.uniform(0.93, 1.06, 3)
    return Patient(
        scale=(float(width), float(depth), float(height)),
        female=female,
        arms_up=bool(rng.random() < 0.85),
        fat_mm=float(rng.gamma(4.0, 4.0) + 3.0),
        muscle=float(rng.uniform(0.75, 1.25) * size),
        blood_hu=float(rng.uniform(120, 280) if rng.random() < 0.5 else rng.uniform(35, 48)),
        lung_hu=float(rng.uniform(-885, -835)),
        gravity_hu_per_mm=float(rng.uniform(0.15, 0.5)),
        emphysema=float(max(0.0, rng.uniform(-1.2, 0.8))),
        heart=float(rng.uniform(0.9, 1.14)),
        dome_mm=(float(rng.uniform(-10, 12)), float(rng.uniform(-10, 12))),
        calcium=float(rng.random()),
    )


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
