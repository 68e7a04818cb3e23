"""Whole scans that nodules are implanted into: patients' scans, and phantoms without nodules.

Where in a lung there is room for an implant: how far each place is from wall and mediastinum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from evaluation.accuracy.data import Lesion, read_table, scan_name
from evaluation.errors import MissingData
from imaging.morphology import opened
from imaging.phantom.phantom import make_phantom, varied_spec
from imaging.preprocess import Preprocessed
from imaging.read import read_study
from imaging.volume import FloatArray, HuArray, Triple, Volume, from_window

PATIENTS = "patients"


PHANTOMS = "phantoms"


@dataclass(frozen=True, eq=False)
class Host:
    """One scan, upright, with the lesions that are known of it; ``group`` says what it is."""

    name: str
    group: str
    volume: Volume
    lesions: tuple[Lesion, ...] = ()


def host_makers(
    folders: Iterable[Path], truth: Mapping[str, tuple[Lesion, ...]], seeds: Iterable[int]
) -> list[Callable[[], Host]]:
    """A function for each host, to be called when it is its turn: patients first, then phantoms."""
    patients = [partial(patient_host, f, truth.get(scan_name(f), ())) for f in folders]
    return [*patients, *(partial(phantom_host, seed) for seed in seeds)]


def patient_host(folder: Path, lesions: tuple[Lesion, ...]) -> Host:
    """A patient's scan.

    Raises:
        StudyError: it cannot be read.
    """
    return Host(scan_name(folder), PATIENTS, read_study(folder).volume, lesions)


def phantom_host(seed: int) -> Host:
    """A phantom by a scanner that is drawn too, with no nodule of its own."""
    phantom = make_phantom(replace(varied_spec(seed), nodule_count=0))
    return Host(f"phantom-{seed}", PHANTOMS, phantom.volume)


def of_splits(folders: Sequence[Path], truth: Path, splits: Sequence[str]) -> list[Path]:
    """Those of `folders` whose ``role`` in the table `truth` is one of `splits`.

    All of them, where the table has no such column: nobody says that one was trained on.

    Raises:
        BadTable: the table cannot be read.
        MissingData: none is left.
    """
    table = read_table(truth, ("scan",))
    role = {row["scan"].strip(): row.get("role", "").strip() for row in table.rows}
    kept = [folder for folder in folders if role.get(scan_name(folder), "") in ("", *splits)]
    if not kept:
        raise MissingData(truth, f"gives none of the scans a role among {tuple(splits)}")
    return kept


CELL = 2
"""Voxels of the box a cell, along each axis."""

_DENSE_HU = -400


_VESSEL_CELLS = 2.5
"""Radius of the thickest vessel that an implant may lie across: 5 mm."""

_LUNG_HU = (-960.0, -600.0)
"""The mean around a place that is lung; windpipe and air outside the body lie below."""

_TRIES = 300


@dataclass(frozen=True)
class Taken:
    """A place that is no longer free, ``(x, y, z)`` LPS mm, with the distance to keep from it."""

    centre_mm: Triple
    reach_mm: float


@dataclass(frozen=True, eq=False)
class Room:
    """One lung box in cells of `CELL` voxels.

    Attributes:
        box: the lung box.
        hu: int16 ``(z, y, x)`` of the cells.
        clear_mm: float32 of the same shape, the distance to the nearest wall, 0 in it.
    """

    box: Preprocessed
    hu: HuArray
    clear_mm: npt.NDArray[np.float32]

    @classmethod
    def of(cls, box: Preprocessed) -> Room:
        """The room in a lung box; what lies beyond its faces counts as wall."""
        hu = from_window(np.ascontiguousarray(box.voxels[::CELL, ::CELL, ::CELL]))
        dense = (hu > _DENSE_HU).astype(np.uint8)
        wall = np.pad(opened(dense, _VESSEL_CELLS), 1, constant_values=1)
        image = sitk.GetImageFromArray(wall)
        away = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=False)
        clear = np.maximum(sitk.GetArrayFromImage(away)[1:-1, 1:-1, 1:-1], 0) * CELL
        return cls(box, hu, clear.astype(np.float32))

    def place(
        self, clear_mm: float, reach_mm: float, taken: Sequence[Taken], rng: np.random.Generator
    ) -> Triple | None:
        """A place in lung, ``(x, y, z)`` LPS mm, ``clear_mm`` from the wall; None if there is none.

        ``reach_mm`` is how far the implant extends: it keeps that from whatever is taken.
        """
        cells = np.argwhere(self.clear_mm >= max(clear_mm, 1.0))
        for cell in cells[rng.permutation(len(cells))[:_TRIES]]:
            index = (cell + 0.5) * CELL - 0.5 + rng.uniform(-0.5, 0.5, 3) * CELL
            point = self.box.geometry.to_world(index)
            if self._free(point, reach_mm, taken) and self._is_lung(cell, index):
                x, y, z = (float(v) for v in point)
                return x, y, z
        return None

    def lung_hu(self, centre_mm: Triple, reach_mm: float) -> float:
        """The median of the aerated lung around a place."""
        cell = np.rint(self.box.geometry.to_index(centre_mm) / CELL).astype(int)
        around = self._around(cell, reach_mm + 6)
        lung = around[around < _LUNG_HU[1]]
        return float(np.median(lung)) if lung.size else float(np.median(around))

    def _is_lung(self, cell: npt.NDArray[np.int64], index: FloatArray) -> bool:
        mean = float(self._around(cell, 5.0).mean())
        return _LUNG_HU[0] < mean < _LUNG_HU[1] and bool(self.box.inside(index[None])[0])

    def _around(self, cell: npt.NDArray[np.int64], reach_mm: float) -> HuArray:
        span = max(1, round(reach_mm / CELL))
        return self.hu[tuple(slice(max(c - span, 0), c + span + 1) for c in cell)]

    @staticmethod
    def _free(point: FloatArray, reach_mm: float, taken: Sequence[Taken]) -> bool:
        return all(
            np.linalg.norm(point - other.centre_mm) > reach_mm + other.reach_mm for other in taken
        )
