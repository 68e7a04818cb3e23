"""What the screening network should say of a sample, on its own grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.networks.screening import STRIDE
from models.training.piece import Piece

FloatMap = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Targets:
    """Maps of one sample on the network's grid ``(z, y, x)``.

    Attributes:
        heat: 1 at a nodule's centre, falling off as a Gaussian.
        weight: 0 where nothing is to be learnt (ignored marks), else 1.
        box: ``(4, z, y, x)``: offsets in cells and ln of the diameter, where ``near`` is not 0.
        near: the weight of the box terms: the heat where it is above one half.
        share: the share of the cell that is nodule.
    """

    heat: FloatMap
    weight: FloatMap
    box: FloatMap
    near: FloatMap
    share: FloatMap


def make_targets(sample: Piece) -> Targets:
    """The targets of a sample whose sides are multiples of `STRIDE`."""
    grid = tuple(n // STRIDE for n in sample.voxels.shape)
    heat, weight = np.zeros(grid, np.float32), np.ones(grid, np.float32)
    box = np.zeros((4, *grid), np.float32)
    centres = [(np.arange(n) + 0.5) * STRIDE - 0.5 for n in grid]
    for z, y, x, diameter in sample.ignored:
        away = _distance(centres, (z, y, x))
        weight[away < max(diameter / 2, 4.0) + 2.0] = 0
    for z, y, x, diameter in sample.nodules:
        away = _distance(centres, (z, y, x))
        sigma = float(np.clip(diameter / 4, 2.0, 8.0))
        bump = np.exp(-(away**2) / (2 * sigma**2)).astype(np.float32)
        bump[away <= max(float(away.min()), 0.15 * diameter)] = 1.0
        mine = bump > heat
        heat = np.maximum(heat, bump)
        weight[bump > 0.5] = 1
        for axis, (at, line) in enumerate(zip((z, y, x), centres, strict=True)):
            offset = ((at - line) / STRIDE).astype(np.float32)
            spread = offset.reshape([-1 if a == axis else 1 for a in range(3)])
            box[axis][mine] = np.broadcast_to(spread, grid)[mine]
        box[3][mine] = np.log(diameter)
    near = np.where(heat > 0.5, heat, 0).astype(np.float32)
    return Targets(heat, weight, box, near, _share(sample.mask, grid))


def _distance(
    centres: list[npt.NDArray[np.float64]], point: tuple[float, float, float]
) -> npt.NDArray[np.float64]:
    z, y, x = (line - at for line, at in zip(centres, point, strict=True))
    return np.asarray(np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2))


def _share(mask: npt.NDArray[np.uint8], grid: tuple[int, ...]) -> FloatMap:
    z, y, x = grid
    blocks = mask.reshape(z, STRIDE, y, STRIDE, x, STRIDE).mean((1, 3, 5), dtype=np.float32)
    return np.asarray(blocks / 255, np.float32)
