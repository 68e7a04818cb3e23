"""One patient's anatomy put together: all the tissues as layers to paint, one over another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imaging.phantom.bones import Bones, make_bones
from imaging.phantom.fields import Field, Lattice, smooth_noise
from imaging.phantom.layers import Layer
from imaging.phantom.lungs import Lungs, make_lungs
from imaging.phantom.mediastinum import Mediastinum, make_mediastinum
from imaging.phantom.patient import Patient
from imaging.phantom.thorax import Abdomen, Thorax, make_abdomen, make_thorax

_AIR_HU, _FAT_HU, _MUSCLE_HU = -1000.0, -102.0, 52.0
_SKIN_HU, _SKIN_MM = 20.0, 1.8


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Layers in the order in which they are painted, and what is drawn at the picture's spacing.

    ``under`` lies outside the lungs and is painted before them, ``over`` covers them.
    """

    under: tuple[Layer, ...]
    over: tuple[Layer, ...]
    thorax: Thorax
    lungs: Lungs


def make_anatomy(lattice: Lattice, patient: Patient, rng: np.random.Generator) -> Anatomy:
    """The anatomy of one patient on a lattice."""
    thorax = make_thorax(lattice, patient)
    bones = make_bones(lattice, patient, thorax)
    mediastinum = make_mediastinum(lattice, patient, bones)
    abdomen = make_abdomen(lattice, thorax, rng)
    lungs = make_lungs(lattice, patient, thorax, mediastinum, rng)
    grain = smooth_noise(lattice.shape, lattice.step_mm, 7.0, rng)
    under = (
        *_wall(thorax, grain),
        *_organs(abdomen, thorax, patient, grain),
        *_middle(mediastinum, patient),
        *_skeleton(bones, patient, grain),
        *_table(lattice),
    )
    return Anatomy(
        under=under,
        over=(
            Layer(mediastinum.airway - 1.6, 20.0, strength=0.9),
            Layer(mediastinum.airway, _AIR_HU),
        ),
        thorax=thorax,
        lungs=lungs,
    )


def _wall(thorax: Thorax, grain: Field) -> list[Layer]:
    """Skin, fat, muscles in sheets, and the fat that fills the cavity before its organs do."""
    fat = (_FAT_HU + 7 * grain).astype(np.float32)
    marbled = (_MUSCLE_HU + 9 * grain).astype(np.float32)
    return [
        Layer(thorax.skin, fat, shell_hu=_SKIN_HU, shell_mm=_SKIN_MM),
        Layer(thorax.muscle, marbled),
        Layer(np.maximum(np.abs(thorax.cavity - 13.5) - 0.8, thorax.muscle), -85.0, strength=0.8),
        Layer(np.maximum(np.abs(thorax.cavity - 29) - 1.0, thorax.muscle), -85.0, strength=0.8),
        Layer(thorax.cavity, fat),
    ]


def _organs(abdomen: Abdomen, thorax: Thorax, patient: Patient, grain: Field) -> list[Layer]:
    enhanced = 45.0 if patient.blood_hu > 60 else 0.0
    liver = (58 + enhanced + 5 * grain).astype(np.float32)
    muscle = np.abs(np.maximum(thorax.diaphragm, thorax.cavity) + 1) - 1.2
    return [
        Layer(np.maximum(muscle, thorax.cavity), _MUSCLE_HU),
        Layer(abdomen.liver, liver),
        Layer(abdomen.spleen, 50.0 + enhanced),
        Layer(abdomen.stomach, 45.0),
        Layer(abdomen.juice, 15.0),
        Layer(abdomen.gas, -960.0),
    ]


def _middle(mediastinum: Mediastinum, patient: Patient) -> list[Layer]:
    return [
        Layer(mediastinum.nodes, 45.0),
        Layer(mediastinum.gullet, 40.0),
        Layer(mediastinum.heart, 50.0 if patient.blood_hu < 60 else 90.0),
        Layer(mediastinum.blood, patient.blood_hu),
    ]


def _skeleton(bones: Bones, patient: Patient, grain: Field) -> list[Layer]:
    spongy = (190 + 45 * grain).astype(np.float32)
    calcified = (95 + 160 * patient.calcium * np.clip(grain - 1, 0, 3)).astype(np.float32)
    return [
        Layer(bones.cartilage, calcified),
        Layer(bones.vertebrae, spongy, shell_hu=460.0, shell_mm=1.4),
        Layer(bones.discs, 85.0),
        Layer(bones.arches, spongy + 120, shell_hu=560.0, shell_mm=1.4),
        Layer(bones.canal, 28.0),
        Layer(bones.ribs, spongy, shell_hu=620.0, shell_mm=1.5),
        Layer(bones.sternum, (spongy - 60).astype(np.float32), shell_hu=380.0, shell_mm=1.2),
        Layer(bones.shoulder, spongy, shell_hu=640.0, shell_mm=1.6),
    ]


def _table(lattice: Lattice) -> list[Layer]:
    """The table's two shells, shallow troughs under the back."""
    counts, steps, starts = lattice.shape[:0:-1], lattice.step_mm[:2], lattice.start_mm[:2]
    x, y = (np.arange(n) * s + a for n, s, a in zip(counts, steps, starts, strict=True))
    below = (y[:, None] - 166.0 + 0.00055 * x**2).astype(np.float32)
    shells = [np.broadcast_to(below - depth, lattice.shape) for depth in (0.0, 19.0)]
    return [Layer(shell.astype(np.float32), -150.0, sheet_mm=1.6) for shell in shells]
