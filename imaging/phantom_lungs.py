"""The lungs: where they are, their lobes and fissures, and the density of their tissue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imaging.phantom_lattice import Field, Lattice, smooth_noise
from imaging.phantom_mediastinum import Mediastinum
from imaging.phantom_patient import Patient
from imaging.phantom_thorax import Thorax, cupula

LobeArray = npt.NDArray[np.uint8]

LOBES = ("right upper", "right middle", "right lower", "left upper", "left lower")


@dataclass(frozen=True, eq=False)
class Lungs:
    """``lungs`` both lungs as one distance field, ``fissures`` distance to the nearest fissure.

    ``lobes`` numbers every cell of the lattice by `LOBES` from 1, 0 outside the lungs;
    ``tissue_hu`` is the parenchyma's density wherever lung is.
    """

    lungs: Field
    fissures: Field
    lobes: LobeArray
    tissue_hu: Field


def make_lungs(
    lattice: Lattice,
    patient: Patient,
    thorax: Thorax,
    mediastinum: Mediastinum,
    rng: np.random.Generator,
) -> Lungs:
    """The lungs of one patient: what the walls, the diaphragm and the mediastinum leave."""
    above = -thorax.diaphragm
    walls = np.maximum(thorax.cavity + 1.5, cupula(lattice))
    lungs = np.maximum(np.maximum(walls, above), -mediastinum.envelope).astype(np.float32)
    fissures, lobes = _lobes(lattice, rng)
    lobes = np.where(lungs < 0, lobes, 0).astype(np.uint8)
    tissue = _tissue(lattice, patient, lungs, rng)
    return Lungs(lungs, fissures, lobes, tissue)


def _lobes(lattice: Lattice, rng: np.random.Generator) -> tuple[Field, LobeArray]:
    """The oblique fissures of both lungs and the horizontal one of the right, slightly wavy."""
    x, y, z = lattice.body
    right = x < 0
    wave = 1.5 * smooth_noise(lattice.shape, lattice.step_mm, 45.0, rng)
    bulge = 0.0012 * (np.abs(x) - 75) ** 2
    tilt = float(rng.uniform(0.95, 1.1))
    top = np.where(right, -26, -14) + float(rng.uniform(-8, 8))
    oblique = ((z - top - tilt * y) / np.hypot(1, tilt) + wave + bulge).astype(np.float32)
    level = float(rng.uniform(-34, -22))
    horizontal = (z - level + 0.1 * (y + 40) + wave + bulge).astype(np.float32)
    lower = oblique < 0
    lobes = np.where(
        right, np.where(lower, 3, np.where(horizontal < 0, 2, 1)), np.where(lower, 5, 4)
    )
    middle = np.where(right & ~lower, np.abs(horizontal), np.float32(25))
    signed = np.where(np.abs(oblique) <= middle, oblique, horizontal)
    return signed.astype(np.float32), lobes.astype(np.uint8)


def _tissue(lattice: Lattice, patient: Patient, lungs: Field, rng: np.random.Generator) -> Field:
    """Denser towards the back, uneven on every scale, with holes where emphysema is."""
    shape, step = lattice.shape, lattice.step_mm
    hu = patient.lung_hu + patient.gravity_hu_per_mm * lattice.body[1]
    for length, deviation in ((60.0, 9.0), (18.0, 7.0), (6.0, 11.0), (2.6, 14.0)):
        hu = hu + np.float32(deviation) * smooth_noise(shape, step, length, rng)
    behind = np.clip((lattice.body[1] - 40) / 40, 0, 1)
    rim = np.exp(np.minimum(lungs, 0) / 5) * behind
    hu = hu + np.float32(patient.gravity_hu_per_mm * 160) * rim
    if patient.emphysema > 0:
        holes = smooth_noise(shape, step, 9.0, rng) + 0.006 * lattice.body[2] - 1.9
        hu = hu - np.clip(holes + patient.emphysema, 0, 1) * 120
    return np.asarray(np.maximum(hu, -990), dtype=np.float32)
