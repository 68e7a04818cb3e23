"""Composes the screening network's training samples, in which nodules may lie anywhere.

A cube has its nodule in the middle. Three compositions remove that bias: mosaics of many cubes cut
at random; one cube mirrored into its surroundings; and crops of whole scans with nodules implanted
(and pieces of vessel, so that the seam gives nothing away).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from imaging.volume import FloatArray, UInt8Array
from models.training.augment import Noise, resized, scanned_anew, turned, zoom_factor
from models.training.data import NONE, Piece, crop, zoomed

NODULE, IGNORED = (80, 220, 80), (150, 150, 150)
"""BGR of a circle around a nodule and around an ignored mark."""

SCALE = 2


@dataclass(frozen=True, eq=False)
class Composer:
    """Draws samples of ``side``^3 voxels.

    Attributes:
        cubes: pieces with their nodule in the middle.
        scans: whole lung boxes (real and phantoms), nodules marked.
        hard: hard negatives ``(n, 3)`` of each scan.
        shares: of mosaics, mirrored cubes and scans; they add up to 1.
    """

    cubes: Sequence[Piece]
    scans: Sequence[Piece]
    side: int = 96
    hard: Sequence[FloatArray] = ()
    shares: tuple[float, float, float] = (0.5, 0.15, 0.35)
    scan_weights: Sequence[float] = ()
    noise: Noise = field(default_factory=lambda: Noise(160, 0))

    def draw(self, rng: np.random.Generator) -> Piece:
        """Draw a sample of a random composition."""
        kind = rng.choice(3, p=self.shares)
        if kind == 0 or (kind == 2 and not self.scans):
            sample = self.mosaic(rng)
        elif kind == 1:
            sample = self.mirror(rng)
        else:
            sample = self.scan(rng)
        if rng.random() < 0.35:
            sample = replace(sample, voxels=self.noise.added(sample.voxels, rng))
        return sample

    def mosaic(self, rng: np.random.Generator) -> Piece:
        """Compose tiles of 20 to 40 voxels, each a random part of a random cube."""
        voxels = np.zeros((self.side,) * 3, np.uint8)
        mask = np.zeros_like(voxels)
        nodules, ignored = [NONE], [NONE]
        cuts = [_cuts(self.side, rng) for _ in range(3)]
        for (z0, z1), (y0, y1), (x0, x1) in product(*cuts):
            tile = self._tile(np.array([z1 - z0, y1 - y0, x1 - x0]), rng)
            voxels[z0:z1, y0:y1, x0:x1] = tile.voxels
            mask[z0:z1, y0:y1, x0:x1] = tile.mask
            shift = np.array([z0, y0, x0, 0])
            nodules.append(tile.nodules + shift)
            ignored.append(tile.ignored + shift)
        return Piece(voxels, mask, np.concatenate(nodules), np.concatenate(ignored))

    def mirror(self, rng: np.random.Generator) -> Piece:
        """Mirror one cube at its faces until it fills the sample, and crop at random."""
        cube = self._cube(rng)
        pad = self.side // 2
        wide = [np.pad(a, pad, mode="symmetric") for a in (cube.voxels, cube.mask)]
        marks = [_mirror_marks(m, cube.voxels.shape) + np.array([pad] * 3 + [0]) for m in
                 (cube.nodules, cube.ignored)]  # fmt: skip
        start = [int(rng.integers(n - self.side + 1)) for n in wide[0].shape]
        part = crop(Piece(wide[0], wide[1], marks[0], marks[1]), start, (self.side,) * 3)
        return _inside(part)

    def scan(self, rng: np.random.Generator) -> Piece:
        """Crop a whole scan, often at hard negatives, and implant nodules and vessels."""
        weights = np.asarray(self.scan_weights) if self.scan_weights else np.ones(len(self.scans))
        number = int(rng.choice(len(self.scans), p=weights / weights.sum()))
        scan = self.scans[number]
        factor = float(rng.uniform(0.85, 1.2)) if rng.random() < 0.4 else 1.0
        side = int(np.ceil(self.side / factor)) + 1
        part = _crop_padded(scan, self._centre(number, side, rng), side)
        part = zoomed(part, factor) if factor != 1.0 else part
        part = turned(crop(part, (0, 0, 0), (self.side,) * 3), rng, keep_head_up=True)
        part = scanned_anew(_inside(part), rng, None, thicken=0.15)
        for _ in range(int(rng.integers(0, 6))):
            part = implanted(part, self._cube(rng), rng, real=bool(rng.random() < 0.75))
        return part

    def _centre(self, number: int, side: int, rng: np.random.Generator) -> FloatArray:
        if len(self.hard) > number and len(self.hard[number]) and rng.random() < 0.5:
            return np.asarray(rng.choice(self.hard[number]) + rng.uniform(-side / 3, side / 3, 3))
        nodules = self.scans[number].nodules
        if len(nodules) and rng.random() < 0.15:
            return np.asarray(nodules[rng.integers(len(nodules)), :3] + rng.uniform(-30, 30, 3))
        return np.asarray(rng.uniform(0.1, 0.9, 3) * self.scans[number].voxels.shape)

    def _cube(self, rng: np.random.Generator) -> Piece:
        cube = self.cubes[int(rng.integers(len(self.cubes)))]
        return scanned_anew(turned(resized(cube, rng), rng), rng, None)

    def _tile(self, size: np.ndarray, rng: np.random.Generator) -> Piece:
        """Return a random part of a random cube, cropped before the costly augmentations."""
        cube = turned(self.cubes[int(rng.integers(len(self.cubes)))], rng)
        factor = zoom_factor(cube, rng)
        need = np.ceil(size / factor).astype(int) + 1
        if (need > cube.voxels.shape).any():
            factor = float((size / (np.array(cube.voxels.shape) - 1)).max()) + 0.01
            need = np.minimum(np.ceil(size / factor).astype(int) + 1, cube.voxels.shape)
        room = np.array(cube.voxels.shape) - need
        start = rng.integers(0, room + 1)
        if rng.random() < 0.6:  # the nodule anywhere in the tile
            start = np.rint(cube.nodules[0, :3] - rng.uniform(0.1, 0.9, 3) * need).astype(int)
        tile = crop(cube, np.clip(start, 0, room), need)
        tile = zoomed(tile, factor) if factor != 1.0 else tile
        tile = scanned_anew(crop(tile, (0, 0, 0), size), rng, None, thicken=0.25)
        return _inside(tile)


def implanted(part: Piece, donor: Piece, rng: np.random.Generator, *, real: bool) -> Piece:
    """Blend the donor's nodule, or (not ``real``) tissue beside it, into lung of ``part``.

    Returns ``part`` itself if no block of lung is large enough.
    """
    z, y, x, diameter = donor.nodules[0]
    mask, centre = donor.mask, np.array([z, y, x])
    if not real:
        shift = rng.choice([-1.0, 1.0], 3) * rng.uniform(0.7, 1.0, 3) * (diameter / 2 + 6)
        mask = ndimage.shift(mask, np.rint(shift), order=0)
        mask[donor.mask > 0] = 0
        centre = centre + np.rint(shift)
    box = _bounds(mask)
    if box is None:
        return part
    size = np.array([s.stop - s.start for s in box])
    start = _lung_block(part, size, rng)
    if start is None:
        return part
    mark = np.array([*(centre - [s.start for s in box] + start), diameter])
    return _blend(part, donor.voxels[box], mask[box], start, mark if real else None)


def _blend(
    part: Piece, voxels: np.ndarray, mask: np.ndarray, start: np.ndarray, mark: FloatArray | None
) -> Piece:
    # the mask, grown and softened, is the weight of the donor's voxels
    alpha = np.stack([cv2.GaussianBlur(m, (0, 0), 0.9) for m in cv2.dilate(mask, np.ones((3, 3)))])
    weight = alpha.astype(np.float32) / 255
    to = tuple(slice(a, a + n) for a, n in zip(start, mask.shape, strict=True))
    out, truth = part.voxels.copy(), part.mask.copy()
    out[to] = np.rint(weight * voxels + (1 - weight) * out[to]).astype(np.uint8)
    if mark is None:
        return Piece(out, truth, part.nodules, part.ignored)
    truth[to] = np.maximum(truth[to], mask)
    return Piece(out, truth, np.concatenate([part.nodules, mark[None]]), part.ignored)


def _lung_block(part: Piece, size: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Return the start of a block in lung, apart from nodules; None after ten tries."""
    room = np.array(part.voxels.shape) - size
    if (room <= 0).any():
        return None
    for _ in range(10):
        start = rng.integers(0, room)
        centre, reach = start + size / 2, size.max() / 2
        apart = np.linalg.norm(part.nodules[:, :3] - centre, axis=1) - part.nodules[:, 3] / 2
        block = part.voxels[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
        # the mean of lung is below -590 HU; outside the body more than 15 % is below -970 HU
        is_lung = 15 < block.mean() < 75 and (block < 6).mean() <= 0.15
        if is_lung and (apart > reach + 4).all():
            return np.asarray(start)
    return None


def _bounds(mask: np.ndarray, margin: int = 3) -> tuple[slice, slice, slice] | None:
    at = np.argwhere(mask)
    if len(at) == 0:
        return None
    low = np.maximum(at.min(0) - margin, 0)
    high = np.minimum(at.max(0) + 1 + margin, mask.shape)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return z, y, x


def _cuts(side: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Cut ``side`` into spans of 20 to 40."""
    edges = [0]
    while side - edges[-1] > 40:
        edges.append(edges[-1] + int(rng.integers(20, min(40, side - edges[-1] - 20) + 1)))
    return list(zip(edges, [*edges[1:], side], strict=True))


def _inside(part: Piece) -> Piece:
    """Drop marks outside; a nodule whose middle is at the border becomes an ignored mark."""
    shape = np.array(part.voxels.shape)
    depth = np.minimum(part.nodules[:, :3], shape - 1 - part.nodules[:, :3]).min(1, initial=1e9)
    whole = depth >= np.minimum(part.nodules[:, 3] / 2 - 1, 5)
    touching = (depth > -part.nodules[:, 3] / 2 - 3) & ~whole
    near = np.minimum(part.ignored[:, :3], shape - 1 - part.ignored[:, :3]).min(1, initial=1e9)
    ignored = part.ignored[near > -part.ignored[:, 3] / 2 - 3]
    ignored = np.concatenate([ignored, part.nodules[touching]])
    return Piece(part.voxels, part.mask, part.nodules[whole], ignored)


def _mirror_marks(marks: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Return each mark and its mirror images beyond both faces of every axis."""
    out = marks
    for axis, size in enumerate(shape):
        low, high = out.copy(), out.copy()
        low[:, axis] = -1 - low[:, axis]
        high[:, axis] = 2 * size - 1 - high[:, axis]
        out = np.concatenate([out, low, high])
    return out


def _crop_padded(scan: Piece, centre: FloatArray, side: int) -> Piece:
    """Crop a cube of ``side`` around ``centre``; beyond the scan there is air."""
    shape = np.array(scan.voxels.shape)
    start = np.rint(centre - side / 2).astype(int)
    start = np.where(shape > side, np.clip(start, -8, shape - side + 8), (shape - side) // 2)
    low, high = np.maximum(start, 0), np.minimum(start + side, shape)
    inner = crop(scan, low, high - low)
    pad = [(int(a), int(b)) for a, b in zip(low - start, start + side - high, strict=True)]
    shift = np.array([*(p[0] for p in pad), 0])
    return Piece(np.pad(inner.voxels, pad), np.pad(inner.mask, pad),
                 inner.nodules + shift, inner.ignored + shift)  # fmt: skip


def draw_samples(composer: Composer, columns: int, seed: int) -> UInt8Array:
    """Draw ``columns`` samples of each composition, as uint8 BGR ``(height, width, 3)``.

    Each is shown by the axial slice that most nodules cross.
    """
    rng = np.random.default_rng(seed)
    makers: list[tuple[str, Callable[[np.random.Generator], Piece]]] = [
        ("mosaic", composer.mosaic), ("mirrored", composer.mirror), ("scan", composer.scan)
    ]  # fmt: skip
    rows = [np.hstack([_picture(make(rng), name) for _ in range(columns)]) for name, make in makers]
    return np.asarray(np.vstack(rows), np.uint8)


def save_samples(path: Path, sheet: UInt8Array) -> None:
    """Write the sheet as PNG."""
    _, png = cv2.imencode(".png", sheet)
    path.write_bytes(png.tobytes())


def _picture(sample: Piece, name: str) -> UInt8Array:
    # the slice that most nodules cross, the middle one if there is none
    depth = sample.voxels.shape[0]
    away = np.abs(np.arange(depth)[:, None] - sample.nodules[:, 0])
    crossing = (away < sample.nodules[:, 3] / 2).sum(1)
    z = int(np.argmax(crossing)) if len(sample.nodules) else depth // 2
    size = tuple(SCALE * n for n in sample.voxels.shape[:0:-1])
    grey = cv2.resize(np.ascontiguousarray(sample.voxels[z]), size, interpolation=cv2.INTER_CUBIC)
    tile = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    # circles of the nodules' diameters on the slice
    for marks, colour in ((sample.ignored, IGNORED), (sample.nodules, NODULE)):
        for away, y, x, diameter in marks - np.array([z, 0, 0, 0]):
            if abs(away) <= max(diameter, 4) / 2:
                centre = (round(SCALE * (x + 0.5)), round(SCALE * (y + 0.5)))
                cv2.circle(tile, centre, round(SCALE * max(diameter, 4) / 2) + 2, colour, 1)
    cv2.putText(tile, name, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return np.asarray(np.pad(tile, ((0, 2), (0, 2), (0, 0)), constant_values=255), np.uint8)
