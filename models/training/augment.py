"""Augmentation: the same piece under another scanner, dose, kernel or slice thickness."""

from dataclasses import replace

import cv2
import numpy as np

from imaging.volume import UInt8Array
from models.training.data import Piece, mirrored, zoomed

HU_PER_LEVEL = 1400 / 255


def flip(piece: Piece, rng: np.random.Generator, *, keep_head_up: bool = False) -> Piece:
    """Apply a random symmetry; whole lungs (``keep_head_up``) are not flipped upside down."""
    if keep_head_up:
        return mirrored(piece, (False, bool(rng.random() < 0.15), bool(rng.random() < 0.5)))
    z, y, x, swap = (bool(v) for v in rng.random(4) < 0.5)
    return mirrored(piece, (z, y, x), swap)


def zoom_factor(piece: Piece, rng: np.random.Generator) -> float:
    """Draw a factor: 1 in three of five cases, else near it; 12 mm and more may become a mass."""
    largest = float(piece.nodules[:, 3].max()) if len(piece.nodules) else 0.0
    # masses are rare in the cubes: magnified nodules stand in for them
    if 12 <= largest < 35 and rng.random() < 0.3:
        return float(rng.uniform(1.3, min(3.0, 60 / largest)))
    if rng.random() < 0.4:
        return float(np.exp(rng.uniform(np.log(0.82), np.log(1.25))))
    return 1.0


def resized(piece: Piece, rng: np.random.Generator) -> Piece:
    """Scale the piece by a `zoom_factor`."""
    factor = zoom_factor(piece, rng)
    return zoomed(piece, factor) if factor != 1.0 else piece


def thickened(voxels: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Simulate slices of 2 to 4 mm resampled to 1 mm."""
    depth = voxels.shape[0]
    columns = np.ascontiguousarray(voxels).reshape(depth, -1)
    # averaging along z is what a thick slice does; the way back is the edge's own resampling
    slices = max(4, round(depth / rng.uniform(1.8, 4.0)))
    thick = cv2.resize(columns, (columns.shape[1], slices), interpolation=cv2.INTER_AREA)
    thin = cv2.resize(thick, (columns.shape[1], depth), interpolation=cv2.INTER_LINEAR)
    return np.asarray(thin.reshape(voxels.shape), np.uint8)


def toned(voxels: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Change the HU scale: gain within 8 %, shift within 45 HU."""
    levels = np.arange(256, dtype=np.float32)
    # 256 levels: a table is faster than arithmetic on the voxels
    table = levels * rng.uniform(0.92, 1.08) + rng.uniform(-45, 45) / HU_PER_LEVEL
    table = np.clip(table, 0, 255).astype(np.uint8)
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
    image = np.ascontiguousarray(voxels).reshape(-1, voxels.shape[2])  # slices under each other
    # unsharp masking: adding the difference to the blurred image sharpens, subtracting it softens
    soft = cv2.GaussianBlur(image, (0, 0), sigma)
    out = cv2.addWeighted(image, 1 + amount, soft, -amount, 0)
    return np.asarray(out.reshape(voxels.shape), np.uint8)


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


def simulate_scanner(
    piece: Piece, rng: np.random.Generator, noise: Noise | None, *, thicken: float = 0.3
) -> Piece:
    """Simulate another scanner; each effect is applied in some of the cases."""
    voxels = piece.voxels
    if rng.random() < thicken:
        voxels = thickened(voxels, rng)
    if rng.random() < 0.3:
        voxels = kernelled(voxels, rng)
    if rng.random() < 0.7:
        voxels = toned(voxels, rng)
    if noise is not None and rng.random() < 0.4:
        voxels = noise.added(voxels, rng)
    return replace(piece, voxels=voxels)
