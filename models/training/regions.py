"""Training regions of the hybrid, drawn around candidates of screening networks.

Whether a region holds a nodule must not show in anything but its middle. So both kinds come from
the same samples, around the candidates that a screening network has there. Half of the samples are
composed: a seam, a face or a neighbouring nodule is as frequent with a nodule as without. The
others are whole scans, half of them copies with insertions.

Ratings and outlines are known of cubes alone. Regions cut from these teach them, and not whether
there is a nodule.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from imaging.roi import cut_roi
from imaging.volume import FloatArray
from models.runtime.detection import Peaks, sigmoid
from models.training.compose import Composer, implanted
from models.training.data import (
    NONE,
    Cubes,
    Noise,
    Piece,
    flip,
    resize,
    resized,
    simulate_scanner,
    zoom_factor,
    zoomed,
)
from models.training.screening import apart, best_logit, hit_of, peaks_of

MIN_LOGIT = -6.0
"""Weaker candidates are not read. It is also the edge's logit of a nodule without a candidate."""

NEIGHBOURS = 0.3
"""The share of regions, with and without a nodule, into which another nodule is implanted."""

WHOLE = 0.5
"""The share of samples that are whole scans, read as the product reads them."""

EACH = 3
"""The most nodules, and the most others, that one sample gives."""


@dataclass(frozen=True, eq=False)
class Region:
    """``voxels`` and ``mask`` uint8 ``(side, side, side)``; the diameter is 0 without a nodule.

    ``nodule`` is 1 or 0, NaN if the region does not teach it. ``malignancy`` is in [0, 1], NaN if
    unknown; ``texture`` a class of `models.runtime.second_reader.TEXTURES`, -1 if unknown.
    ``outlined``: the mask is known.
    """

    voxels: np.ndarray
    mask: np.ndarray
    nodule: float
    diameter_mm: float = 0.0
    malignancy: float = np.nan
    texture: int = -1
    outlined: bool = False


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
        composer: of the samples; its cubes teach ratings and outlines, and are implanted as
            neighbours.
        ratings: malignancy and texture of the composer's cubes, see `rated`.
        screeners: the candidates of one of them are read, at random for each sample.
        peaks: of each of the screeners, those in each of the composer's scans.
        side: of a region, in voxels.
        share: of regions that teach ratings and outlines.
    """

    composer: Composer
    ratings: tuple[FloatArray, npt.NDArray[np.int64]]
    screeners: Sequence[nn.Module]
    peaks: Sequence[Sequence[Peaks]]
    noise: Noise = field(default_factory=lambda: Noise(96, 1))
    side: int = 48
    share: float = 0.2

    def stream(self, rng: np.random.Generator) -> Iterator[Region]:
        """Yield regions without end."""
        while True:
            for region in self.of_sample(rng):
                if rng.random() < self.share:
                    yield self._of_cube(rng)
                yield region

    def of_sample(self, rng: np.random.Generator) -> list[Region]:
        """Return regions around the candidates of one sample, as many of each kind.

        A sample without nodules, or without false positives, gives one of the other kind.
        """
        which = int(rng.integers(len(self.screeners)))
        if rng.random() < WHOLE:
            number = self.composer.drawn_scan(rng)
            sample, peaks = self.composer.scans[number], self.peaks[which][number]
        else:
            sample = self.composer.draw(rng)
            peaks = peaks_of(self.screeners[which], sample.voxels)
        # the candidates that the edge would send; those on no mark are false
        near = peaks.index_zyx[peaks.logit > MIN_LOGIT]
        false = apart(peaks, sample, 2.0, MIN_LOGIT)
        # strong false candidates are drawn more often: the cloud is asked about these
        odds = 0.08 + sigmoid(false.logit + 2)
        # as many of each kind, so that the sample's composition does not tell the label
        count = min(len(sample.nodules), len(odds), EACH)
        others = list[Region]()
        if len(odds):
            some = min(max(count, 1), len(odds))
            chosen = rng.choice(len(odds), some, replace=False, p=odds / odds.sum())
            others = [self._cut(sample, np.append(false.index_zyx[i], 0.0), rng) for i in chosen]
        # nodules that the edge is unsure of are drawn more often, for the same reason
        sure = np.array([max(best_logit(peaks, one), MIN_LOGIT) for one in sample.nodules])
        odds = 0.15 + sigmoid(1 - sure)
        some = min(max(count, 1), len(odds))
        found = rng.choice(len(odds), some, replace=False, p=odds / odds.sum()) if some else ()
        nodules = [self._around(sample, sample.nodules[i], near, rng) for i in found]
        both = [*others, *nodules]
        return [both[i] for i in rng.permutation(len(both))]

    def _around(
        self, sample: Piece, nodule: FloatArray, candidates: FloatArray, rng: np.random.Generator
    ) -> Region:
        """Return a region around the candidate that hit a nodule; of a miss, around its middle."""
        hit = hit_of(nodule, candidates)
        at = nodule[:3] + rng.normal(0, 1.2, 3) if hit is None else hit
        return self._cut(sample, np.array([*at, nodule[3]]), rng)

    def _cut(self, sample: Piece, mark: FloatArray, rng: np.random.Generator) -> Region:
        """Cut a region around a mark of a sample that was composed and augmented already."""
        # candidates are off their nodules by about a millimetre, and so must the regions be
        at = mark[:3] + rng.normal(0, 0.8, 3)
        voxels, mask = (cut_roi(a, at, (self.side,) * 3) for a in (sample.voxels, sample.mask))
        whole = flip(Piece(voxels, mask, NONE, NONE), rng)
        if rng.random() < NEIGHBOURS:
            whole = self._with_neighbour(whole, max(float(mark[3]), 8.0), rng)
        voxels, mask = np.ascontiguousarray(whole.voxels), np.ascontiguousarray(whole.mask)
        return Region(voxels, mask, float(mark[3] > 0), float(mark[3]))

    def _with_neighbour(self, region: Piece, width_mm: float, rng: np.random.Generator) -> Piece:
        """Implant another nodule beside what lies in the middle, ``width_mm`` wide."""
        donor = self.composer.nodule(rng)
        middle = np.array([[*[(self.side - 1) / 2] * 3, width_mm]])
        donor = flip(resized(donor, rng), rng)
        return implanted(replace(region, nodules=middle), donor, rng, real=True)

    def _of_cube(self, rng: np.random.Generator) -> Region:
        """Return a region of a cube's own nodule, with its ratings and its outline."""
        number = self.composer.drawn(rng)
        cube = self.composer.cubes[number]
        # made smaller, it would not fill the region: its mirror images would
        cube = zoomed(cube, max(zoom_factor(cube, rng), 0.82))
        z, y, x, diameter = cube.nodules[0]
        at = np.array([z, y, x]) + rng.normal(0, 1.3 + 0.05 * diameter, 3)
        # the region is cut larger or smaller and scaled to its side, and its diameter with it
        factor = float(np.exp(rng.uniform(np.log(0.85), np.log(1.2))))
        size = (round(self.side / factor),) * 3
        voxels, mask = (cut_roi(a, at, size) for a in (cube.voxels, cube.mask))
        voxels, mask = (resize(a, self.side / size[0]) for a in (voxels, mask))
        whole = simulate_scanner(flip(Piece(voxels, mask, NONE, NONE), rng), rng)
        seen = self.noise.added(whole.voxels, rng) if rng.random() < 0.4 else whole.voxels
        diameter *= self.side / size[0]
        # scaled by more than this (natural logarithm) it is another nodule to a radiologist
        same = abs(np.log(diameter / self.composer.cubes[number].nodules[0, 3])) < 0.3
        malignancy, texture = self.ratings
        return Region(
            np.ascontiguousarray(seen), np.ascontiguousarray(whole.mask), np.nan, diameter,
            float(malignancy[number]) if same else np.nan, int(texture[number]), outlined=True,
        )  # fmt: skip


def as_sample(region: Region) -> dict[str, torch.Tensor]:
    """Return a region as what `hybrid_loss` takes, without batch axis."""
    return {
        "voxels": torch.from_numpy(region.voxels)[None],
        "nodule": torch.tensor(region.nodule, dtype=torch.float32),
        "log_diameter": torch.tensor(float(np.log(max(region.diameter_mm, 1.0)))),
        "sized": torch.tensor(float(region.diameter_mm > 0)),
        "malignancy": torch.tensor(region.malignancy, dtype=torch.float32),
        "texture": torch.tensor(region.texture),
        "mask": torch.from_numpy(region.mask)[None].float() / 255,
        "outlined": torch.tensor(float(region.outlined)),
    }
