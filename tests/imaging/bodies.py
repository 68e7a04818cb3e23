"""Inputs of the tests: synthetic bodies, real series, and HU in the window of the networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK

from imaging.volume import WINDOW_HU, Geometry, Triple, UInt8Array, Volume

SPACING_MM = (3.0, 2.0, 2.0)
SHAPE = (96, 150, 192)
Mask = npt.NDArray[np.bool_]


def ellipsoid(centre_mm: Triple, radii_mm: Triple) -> Mask:
    """The voxels of the synthetic chest inside an ellipsoid, ``(z, y, x)`` mm from its middle."""
    grid = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    middle = [(n - 1) / 2 for n in SHAPE]
    parts = zip(grid, middle, SPACING_MM, centre_mm, radii_mm, strict=True)
    return np.asarray(sum((((g - m) * s - c) / r) ** 2 for g, m, s, c, r in parts) < 1)


def ramp(geometry: Geometry, shape: tuple[int, int, int]) -> Volume:
    """A volume whose HU is a linear function of the place in the patient."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = geometry.to_world(index)
    return Volume((world @ [2.0, -3.0, 1.5] - 300).round().astype(np.int16), geometry)


def to_window(hu: npt.NDArray[np.generic]) -> UInt8Array:
    """HU of any shape as uint8 of the window: round((HU - low) * 255 / (high - low)), clipped."""
    low, high = WINDOW_HU
    scaled = (hu.astype(np.float32) - low) * (255.0 / (high - low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def read_series(folder: Path) -> Volume:
    """The one series in ``folder``, whose axes are the patient's already."""
    reader = SimpleITK.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(folder))
    reader.SetFileNames(names)
    image = reader.Execute()
    (x, y, z), origin_mm = image.GetSpacing(), image.GetOrigin()
    hu = np.maximum(SimpleITK.GetArrayFromImage(image), -1024).astype(np.int16)
    return Volume(hu, Geometry((z, y, x), origin_mm))
