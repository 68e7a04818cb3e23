"""Training regions of the hybrid network, around the screening network's own candidates.

Nodules come from the middle of a cube, false positives mostly from whole scans. The network would
learn any other difference between the two, so both are shifted, scaled, shortened and mirrored
alike, and nodules are implanted into the scans as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from imaging.roi import cut_roi
from imaging.volume import FloatArray
from models.training.augment import Noise, resized, scanned_anew, turned
from models.training.compose import Composer, implanted
from models.training.data import NONE, Cubes, Piece, resize


@dataclass(frozen=True, eq=False)
class Region:
    """``voxels`` and ``mask`` uint8 ``(side, side, side)``; the diameter is 0 without a nodule.

    ``malignancy`` is in [0, 1], NaN if unknown; ``texture`` a class of
    `models.runtime.second_reader.TEXTURES`, -1 if unknown.
    """

    voxels: np.ndarray
    mask: np.ndarray
    diameter_mm: float = 0.0
    malignancy: float = np.nan
    texture: int = -1


def rated(cubes: Cubes) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Return malignancy and texture of each cube's nodule, as in `Region`, each ``(n,)``.

    They come from the readers' mean ratings; 1.5 and 4.5 of malignancy count as certain.
    """
    known = np.isfinite(cubes.texture)
    classes = np.digitize(np.where(known, cubes.texture, 5.0), [2.5, 4.0])
    return np.clip((cubes.malignancy - 1.5) / 3, 0, 1), np.where(known, classes, -1)


@dataclass(frozen=True, eq=False)
class RegionDrawer:
    """Draws training regions.

    Attributes:
        composer: its cubes and scans are the sources.
        ratings: malignancy and texture of the composer's cubes, see `rated`.
        false_positives: false positives ``(n, 3)`` of each cube, then of each scan.
        weights: the odds ``(n,)`` to draw each of them.
        side: of a region, in voxels.
        share: of regions with a nodule.
    """

    composer: Composer
    ratings: tuple[FloatArray, npt.NDArray[np.int64]]
    false_positives: Sequence[FloatArray]
    weights: Sequence[FloatArray]
    noise: Noise
    side: int = 48
    share: float = 0.45

    def draw(self, rng: np.random.Generator) -> Region:
        """Draw one region, with or without a nodule."""
        kind = rng.random()
        if kind < 0.6 * self.share:
            return self._nodule(rng)
        if kind < self.share:
            return self._implant(rng, real=True)
        if kind < self.share + 0.07:
            return self._implant(rng, real=False)
        return self._false_positive(rng)

    def _nodule(self, rng: np.random.Generator) -> Region:
        number = int(rng.integers(len(self.composer.cubes)))
        piece = resized(self.composer.cubes[number], rng)
        return self._rated(self._cut(piece, piece.nodules[0], rng), number)

    def _implant(self, rng: np.random.Generator, *, real: bool) -> Region:
        composer = self.composer
        number = int(rng.integers(len(composer.cubes)))
        donor = turned(resized(composer.cubes[number], rng), rng)
        scan = composer.scans[int(rng.integers(len(composer.scans)))]
        side = self.side + 16
        for _ in range(8):
            middle = rng.uniform(0.15, 0.85, 3) * scan.voxels.shape
            voxels = cut_roi(scan.voxels, middle, (side,) * 3)
            ground = Piece(voxels, np.zeros_like(voxels), NONE, NONE)
            part = implanted(ground, donor, rng, real=real)
            changed = np.argwhere(part.voxels != ground.voxels)
            if len(changed):
                if real:
                    return self._rated(self._cut(part, part.nodules[0], rng), number)
                return self._cut(part, np.append(changed.mean(0), 0.0), rng)
        return self._nodule(rng) if real else self._false_positive(rng)

    def _false_positive(self, rng: np.random.Generator) -> Region:
        totals = np.array([w.sum() for w in self.weights])
        source = int(rng.choice(len(totals), p=totals / totals.sum()))
        odds = self.weights[source] / totals[source]
        centre = self.false_positives[source][int(rng.choice(len(odds), p=odds))]
        cubes = len(self.composer.cubes)
        pieces = self.composer.cubes if source < cubes else self.composer.scans
        piece = pieces[source if source < cubes else source - cubes]
        return self._cut(piece, np.append(centre, 0.0), rng)

    def _rated(self, region: Region, number: int) -> Region:
        """Add the ratings of that cube's nodule; at another size its malignancy is unknown."""
        diameter = self.composer.cubes[number].nodules[0, 3]
        # scaled by more than this (natural logarithm) it is another nodule to a radiologist
        same = abs(np.log(region.diameter_mm / diameter)) < 0.3
        malignancy, texture = self.ratings
        return replace(
            region,
            malignancy=float(malignancy[number]) if same else np.nan,
            texture=int(texture[number]),
        )

    def _cut(self, piece: Piece, mark: FloatArray, rng: np.random.Generator) -> Region:
        diameter = float(mark[3])
        # along each axis about as far from the centre as candidates are
        at = mark[:3] + rng.normal(0, 1.3 + 0.05 * diameter, 3)
        factor = float(np.exp(rng.uniform(np.log(0.85), np.log(1.2))))
        size = (round(self.side / factor),) * 3
        voxels, mask = (cut_roi(a, at, size) for a in (piece.voxels, piece.mask))
        voxels, mask = (resize(a, self.side / size[0]) for a in (voxels, mask))
        if rng.random() < 0.5:  # as at the border of a lung box
            low = rng.integers(0, 13, 3) * (rng.random(3) < 0.5)
            high = self.side - rng.integers(0, 13, 3) * (rng.random(3) < 0.5)
            voxels, mask = (_shortened(a, low, high) for a in (voxels, mask))
        whole = turned(Piece(voxels, mask, NONE, NONE), rng)
        whole = scanned_anew(whole, rng, self.noise, thicken=0.25)
        voxels, mask = np.ascontiguousarray(whole.voxels), np.ascontiguousarray(whole.mask)
        return Region(voxels, mask, diameter * self.side / size[0])


def _shortened(voxels: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Mirror what lies between ``low`` and ``high`` back to the full size."""
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    pad = [(int(a), int(n - b)) for a, b, n in zip(low, high, voxels.shape, strict=True)]
    return np.pad(voxels[box], pad, mode="symmetric")
