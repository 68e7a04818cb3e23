"""Composes the screening network's training samples: no way of composing tells the label.

A cube has its nodule in the middle, and a whole scan has hardly any. So each composition is made of
both, with and without nodules in the same proportion: mosaics of tiles cut at random from cubes and
from scans; crops of whole scans with nodules, or tissue beside them, implanted by their outline;
and crops of whole scans into which blocks of cubes and of other scans are planted with feathered
edges. Any sample may end at a random place in air, and its grid lies at any fraction of a voxel.

A fourth kind are crops of scans as they are. They hold nodules where the scans are copies with
insertions, see `models.training.insertions`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import product

import numpy as np
from scipy import ndimage

from imaging.morphology import dilate, squared_distance
from imaging.volume import FloatArray, UInt8Array
from models.training.data import (
    NONE,
    Cubes,
    Noise,
    Piece,
    crop,
    flip,
    hollowed,
    resized,
    shifted,
    simulate_scanner,
    thickened,
    zoom_factor,
    zoomed,
)

SOLID = 4.0
"""The readers' mean texture from which on a nodule is solid."""

AIR, LUNG = 6, 75
"""Voxels of lung are between these levels of the window: -970 and -590 HU."""

WALL, SOFT = 109, 189
"""Levels from which on a voxel is wall or vessel, -400 HU, and soft tissue, 40 HU."""


@dataclass(frozen=True, eq=False)
class Composer:
    """Draws samples of ``side``^3 voxels.

    Attributes:
        cubes: pieces with their nodule in the middle.
        odds: how often each cube is drawn, see `odds_of`; empty for all alike.
        scans: whole lung boxes, nodules marked.
        hard: hard negatives ``(n, 3)`` of each scan.
        shares: of mosaics, scans with implants, scans with planted blocks, and scans as they are;
            they add up to 1.
    """

    cubes: Sequence[Piece]
    scans: Sequence[Piece]
    side: int = 96
    hard: Sequence[FloatArray] = ()
    shares: tuple[float, ...] = (0.3, 0.25, 0.2, 0.25)
    scan_weights: Sequence[float] = ()
    noise: Noise = field(default_factory=cache(partial(Noise, 160, 0)))  # one for all
    odds: FloatArray = field(default_factory=lambda: np.zeros(0))

    def draw(self, rng: np.random.Generator) -> Piece:
        """Draw a sample of a random composition."""
        makers = (self.mosaic, self.scan, self.planted, self.ground)
        # thick slices, noise and an end in air come last and over every composition alike: none
        # tells how a sample was made
        sample = makers[int(rng.choice(len(makers), p=self.shares))](rng)
        if rng.random() < 0.45:
            sample = replace(sample, voxels=thickened(sample.voxels, rng))
        if rng.random() < 0.35:
            sample = replace(sample, voxels=self.noise.added(sample.voxels, rng))
        return ended(sample, rng) if rng.random() < 0.15 else sample

    def drawn(self, rng: np.random.Generator) -> int:
        """Draw the number of a cube."""
        if not len(self.odds):
            return int(rng.integers(len(self.cubes)))
        rising = np.cumsum(self.odds)
        return int(np.searchsorted(rising, rng.random() * rising[-1]))

    def drawn_scan(self, rng: np.random.Generator) -> int:
        """Draw the number of a whole scan."""
        weights = np.asarray(self.scan_weights) if self.scan_weights else np.ones(len(self.scans))
        return int(rng.choice(len(self.scans), p=weights / weights.sum()))

    def nodule(self, rng: np.random.Generator) -> Piece:
        """Draw a cube; some large solid nodules get a cavity."""
        cube = self.cubes[self.drawn(rng)]
        return hollowed(cube, rng) if cube.nodules[0, 3] >= 12 and rng.random() < 0.2 else cube

    def mosaic(self, rng: np.random.Generator) -> Piece:
        """Compose tiles of 20 to 40 voxels, each a random part of a random cube or scan."""
        voxels, mask = np.zeros((2, *(self.side,) * 3), np.uint8)
        nodules, ignored = [NONE], [NONE]
        # the cuts of the three axes make a grid of boxes; each is filled with another piece of lung
        cuts = [_cuts(self.side, rng) for _ in range(3)]
        for (z0, z1), (y0, y1), (x0, x1) in product(*cuts):
            tile = self._block(np.array([z1 - z0, y1 - y0, x1 - x0]), rng)
            voxels[z0:z1, y0:y1, x0:x1] = tile.voxels
            mask[z0:z1, y0:y1, x0:x1] = tile.mask
            # marks move from the tile's coordinates to the sample's; the diameter stays
            shift = np.array([z0, y0, x0, 0])
            nodules.append(tile.nodules + shift)
            ignored.append(tile.ignored + shift)
        return Piece(voxels, mask, np.concatenate(nodules), np.concatenate(ignored))

    def scan(self, rng: np.random.Generator) -> Piece:
        """Crop a whole scan, often at hard negatives, and implant nodules and tissue."""
        part = self.ground(rng)
        for _ in range(int(rng.integers(0, 6))):
            # tissue is implanted in the same way as nodules: the seam must not tell them apart
            cube = _off_grid(resized(self.nodule(rng), rng), rng)
            donor = simulate_scanner(flip(cube, rng), rng)
            part = implanted(part, donor, rng, real=bool(rng.random() < 0.6))
        return part

    def planted(self, rng: np.random.Generator) -> Piece:
        """Crop a whole scan and plant two to five blocks of cubes and of other scans in it."""
        part = self.ground(rng)
        for _ in range(int(rng.integers(2, 6))):
            size = rng.integers(26, 47, 3)
            start = rng.integers(0, self.side - size + 1)
            # a sharp edge would be learned as a sign of a nodule: its width is drawn
            feather = float(rng.uniform(0.5, 5.0))
            part = with_block(part, self._block(size, rng), start, feather)
        return part

    def ground(self, rng: np.random.Generator) -> Piece:
        """Return a crop of a whole scan under another scanner."""
        part = flip(self._crop(np.full(3, self.side), rng), rng, keep_head_up=True)
        return simulate_scanner(_inside(part), rng, thicken=0.15)

    def _crop(self, size: np.ndarray, rng: np.random.Generator) -> Piece:
        """Return a block of a scan, scaled, its grid shifted by a part of a voxel."""
        factor = float(rng.uniform(0.85, 1.2)) if rng.random() < 0.4 else 1.0
        number = self.drawn_scan(rng)
        # two voxels more: scaling and shifting lose one at a face
        side = int(np.ceil(size.max() / factor)) + 2
        part = _crop_padded(self.scans[number], self._centre(number, side, rng), side)
        return crop(_off_grid(zoomed(part, factor), rng), (0, 0, 0), size)

    def _centre(self, number: int, side: int, rng: np.random.Generator) -> FloatArray:
        reach = min(side, 90) / 3
        if len(self.hard) > number and len(self.hard[number]) and rng.random() < 0.6:
            return np.asarray(rng.choice(self.hard[number]) + rng.uniform(-reach, reach, 3))
        nodules = self.scans[number].nodules
        if rng.random() < min(0.15 * len(nodules), 0.5):
            return np.asarray(
                nodules[rng.integers(len(nodules)), :3] + rng.uniform(-reach, reach, 3)
            )
        voxels = self.scans[number].voxels
        for _ in range(4):  # mostly in lung
            at = rng.uniform(0.05, 0.95, 3) * voxels.shape
            if AIR < voxels[tuple(at.astype(int))] < LUNG:
                break
        return np.asarray(at)

    def _block(self, size: np.ndarray, rng: np.random.Generator) -> Piece:
        """Return a block of a cube or, as often, of a whole scan."""
        if not self.scans or rng.random() < 0.5:
            return self._part_of_cube(size, rng)
        part = flip(self._crop(np.full(3, size.max()), rng), rng)  # as a cube is: any symmetry
        return _inside(simulate_scanner(crop(part, (0, 0, 0), size), rng, thicken=0.25))

    def _part_of_cube(self, size: np.ndarray, rng: np.random.Generator) -> Piece:
        """Return a random part of a random cube, cropped before the costly augmentations."""
        cube = flip(self.nodule(rng), rng)
        factor = zoom_factor(cube, rng)
        # a cube that is too small for the block is enlarged until it fills it
        need = np.ceil(size / factor).astype(int) + 2
        if (need > cube.voxels.shape).any():
            factor = float((size / (np.array(cube.voxels.shape) - 2)).max()) + 0.01
            need = np.minimum(np.ceil(size / factor).astype(int) + 2, cube.voxels.shape)
        room = np.array(cube.voxels.shape) - need
        start = rng.integers(0, room + 1)
        if rng.random() < 0.6:  # the nodule anywhere in the block
            start = np.rint(cube.nodules[0, :3] - rng.uniform(0.1, 0.9, 3) * need).astype(int)
        block = crop(cube, np.clip(start, 0, room), need)
        block = crop(_off_grid(zoomed(block, factor), rng), (0, 0, 0), size)
        return _inside(simulate_scanner(block, rng, thicken=0.25))


def odds_of(cubes: Cubes) -> FloatArray:
    """Return how often each cube is drawn ``(n,)``: rare kinds of nodules more often.

    Those that are not solid four times as often, those of 12 mm and more twice.
    """
    diameter = np.array([piece.nodules[0, 3] for piece in cubes.pieces])
    return np.where(cubes.texture < SOLID, 4.0, 1.0) * np.where(diameter >= 12, 2.0, 1.0)


def _off_grid(part: Piece, rng: np.random.Generator) -> Piece:
    """Shift the grid by a random part of a voxel, in half of the cases."""
    return shifted(part, rng.random(3)) if rng.random() < 0.5 else part


def with_block(part: Piece, block: Piece, start: np.ndarray, feather: float) -> Piece:
    """Plant a block in a piece, its edges mixed over ``feather`` voxels.

    Marks of the piece whose middle the block covers are gone; those that it touches are ignored.
    """
    size = np.array(block.voxels.shape)
    to = tuple(slice(int(a), int(a + n)) for a, n in zip(start, size, strict=True))
    # the weight rises from the faces inwards and is that of the nearest face
    ramps = [np.minimum((np.minimum(np.arange(n), np.arange(n)[::-1]) + 1) / (feather + 1), 1.0)
             for n in size]  # fmt: skip
    weight = np.minimum(np.minimum(ramps[0][:, None, None], ramps[1][None, :, None]), ramps[2])
    voxels, mask = part.voxels.copy(), part.mask.copy()
    weight = weight.astype(np.float32)
    voxels[to] = np.rint(weight * block.voxels + (1 - weight) * voxels[to]).astype(np.uint8)
    mask[to] = np.where(weight > 0.5, block.mask, mask[to])
    kept = [_outside(marks, start, size) for marks in (part.nodules, part.ignored)]
    shift = np.array([*start, 0.0])
    inside = _inside(block)
    return Piece(
        voxels, mask,
        np.concatenate([kept[0][0], inside.nodules + shift]),
        np.concatenate([kept[0][1], kept[1][0], kept[1][1], inside.ignored + shift]),
    )  # fmt: skip


def _outside(
    marks: FloatArray, start: np.ndarray, size: np.ndarray
) -> tuple[FloatArray, FloatArray]:
    """Split marks into those apart from a block and those that touch it, but for those within."""
    at = marks[:, :3] - start
    # per axis, how far the mark's middle lies outside the block; 0 within
    beyond = np.maximum(np.maximum(-at, at - (size - 1)), 0)
    away = np.linalg.norm(beyond, axis=1) - marks[:, 3] / 2  # from the rim to the block
    depth = np.minimum(at, size - 1 - at).min(1, initial=1e9)
    apart = away > 1.0
    return marks[apart], marks[~apart & (depth < marks[:, 3] / 2)]


def ended(part: Piece, rng: np.random.Generator) -> Piece:
    """Let a sample end in air outside a random box of at least 48 voxels a side."""
    shape = np.array(part.voxels.shape)
    size = np.minimum(rng.integers(48, shape + 1), shape)
    return _in_air(part, rng.integers(0, shape - size + 1), size)


def cut_out(part: Piece, rng: np.random.Generator) -> Piece:
    """Let a sample end in air around one of its nodules, as a cube of 48 to 60 voxels does."""
    shape = np.array(part.voxels.shape)
    size = np.minimum(rng.integers(48, 61, 3), shape)
    middle = rng.uniform(0.3, 0.7, 3) * shape
    if len(part.nodules):
        middle = part.nodules[rng.integers(len(part.nodules)), :3]
    start = np.rint(middle - size * rng.uniform(0.35, 0.65, 3)).astype(int)
    return _in_air(part, np.clip(start, 0, shape - size), size)


def _in_air(part: Piece, start: np.ndarray, size: np.ndarray) -> Piece:
    inner = _inside(crop(part, start, size))
    pad = np.column_stack([start, np.array(part.voxels.shape) - start - size])
    shift = np.array([*start, 0.0])
    return inner.moved(lambda voxels: np.pad(voxels, pad), lambda marks: marks + shift)


def implanted(part: Piece, donor: Piece, rng: np.random.Generator, *, real: bool) -> Piece:
    """Blend the donor's nodule, or (not ``real``) tissue beside it, into lung of ``part``.

    Its lung takes on the density and the noise of the host's.
    Returns ``part`` itself if no block of lung is large enough.
    """
    z, y, x, diameter = donor.nodules[0]
    # an edge of one width, at one distance, would be learned as a sign of an implant
    edge = (float(rng.uniform(0.7, 3.0)), float(rng.uniform(1.5, 4.0)))
    margin = int(np.ceil(sum(edge)))
    mask = donor.mask
    if not real:
        mask = beside(mask, diameter, margin, rng)
    inside = np.argwhere(mask > 127)
    if len(inside) == 0:
        return part
    low = np.maximum(inside.min(0) - margin, 0)
    high = np.minimum(inside.max(0) + margin + 1, mask.shape)
    start = _lung_block(part, high - low, rng)
    if start is None:
        return part
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    mark = np.array([*(np.array([z, y, x]) - low + start), diameter])
    return _blend(part, donor.voxels[box], mask[box], start, mark if real else None, edge)


def beside(
    mask: UInt8Array, diameter_mm: float, margin: int, rng: np.random.Generator
) -> UInt8Array:
    """Move a nodule's outline beside it: tissue of the same shape that holds no nodule."""
    shift = rng.choice([-1.0, 1.0], 3) * rng.uniform(0.7, 1.0, 3) * (diameter_mm / 2 + 6)
    moved: UInt8Array = ndimage.shift(mask, np.rint(shift), order=0)
    moved[dilate((mask > 0).astype(np.uint8), margin) > 0] = 0
    # at a face of the cube the edge would end in a straight cut
    inner = tuple(slice(margin, n - margin) for n in mask.shape)
    return np.pad(moved[inner], margin)


def _blend(
    part: Piece, voxels: np.ndarray, mask: np.ndarray, start: np.ndarray, mark: FloatArray | None,
    edge: tuple[float, float],
) -> Piece:  # fmt: skip
    """Blend voxels at ``start``; ``edge``: where they begin to fade off the mask, and how wide."""
    to = tuple(slice(a, a + n) for a, n in zip(start, mask.shape, strict=True))
    out, truth = part.voxels.copy(), part.mask.copy()
    away = np.sqrt(squared_distance((mask > 127).astype(np.uint8), 8))
    host, around = part.voxels[to].astype(np.float32), away > 2
    donor = _adapted(voxels.astype(np.float32), host, around)
    # a wall beside it stays behind
    keep, fade = edge if (voxels[around] > WALL).mean() < 0.15 else (0.7, 1.5)
    weight = np.clip((keep + fade - away) / fade, 0, 1)
    mixed = host + weight**2 * (3 - 2 * weight) * (donor - host)
    # the host's vessels end at the nodule, not before
    mixed = np.where((host > WALL) & (mask <= 127), np.maximum(mixed, host), mixed)
    out[to] = np.rint(mixed).clip(0, 255)
    if mark is None:
        return Piece(out, truth, part.nodules, part.ignored)
    truth[to] = np.maximum(truth[to], mask)
    return Piece(out, truth, np.concatenate([part.nodules, mark[None]]), part.ignored)


def _adapted(donor: np.ndarray, host: np.ndarray, around: np.ndarray) -> np.ndarray:
    """Give the donor's lung the density and the noise that the host's has ``around`` it."""
    lung, grain, fine = _lung_of(donor, around)
    wanted, host_grain, host_fine = _lung_of(host, around)
    # soft tissue keeps its density; what is between is a mixture of both, as a nodule's rim is
    out = np.where(donor < SOFT, SOFT - (SOFT - donor) * (SOFT - wanted) / (SOFT - lung), donor)
    if grain > host_grain:
        # what is stronger than noise stays: edges
        return np.asarray(out - (1 - host_grain / grain) * fine.clip(-2 * grain, 2 * grain))
    # the host's own noise from elsewhere, without its vessels
    added = host_fine[::-1, ::-1, ::-1].clip(-3 * host_grain, 3 * host_grain)
    return np.asarray(out + added * np.sqrt(1 - (grain / host_grain) ** 2))


def _lung_of(voxels: np.ndarray, around: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Return density and noise of the lung ``around``, in levels, and the fine texture of all."""
    fine = voxels - ndimage.gaussian_filter(voxels, 1.0)
    lung = around & (voxels < LUNG)
    if lung.sum() < 30:
        return 27.0, 0.5, fine  # -850 HU, hardly any noise
    # the median is that of noise: vessels are few
    return float(np.median(voxels[lung])), 1.5 * float(np.median(np.abs(fine[lung]))) + 0.1, fine


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
        is_lung = 15 < block.mean() < LUNG and (block < AIR).mean() <= 0.15
        if is_lung and (apart > reach + 1).all():
            return np.asarray(start)
    return None


def _cuts(side: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Cut ``side`` into spans of 20 to 40."""
    edges = [0]
    while side - edges[-1] > 40:
        edges.append(edges[-1] + int(rng.integers(20, min(40, side - edges[-1] - 20) + 1)))
    return list(zip(edges, [*edges[1:], side], strict=True))


def _inside(part: Piece) -> Piece:
    """Drop marks outside; a nodule whose middle is at the border becomes an ignored mark."""
    shape = np.array(part.voxels.shape)
    # how deep each nodule's middle lies: nearer to a face than its radius (5 at most) it is cut,
    # and half a nodule teaches neither nodule nor tissue
    depth = np.minimum(part.nodules[:, :3], shape - 1 - part.nodules[:, :3]).min(1, initial=1e9)
    whole = depth >= np.minimum(part.nodules[:, 3] / 2 - 1, 5)
    touching = (depth > -part.nodules[:, 3] / 2 - 3) & ~whole
    near = np.minimum(part.ignored[:, :3], shape - 1 - part.ignored[:, :3]).min(1, initial=1e9)
    ignored = part.ignored[near > -part.ignored[:, 3] / 2 - 3]
    ignored = np.concatenate([ignored, part.nodules[touching]])
    return Piece(part.voxels, part.mask, part.nodules[whole], ignored)


def _crop_padded(scan: Piece, centre: FloatArray, side: int) -> Piece:
    """Crop a cube of ``side`` around ``centre``; beyond the scan there is air."""
    shape = np.array(scan.voxels.shape)
    start = np.rint(centre - side / 2).astype(int)
    # up to 8 voxels of air beyond a face; a scan smaller than the cube is centred
    start = np.where(shape > side, np.clip(start, -8, shape - side + 8), (shape - side) // 2)
    low, high = np.maximum(start, 0), np.minimum(start + side, shape)
    inner = crop(scan, low, high - low)
    if not (high - low < side).any():
        return inner
    pad = [(int(a), int(b)) for a, b in zip(low - start, start + side - high, strict=True)]
    shift = np.array([*(p[0] for p in pad), 0])
    return inner.moved(lambda voxels: np.pad(voxels, pad), lambda marks: marks + shift)
