"""Pieces of lung with their truth: read, transformed, augmented and batched.

Every transformation moves the truth with the voxels.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from scipy import ndimage
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from imaging.preprocess import preprocess
from imaging.volume import FloatArray, UInt8Array
from models.data.cubes import neighbours_of, read_cubes
from models.data.folder import marked_scans, read_marked, spheres, stacked

NONE: FloatArray = np.zeros((0, 4))
"""No marks."""

HU_PER_LEVEL = 1400 / 255

DENSE = 150
"""From this level of the window on, -176 HU, a nodule is solid."""

Batch = dict[str, torch.Tensor]
Stream = Callable[[np.random.Generator], Iterator[Batch]]
"""Yields samples without end."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Voxels at 1 mm with their truth.

    Attributes:
        voxels: uint8 ``(z, y, x)`` of the HU window.
        mask: uint8 of the same shape, 255 where a nodule is.
        nodules: ``(n, 4)``: z, y, x in voxels and diameter in mm.
        ignored: the same for marks that count neither as nodule nor as false positive.
        name: of the scan, if it is a whole one.
    """

    voxels: UInt8Array
    mask: UInt8Array
    nodules: FloatArray
    ignored: FloatArray
    name: str = ""

    def moved(
        self, voxels: Callable[[UInt8Array], UInt8Array], marks: Callable[[FloatArray], FloatArray]
    ) -> "Piece":
        """Return the piece with voxels and mask changed alike, and the marks moved with them."""
        return Piece(
            voxels(self.voxels), voxels(self.mask), marks(self.nodules), marks(self.ignored)
        )


def crop(piece: Piece, start: npt.ArrayLike, size: npt.ArrayLike) -> Piece:
    """Return the part from ``start`` of ``size``; marks outside stay, in the part's coordinates."""
    first = np.asarray(start, dtype=int)
    box = tuple(slice(a, a + n) for a, n in zip(first, np.asarray(size, dtype=int), strict=True))
    shift = np.array([*first, 0.0])
    return piece.moved(lambda voxels: voxels[box], lambda marks: marks - shift)


def mirrored(piece: Piece, axes: tuple[bool, bool, bool], swap_yx: bool = False) -> Piece:
    """Flip along ``axes``; then exchange y and x."""
    flips = tuple(slice(None, None, -1) if flip else slice(None) for flip in axes)
    # of a mark: size - 1 - coordinate where the axis is flipped; the diameter stays
    signs = np.where([*axes, False], -1, 1)
    shift = np.where([*axes, False], np.array([*piece.voxels.shape, 0]) - 1, 0)
    flipped = piece.moved(lambda voxels: voxels[flips], lambda marks: marks * signs + shift)
    if not swap_yx:
        return flipped
    return flipped.moved(lambda voxels: voxels.transpose(0, 2, 1), lambda m: m[:, [0, 2, 1, 3]])


def zoomed(piece: Piece, factor: float) -> Piece:
    """Scale the piece by ``factor``, diameters too."""
    if factor == 1.0:
        return piece
    # whole voxels are left of it, so each axis has a factor of its own
    z, y, x = np.divide(_scaled(piece.voxels, factor), piece.voxels.shape).tolist()
    scale = np.array([z, y, x, np.cbrt(z * y * x)])
    shift = (scale - 1) / 2 * (1, 1, 1, 0)  # voxel centres lie at halves
    return piece.moved(lambda voxels: resize(voxels, factor), lambda marks: marks * scale + shift)


def _scaled(voxels: UInt8Array, factor: float) -> list[int]:
    return [max(4, round(n * factor)) for n in voxels.shape]


def resize(voxels: UInt8Array, factor: float) -> UInt8Array:
    """Scale uint8 ``(z, y, x)`` by ``factor`` along every axis, trilinear or averaged."""
    # along z first, with each column as a row of one image, then slice by slice in the plane
    z, y, x = _scaled(voxels, factor)
    how = cv2.INTER_AREA if factor < 0.7 else cv2.INTER_LINEAR  # small voxels are averaged
    deep = cv2.resize(np.ascontiguousarray(voxels).reshape(voxels.shape[0], -1),
                      (voxels[0].size, z), interpolation=how)  # fmt: skip
    out = np.empty((z, y, x), np.uint8)
    for image, target in zip(deep.reshape(z, *voxels.shape[1:]), out, strict=True):
        cv2.resize(image, (x, y), dst=target, interpolation=how)
    return out


def shifted(piece: Piece, parts: npt.ArrayLike) -> Piece:
    """Move the grid by ``parts`` (z, y, x) of a voxel, 0 to 1; one voxel of each axis is lost."""
    away = np.append(np.asarray(parts, float), 0.0)
    for axis, part in enumerate(away[:3].tolist()):
        piece = piece.moved(partial(_between, axis=axis, part=part), lambda marks: marks)
    return replace(piece, nodules=piece.nodules - away, ignored=piece.ignored - away)


def _between(voxels: UInt8Array, axis: int, part: float) -> UInt8Array:
    """Interpolate between neighbours along an axis."""
    # a mixture of each voxel with the next one: the grid lies ``part`` of a voxel further on
    before = (slice(None),) * axis
    low = np.ascontiguousarray(voxels[(*before, slice(None, -1))])
    high = np.ascontiguousarray(voxels[(*before, slice(1, None))])
    flat = (len(low), -1)
    mixed = cv2.addWeighted(low.reshape(flat), 1 - part, high.reshape(flat), part, 0)
    return np.asarray(mixed.reshape(low.shape), np.uint8)


@dataclass(frozen=True, eq=False)
class Cubes:
    """Cubes of one split, each with its nodule in the middle.

    Attributes:
        pieces: the cubes.
        patients: the patient of each.
        malignancy: the readers' mean rating, 1 to 5, ``(n,)``; NaN where it may be a neighbour's.
        texture: the same, 1 ground glass to 5 solid.
    """

    pieces: tuple[Piece, ...]
    patients: tuple[str, ...]
    malignancy: FloatArray
    texture: FloatArray


def load_cubes(folder: Path, split: str) -> Cubes:
    """Read the cubes of a split with their marks; errors as `models.data.cubes` states."""
    cubes = read_cubes(folder, (split,), ("match_mm", "malignancy_mean", "texture_mean"))
    pieces = []
    for cube, marks in zip(cubes, neighbours_of(folder, cubes), strict=True):
        beside = [mark.sphere for mark in marks if mark.must_be_found]
        nodules = stacked([[*cube.centre_zyx, cube.diameter_mm], *beside])
        # a voxel is nodule if two of the four readers outlined it
        mask = np.where(cube.votes >= 2, 255, 0).astype(np.uint8)
        ignored = spheres(mark for mark in marks if not mark.must_be_found)
        pieces.append(Piece(cube.voxels, mask, nodules, ignored))
    malignancy, texture = (
        np.array([cube.rated(name) for cube in cubes]) for name in ("malignancy", "texture")
    )
    return Cubes(tuple(pieces), tuple(cube.patient for cube in cubes), malignancy, texture)


def scans_of_role(data: Path, role: str) -> tuple[Piece, ...]:
    """Return the whole scans of a role, see `marked_scans`, as the edge preprocesses them.

    No outlines are known: a piece's mask is a ball for each nodule.
    """
    found = []
    for folder, marks in track(marked_scans(data, role), f"reading {role} scans"):
        study, *known = read_marked(folder, marks)
        box = preprocess(study.volume, folder)
        nodules, ignored = (
            np.column_stack([box.geometry.to_index(one[:, :3]), one[:, 3]]) for one in known
        )
        mask = balls(box.voxels.shape, nodules)
        found.append(Piece(box.voxels, mask, nodules, ignored, folder.name))
    return tuple(found)


def balls(shape: Sequence[int], marks: FloatArray) -> UInt8Array:
    """Return a mask ``(z, y, x)`` of 255 in a ball around each mark ``(n, 4)``."""
    mask = np.zeros(shape, np.uint8)
    for z, y, x, diameter in marks:
        # only the box around the ball is computed: a lung box has millions of voxels
        low = np.clip(np.floor(np.array([z, y, x]) - diameter / 2), 0, shape).astype(int)
        high = np.clip(np.ceil(np.array([z, y, x]) + diameter / 2) + 1, 0, shape).astype(int)
        part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        grid = np.indices(mask[part].shape) + low[:, None, None, None]
        away = ((grid - np.array([z, y, x])[:, None, None, None]) ** 2).sum(0)
        mask[part][away <= (diameter / 2) ** 2] = 255
    return mask


def draw_batches(stream: Stream, size: int, *, workers: int, seed: int) -> Iterator[Batch]:
    """Yield batches of ``size`` samples of ``stream``, by ``workers`` processes (0: this one)."""
    ahead = 6 if workers else None
    samples = _Samples(stream, seed)
    yield from DataLoader(samples, size, num_workers=workers, prefetch_factor=ahead)


class _Samples(IterableDataset[Batch]):
    def __init__(self, stream: Stream, seed: int) -> None:
        self._stream, self._seed = stream, seed

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        if info is not None:
            cv2.setNumThreads(0)
            os.nice(6)  # the loaders leave the cores to the training
        return self._stream(np.random.default_rng((self._seed, info.id if info else 0)))


def flip(piece: Piece, rng: np.random.Generator, *, keep_head_up: bool = False) -> Piece:
    """Apply a random symmetry; whole lungs (``keep_head_up``) are not flipped upside down."""
    if keep_head_up:
        return mirrored(piece, (False, bool(rng.random() < 0.15), bool(rng.random() < 0.5)))
    z, y, x, swap = (bool(v) for v in rng.random(4) < 0.5)
    return mirrored(piece, (z, y, x), swap)


def zoom_factor(piece: Piece, rng: np.random.Generator) -> float:
    """Draw a factor: 1 in three of five cases, else near it.

    Nodules of 12 mm and more may become a mass, those of 6 to 16 mm may become small.
    """
    largest = float(piece.nodules[:, 3].max()) if len(piece.nodules) else 0.0
    if 6 <= largest < 16 and rng.random() < 0.3:
        return float(rng.uniform(3.5, 6.0)) / largest
    # masses are rare in the cubes: magnified nodules stand in for them
    if 12 <= largest < 35 and rng.random() < 0.3:
        return float(rng.uniform(1.3, min(3.0, 60 / largest)))
    if rng.random() < 0.4:
        return float(np.exp(rng.uniform(np.log(0.82), np.log(1.25))))
    return 1.0


def resized(piece: Piece, rng: np.random.Generator) -> Piece:
    """Scale the piece by a `zoom_factor`."""
    return zoomed(piece, zoom_factor(piece, rng))


def hollowed(piece: Piece, rng: np.random.Generator) -> Piece:
    """Fill the core of the piece's first nodule with air: a cavity, or a bubble of it."""
    low = np.floor(piece.nodules[0, :3] - piece.nodules[0, 3]).astype(int)
    high = np.ceil(piece.nodules[0, :3] + piece.nodules[0, 3]).astype(int) + 1
    box = tuple(slice(max(a, 0), b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    depth = ndimage.distance_transform_edt((piece.mask[box] > 0) & (piece.voxels[box] > DENSE))
    core = (depth > rng.uniform(0.25, 0.7) * depth.max()).astype(np.float32)
    if core.sum() < 30:  # nothing is dense and thick enough
        return piece
    weight = ndimage.gaussian_filter(core, 0.8)
    air = rng.uniform(0, 40)
    voxels = piece.voxels.copy()
    # what is mixed in keeps a tenth of the texture, as noise goes on in air
    part = voxels[box].astype(np.float32)
    texture = 0.1 * (part - part[core > 0].mean())
    voxels[box] = np.rint((1 - weight) * part + weight * (air + texture)).clip(0, 255)
    return replace(piece, voxels=voxels)


def thickened(
    voxels: UInt8Array, rng: np.random.Generator, thick_mm: tuple[float, float] = (2.5, 6.0)
) -> UInt8Array:
    """Simulate slices as thick as ``thick_mm``, from and to, resampled to 1 mm."""
    depth = voxels.shape[0]
    columns = np.ascontiguousarray(voxels).reshape(depth, -1)
    # averaging along z is what a thick slice does; the way back is the edge's own resampling
    slices = max(4, round(depth / rng.uniform(*thick_mm)))
    thick = cv2.resize(columns, (columns.shape[1], slices), interpolation=cv2.INTER_AREA)
    thin = cv2.resize(thick, (columns.shape[1], depth), interpolation=cv2.INTER_LINEAR)
    return np.asarray(thin.reshape(voxels.shape), np.uint8)


def toned(
    voxels: UInt8Array, rng: np.random.Generator, gain: float = 0.08, hu: float = 45.0
) -> UInt8Array:
    """Change the HU scale: a gain within ``gain`` of 1, a shift within ``hu``."""
    levels = np.arange(256, dtype=np.float32)
    # 256 levels: a table is faster than arithmetic on the voxels
    table = levels * rng.uniform(1 - gain, 1 + gain) + rng.uniform(-hu, hu) / HU_PER_LEVEL
    table = np.rint(np.clip(table, 0, 255)).astype(np.uint8)
    return np.asarray(cv2.LUT(np.ascontiguousarray(voxels).ravel(), table), np.uint8).reshape(
        voxels.shape
    )


def kernelled(voxels: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Simulate a softer or sharper reconstruction kernel, in the plane.

    The sharpest overshoot at edges and double the noise, as lung and bone kernels do.
    """
    sigma, amount = float(rng.uniform(0.5, 1.0)), float(rng.uniform(-1.0, 1.2))
    if rng.random() < 0.3:
        amount = float(rng.uniform(1.2, 2.4))
    image = np.ascontiguousarray(np.moveaxis(voxels, 0, -1))  # slices as the channels of one image
    # unsharp masking: adding the difference to the blurred image sharpens, subtracting it softens
    soft = cv2.GaussianBlur(image, (0, 0), sigma)
    out = cv2.addWeighted(image, 1 + amount, soft, -amount, 0)
    return np.ascontiguousarray(np.moveaxis(out.reshape(image.shape), -1, 0))


class Noise:
    """A bank of noise that samples cut theirs from: white, soft, and that of sharp kernels.

    Each is there as it is and smooth along z, as interpolated thick slices have it.
    """

    def __init__(self, size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        # made once, since drawing noise for every sample takes longer than the network; levels of
        # 1/24 standard deviation fit int16
        white = rng.standard_normal((size, size, size)).astype(np.float32)
        soft = np.stack([cv2.GaussianBlur(image, (0, 0), 1.0) for image in white])
        sharp = white - np.stack([cv2.GaussianBlur(image, (0, 0), 0.8) for image in white])
        bank = np.stack([white, soft, sharp, *(_along_z(noise) for noise in (white, soft, sharp))])
        bank /= bank.std((1, 2, 3), keepdims=True)
        self._bank = np.clip(np.rint(bank * 24), -127, 127).astype(np.int16)

    def added(self, voxels: UInt8Array, rng: np.random.Generator) -> UInt8Array:
        """Add noise of 3 to 70 HU standard deviation."""
        bank = self._bank[int(rng.integers(len(self._bank)))]
        start = [int(rng.integers(bank.shape[0] - n + 1)) for n in voxels.shape]
        piece = bank[tuple(slice(a, a + n) for a, n in zip(start, voxels.shape, strict=True))]
        level = float(np.exp(rng.uniform(np.log(3), np.log(70)))) / HU_PER_LEVEL / 24
        noise = np.rint(piece * np.float32(level)).astype(np.int16)
        return np.asarray(np.clip(voxels + noise, 0, 255).astype(np.uint8))


def _along_z(noise: np.ndarray) -> np.ndarray:
    """Correlate noise along z, as slices of 2.5 mm interpolated to 1 mm do."""
    columns = np.ascontiguousarray(noise).reshape(noise.shape[0], -1)
    return np.asarray(cv2.GaussianBlur(columns, (1, 0), 0.001, sigmaY=1.0)).reshape(noise.shape)


def simulate_scanner(piece: Piece, rng: np.random.Generator, *, thicken: float = 0.3) -> Piece:
    """Simulate another scanner but for its noise; each effect is applied in some of the cases."""
    voxels = piece.voxels
    if rng.random() < thicken:
        voxels = thickened(voxels, rng, (1.8, 4.0))
    if rng.random() < 0.3:
        voxels = kernelled(voxels, rng)
    if rng.random() < 0.7:
        voxels = toned(voxels, rng)
    return replace(piece, voxels=voxels)
