"""What the lungs are looked for in: the grid of synthetic bodies, and real series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK

from imaging.volume import Geometry, Triple, Volume

SPACING_MM = (3.0, 2.0, 2.0)
SHAPE = (96, 150, 192)
Mask = npt.NDArray[np.bool_]


def ellipsoid(centre_mm: Triple, radii_mm: Triple) -> Mask:
    """The voxels of the synthetic chest inside an ellipsoid, ``(z, y, x)`` mm from its middle."""
    grid = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    middle = [(n - 1) / 2 for n in SHAPE]
    parts = zip(grid, middle, SPACING_MM, centre_mm, radii_mm, strict=True)
    return np.asarray(sum((((g - m) * s - c) / r) ** 2 for g, m, s, c, r in parts) < 1)


def read_series(folder: Path) -> Volume:
    """The one series in ``folder``, whose axes are the patient's already."""
    reader = SimpleITK.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(folder))
    reader.SetFileNames(names)
    image = reader.Execute()
    (x, y, z), origin_mm = image.GetSpacing(), image.GetOrigin()
    hu = np.maximum(SimpleITK.GetArrayFromImage(image), -1024).astype(np.int16)
    return Volume(hu, Geometry((z, y, x), origin_mm))
