"""Donors: nodules cut out of their cubes by the readers' votes, and lesions cut out of scans.

A nodule takes with it what at least two of four readers drew, and one millimetre of the lung
around. Chest wall, vessel and fissure stay behind, so an inserted nodule lies freely in the lung
even if it was attached to a wall.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from imaging.morphology import dilate
from imaging.volume import FloatArray, Triple, UInt8Array, from_window
from models.runtime.second_reader import nearest_piece

VOTES = 2
"""Readers that must have drawn a voxel."""

SOFT_HU = 40.0
"""Tissue from this density on keeps its density in another lung."""

_LUNG_HU = -600
_RIM_HU = -450
PLAIN_LUNG_HU = -850.0
"""Density of lung around a donor where it cannot be measured."""

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Donor:
    """A nodule or lesion that can be inserted, named for its cube or scan.

    ``hu`` is float32 ``(z, y, x)`` at 1 mm, axes LPS; of each voxel the part ``cover`` is inserted,
    0 to 1. ``reach_mm`` is how far it extends from its centre, ``lung_hu`` the lung around it.
    """

    name: str
    patient: str
    hu: Floats
    cover: Floats
    centre_zyx: Triple
    diameter_mm: float
    reach_mm: float
    lung_hu: float


def cut_donor(
    name: str, patient: str, voxels: UInt8Array, drawn: Mask, centre_zyx: Triple, diameter_mm: float
) -> Donor | None:
    """Return the nodule of a cube, or None if not enough readers drew voxels at its centre."""
    mask = nearest_piece(drawn)
    limit_mm = max(diameter_mm / 2, 2.0)
    if not mask.any() or away_mm(mask.shape, centre_zyx)[mask].min() > limit_mm:
        return None
    return cut(name, patient, voxels, mask, centre_zyx, diameter_mm)


def cut(
    name: str, patient: str, voxels: UInt8Array, mask: Mask, centre_zyx: Triple, diameter_mm: float
) -> Donor:
    """Return what the ``mask`` ``(z, y, x)`` marks in ``voxels``, with a soft edge."""
    hu = from_window(voxels).astype(np.float32)
    inside = mask.astype(np.uint8)
    # readers draw to the voxel; the partly filled ones outside belong to the nodule too, but not
    # what is dense there: wall or vessel
    rim = dilate(inside, 1.0).astype(bool) & (hu < _RIM_HU)
    # a shell that the nodule's own blur does not reach
    around = (dilate(inside, 5.0) - dilate(inside, 2.0)).astype(bool)
    lung = hu[around & (hu < _LUNG_HU)]
    away = away_mm(voxels.shape, centre_zyx)[mask]
    # the cover has an edge that is a millimetre soft, along every axis
    sharp = (mask | rim).astype(np.float32)
    flat = cv2.GaussianBlur(sharp.reshape(len(sharp), -1), (1, 0), 0.001, sigmaY=0.8)
    planes = flat.reshape(sharp.shape)
    return Donor(
        name=name,
        patient=patient,
        hu=hu,
        cover=np.stack([cv2.GaussianBlur(plane, (0, 0), 0.8) for plane in planes]),
        centre_zyx=centre_zyx,
        diameter_mm=diameter_mm,
        reach_mm=max(diameter_mm / 2, float(np.quantile(away, 0.98))),
        lung_hu=float(np.median(lung)) if lung.size >= 30 else PLAIN_LUNG_HU,
    )


def away_mm(shape: Sequence[int], centre_zyx: Sequence[float]) -> FloatArray:
    """Return the distance of each voxel ``(z, y, x)`` from the centre."""
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    a, b, c = centre_zyx
    return np.asarray(np.sqrt((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2))
