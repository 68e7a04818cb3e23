"""The patient of a phantom: size and build of the body, blood and lungs, drawn from a seed."""

from dataclasses import dataclass

import numpy as np

from imaging.volume import Triple


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
