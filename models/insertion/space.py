"""The free lung of a scan: how far each point in it is from wall and mediastinum."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from imaging.morphology import opened
from imaging.preprocess import Preprocessed
from imaging.volume import HuArray, Triple, from_window, triple

CELL = 2
"""Voxels of the lung box a cell, along each axis."""

_DENSE_HU = -400
_VESSEL_CELLS = 2.5
"""Radius of the thickest vessel that an insertion may lie across: 5 mm."""

_LUNG_HU = (-960.0, -600.0)
"""Range of the mean around a location in lung; windpipe and air outside the body lie below."""

_TRIES = 300


@dataclass(frozen=True)
class Occupied:
    """A location that is not free, ``(x, y, z)`` LPS mm, with the distance to keep from it."""

    centre_mm: Triple
    reach_mm: float


@dataclass(frozen=True, eq=False)
class FreeSpace:
    """The free lung of one lung box, in cells of `CELL` voxels ``(z, y, x)``.

    ``clear_mm`` is the distance of each cell to the nearest wall, 0 in it.
    """

    box: Preprocessed
    hu: HuArray
    clear_mm: npt.NDArray[np.float32]

    @classmethod
    def of(cls, box: Preprocessed) -> "FreeSpace":
        """Measure the free space of a lung box; beyond its faces is wall."""
        hu = from_window(np.ascontiguousarray(box.voxels[::CELL, ::CELL, ::CELL]))
        dense = (hu > _DENSE_HU).astype(np.uint8)
        # opening removes vessels: what stays is wall, mediastinum and large nodules
        wall = np.pad(opened(dense, _VESSEL_CELLS), 1, constant_values=1)
        image = sitk.GetImageFromArray(wall)
        away = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=False)
        clear = np.maximum(sitk.GetArrayFromImage(away)[1:-1, 1:-1, 1:-1], 0) * CELL
        return cls(box, hu, clear.astype(np.float32))

    def find(
        self,
        clear_mm: float,
        reach_mm: float,
        occupied: Sequence[Occupied],
        rng: np.random.Generator,
    ) -> Triple | None:
        """Draw a location in lung, ``(x, y, z)`` LPS mm; None if none is found.

        It is ``clear_mm`` from the wall, and ``reach_mm`` from the ``occupied`` locations.
        """
        # tried in random order, each at a random place within its cell
        cells = np.argwhere(self.clear_mm >= max(clear_mm, 1.0))
        for cell in cells[rng.permutation(len(cells))[:_TRIES]]:
            index = (cell + 0.5) * CELL - 0.5 + rng.uniform(-0.5, 0.5, 3) * CELL
            point = self.box.geometry.to_world(index)
            free = all(
                np.linalg.norm(point - other.centre_mm) > reach_mm + other.reach_mm
                for other in occupied
            )
            mean_hu = float(self._around(cell, 5.0).mean())
            aerated = _LUNG_HU[0] < mean_hu < _LUNG_HU[1]
            if free and aerated and self.box.inside(index[None])[0]:
                return triple(point)
        return None

    def lung_hu(self, centre_mm: Triple, reach_mm: float) -> float:
        """Return the median of the aerated lung around a location."""
        cell = np.rint(self.box.geometry.to_index(centre_mm) / CELL).astype(int)
        around = self._around(cell, reach_mm + 6)
        lung = around[around < _LUNG_HU[1]]
        return float(np.median(lung)) if lung.size else float(np.median(around))

    def _around(self, cell: npt.NDArray[np.int64], reach_mm: float) -> HuArray:
        span = max(1, round(reach_mm / CELL))
        return self.hu[tuple(slice(max(c - span, 0), c + span + 1) for c in cell)]
