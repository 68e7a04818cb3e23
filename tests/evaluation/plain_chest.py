"""A chest of tissue with two round lungs, quick to make and to read, and a nodule to put in it."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from evaluation.accuracy.truth import Truth
from evaluation.lesion_insertion.scans import Host, donor_of
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, HuArray, Triple, Volume
from models.data.cubes import Cube
from models.insertion.donors import Donor
from models.runtime.detection import Candidate
from tests.imaging.volumes import to_window

LUNG_HU, TISSUE_HU = -850, 40
LUNGS: tuple[Triple, Triple] = ((70.0, 75.0, 60.0), (70.0, 75.0, 150.0))
"""The middles of the lungs, ``(z, y, x)`` mm from the corner."""

RADIUS_MM = 40.0
CORNER_MM: Triple = (-100.0, -70.0, 500.0)
"""World point of voxel (0, 0, 0), ``(x, y, z)``."""


def chest(spacing_mm: Triple = (2.0, 1.5, 1.5)) -> Volume:
    """140 x 150 x 210 mm of tissue in air, with two lungs of 80 mm."""
    z, y, x = (round(n / s) for n, s in zip((140, 150, 210), spacing_mm, strict=True))
    hu: HuArray = np.full((z, y, x), TISSUE_HU, np.int16)
    hu[:, :4], hu[:, -4:], hu[:, :, :4], hu[:, :, -4:] = (np.int16(-1000),) * 4
    grid = np.ogrid[:z, :y, :x]
    for middle in LUNGS:
        away = sum((g * s - m) ** 2 for g, s, m in zip(grid, spacing_mm, middle, strict=True))
        hu[np.asarray(away < RADIUS_MM**2)] = LUNG_HU
    return Volume(hu, Geometry(spacing_mm, CORNER_MM))


UNMARKED = Truth()


def host(truth: Truth = UNMARKED, name: str = "chest") -> Host:
    return Host(name, chest(), truth)


def nodule(diameter_mm: float = 10.0, name: str = "test/0") -> Cube:
    """A ball of soft tissue in thinner lung, with a wall 11 mm from it, and four readers' votes."""
    z, y, x = np.ogrid[:50, :50, :50]
    ball = (z - 25) ** 2 + (y - 24) ** 2 + (x - 25) ** 2 <= (diameter_mm / 2) ** 2
    hu = np.full((50, 50, 50), -900.0)
    hu[:, :, : int(25 - diameter_mm / 2 - 11)] = 40
    hu[ball] = 40
    votes = np.where(ball, 4, 0).astype(np.uint8)
    return Cube(name, "patient of " + name, to_window(hu), (25.0, 24.0, 25.0), diameter_mm, votes)


def donor(diameter_mm: float = 10.0, name: str = "test/0") -> Donor:
    found = donor_of(nodule(diameter_mm, name))
    assert found is not None
    return found


def in_lung(side: int, shift_mm: float = 0.0) -> Triple:
    """World point ``(x, y, z)`` of the middle of one lung, shifted along x."""
    z, y, x = LUNGS[side]
    return CORNER_MM[0] + x + shift_mm, CORNER_MM[1] + y, CORNER_MM[2] + z


def bright(box: Preprocessed) -> list[Candidate]:
    """A reader that marks places ``(x, y, z)`` of 5 mm of which all is tissue within the lungs.

    It looks every 2 mm along x through the middles of the lungs.
    """
    found = []
    for side in (0, 1):
        for shift in range(-30, 31, 2):
            point = in_lung(side, float(shift))
            z, y, x = (float(v) for v in box.geometry.to_index(point))
            value = int(box.voxels[round(z), round(y), round(x)])
            if value > 150:
                found.append(Candidate(point, (z, y, x), 5.0, 0.5 + shift / 100))
    return found


def write_nifti(volume: Volume, path: Path) -> None:
    """Write a chest as a file."""
    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.geometry.spacing_mm[::-1])
    image.SetOrigin(CORNER_MM)
    sitk.WriteImage(image, str(path))
