"""Volumes and volume files with a known HU everywhere, and the networks' window, plainly."""

import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from imaging.lungs import find_lungs
from imaging.volume import WINDOW_HU, Geometry, HuArray, Triple, UInt8Array, Volume


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


# The voxels of the files below: a body in air with a mark to its left, in front and at its feet,
# where x runs to the right, y to the front and z to the head.
MARK, MARK_RAS_MM = 300, (-15.0, 37.0, -88.0)
RAS = np.array([[2.0, 0, 0, -30], [0, 2, 0, 4], [0, 0, 3, -100], [0, 0, 0, 1]])
MIRRORED = np.diag([-1.0, 1, 1, 1]) @ RAS
DIRECTIONS = "space directions: (2,0,0) (0,2,0) (0,0,3)"
ORIGIN = "space origin: (-30,4,-100)"
MATRIX = "TransformMatrix = 1 0 0 0 1 0 0 0 1"
SPACING = "ElementSpacing = 2 2 3"


def body(dtype: str = "int16", shape: tuple[int, ...] = (16, 24, 24)) -> npt.NDArray[Any]:
    """The voxels, without the mark in a shape of their own."""
    values = np.full(shape, -1000, dtype)
    values[..., 6:18, 6:18] = 40
    if shape == (16, 24, 24):
        values[4, 16:18, 7:9] = MARK
    return values


def nifti(
    file: Path,
    sform: npt.NDArray[Any] | None,
    qform: npt.NDArray[Any] | None,
    scale: tuple[float, float] | None = None,
    **options: Any,
) -> Path:
    """Write NIfTI; options are fields of its header, its class, its values and their zooms."""
    header = options.pop("header", nibabel.Nifti1Header)()
    values = options.pop("values", body().T)
    header.set_data_shape(values.shape)
    header.set_zooms(options.pop("zooms", (2, 2, 3)) + (1,) * (values.ndim - 3))
    is_2 = isinstance(header, nibabel.Nifti2Header)
    made = (nibabel.Nifti2Image if is_2 else nibabel.Nifti1Image)(values, None, header)
    made.header.set_qform(qform, int(qform is not None))
    made.header.set_sform(sform, int(sform is not None))
    for key, value in options.items():
        made.header[key] = value
    made.to_filename(file)
    if scale:  # nibabel would write its own
        content = file.read_bytes()
        file.write_bytes(content[:112] + struct.pack("<2f", *scale) + content[120:])
    return file


def nrrd(file: Path, *fields: str) -> Path:
    """Write NRRD with these lines in its header."""
    lines = ["NRRD0005", "type: short", "endian: little", "encoding: raw"]
    if not any(field.startswith("dimension") for field in fields):
        lines += ["dimension: 3", "sizes: 24 24 16"]
    file.write_bytes("\n".join([*lines, *fields, "", ""]).encode() + body().tobytes())
    return file


def meta(file: Path, *fields: str, data: str = "LOCAL") -> Path:
    """Write MetaImage with these lines in its header; ``data`` is the name of its data file."""
    lines = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "DimSize = 24 24 16"]
    end = ["ElementType = MET_SHORT", f"ElementDataFile = {data}", ""]
    file.write_bytes("\n".join([*lines, *fields, *end]).encode() + body().tobytes())
    return file


def with_patches(
    hu: HuArray,
    spacing_mm: Triple,
    *,
    count: int,
    radius_mm: float,
    hu_of_patch: float,
    seed: int = 1,
) -> HuArray:
    """Draw diffuse disease: ``count`` balls in the lungs of ``hu_of_patch``; vessels shine through.

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
