"""Ground glass and consolidation, drawn into the lungs of a scan."""

import numpy as np

from imaging.lungs import find_lungs
from imaging.volume import HuArray, Triple


def with_patches(
    hu: HuArray,
    spacing_mm: Triple,
    *,
    count: int,
    radius_mm: float,
    hu_of_patch: float,
    seed: int = 1,
) -> HuArray:
    """Fill ``count`` balls in the lungs with tissue of ``hu_of_patch``; vessels shine through.

    Their edges are soft over 6 mm. Ground glass has about -600 HU, consolidation 20 HU.
    """
    rng = np.random.default_rng(seed)
    air = find_lungs(hu, spacing_mm, "host").air
    picks = [(np.arange(n) * m) // n for n, m in zip(hu.shape, air.shape, strict=True)]
    inside = air[np.ix_(*picks)] > 0
    cells = np.argwhere(air)
    distance = np.full(hu.shape, np.inf, np.float32)
    grid = np.ogrid[tuple(slice(0, n) for n in hu.shape)]
    for cell in cells[rng.choice(len(cells), count)]:
        centre = cell * np.array(hu.shape) / np.array(air.shape)
        steps = (((g - c) * s) ** 2 for g, c, s in zip(grid, centre, spacing_mm, strict=True))
        distance = np.minimum(distance, np.sqrt(sum(steps)) - radius_mm).astype(np.float32)
    weight = np.clip(0.5 - distance / 6, 0, 1) * inside
    tissue = np.maximum(hu, hu_of_patch + 15 * rng.standard_normal(hu.shape))
    return np.asarray(np.rint(hu * (1 - weight) + tissue * weight).astype(np.int16))
