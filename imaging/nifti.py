"""Voxels and geometry of a NIfTI file of version 1 or 2, read with nibabel.

The library beneath ITK turns NaN into zero, which is water, fills in what a truncated file lacks,
and chooses in silence where sform and qform differ.
"""

import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from imaging.errors import IrregularGeometry
from imaging.files import open_plain
from imaging.volume import FloatArray, Geometry, HuArray, triple
from imaging.volume_checks import hu_of, require_perpendicular, require_volume

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

_SAME_PLACE_MM = 2.0
"""How far apart sform and qform may place a voxel. A qform is three 32-bit numbers of a quaternion;
near a half turn they are exact to 1.2 mm at the far corner of a chest (6,000 random turns)."""
_SAME_SPACING = 0.01  # relative
_MAX_REST = 1 << 20


@np.errstate(over="ignore", invalid="ignore")  # huge values are refused
def read_nifti(file: Path) -> tuple[HuArray, Geometry, bool]:
    """Read HU ``(z, y, x)`` and geometry, and whether the file states the orientation.

    Raises:
        ValueError, EOFError, zlib.error: the file is damaged.
        NotCt, IrregularGeometry: it holds no volume, or its geometry is impossible.
    """
    header = _header(file)
    rank, *dim = header["dim"].tolist()
    size = dim[:rank]
    while len(size) > 3 and size[-1] == 1:  # a series of one volume
        size.pop()
    require_volume(size, 1, file)
    affine, is_oriented = _affine(header, size, file)
    spacing_mm = np.linalg.norm(affine[:, :3], axis=0)
    if not (np.isfinite([*affine.T, spacing_mm]).all() and spacing_mm.all()):
        reason = f"its geometry is damaged: it states voxels of {spacing_mm.tolist()} mm"
        raise IrregularGeometry(f"{reason}: export the volume again", file)
    geometry = Geometry(triple(spacing_mm[::-1]), triple(affine[:, 3]), affine[:, :3] / spacing_mm)
    require_perpendicular(geometry.direction, file)
    stated_mm = _unit_mm(header) * header["pixdim"][1:4]
    if not np.allclose(spacing_mm, stated_mm, rtol=_SAME_SPACING, atol=0):
        form, pixels = (" x ".join(f"{v:g}" for v in values) for values in (spacing_mm, stated_mm))
        reason = f"sform and pixdim contradict each other: voxels of {form} and of {pixels} mm"
        raise IrregularGeometry(f"{reason}: export the volume again", file)
    return _voxels(file, header, size), geometry, is_oriented


def _unit_mm(header: "Nifti1Header") -> float:
    """Return the header's unit of length in mm; mm if it states none."""
    return {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) & 7, 1.0)  # metres, microns


def _affine(header: "Nifti1Header", size: Sequence[int], file: Path) -> tuple[FloatArray, bool]:
    """Return the 3 x 4 matrix from indices to LPS in mm, and whether the header states it."""
    from nibabel.spatialimages import HeaderDataError  # see `_header`

    try:
        forms = (header.get_sform(coded=True), header.get_qform(coded=True))
    except HeaderDataError as error:
        raise ValueError(str(error)) from None
    to_lps = _unit_mm(header) * np.diag([-1.0, -1.0, 1.0])  # from RAS
    stated = [to_lps @ affine[:3] for affine, code in forms if affine is not None and code > 0]
    if not stated:
        sides = _unit_mm(header) * header["pixdim"][1:4].astype(np.float64)
        return np.column_stack([np.diag(sides), np.zeros(3)]), False
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in size))])
    apart = float(np.linalg.norm(corners @ (stated[0] - stated[-1]).T, axis=1).max())
    if apart > _SAME_PLACE_MM:
        reason = f"sform and qform contradict each other by up to {apart:.1f} mm"
        raise IrregularGeometry(f"{reason}: export the volume with one of them", file)
    return stated[0], True


def _header(file: Path) -> "Nifti1Header":
    """Read a NIfTI header of either version and byte order."""
    # here, because nibabel takes longer to load than most studies to read
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    with _opened(file) as stream:
        block = stream.read(Nifti2Header.sizeof_hdr)
    kinds: tuple[Any, ...] = (Nifti1Header, Nifti2Header)  # nibabel does not type them
    for kind, order in product(kinds, "<>"):
        if len(block) >= kind.sizeof_hdr:
            # nibabel's own checks mend some damage in silence; ours refuse it
            header: Nifti1Header = kind(block[: kind.sizeof_hdr], order, check=False)
            if header["sizeof_hdr"] == kind.sizeof_hdr:
                _require_sound(header)
                return header
    raise ValueError("it has no NIfTI header")


def _require_sound(header: "Nifti1Header") -> None:
    rank, *dim = header["dim"].tolist()
    if not 1 <= rank <= 7 or min(dim[:rank]) < 1:
        raise ValueError(f"dimensions {[rank, *dim]} are impossible")
    code = int(header["datatype"])
    # the codes of integers and floats (nifti1.h)
    if code not in {2, 4, 8, 16, 64, 256, 512, 768, 1024}:
        raise ValueError(f"voxels of type {code} are not numbers")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite([slope, intercept]).all():
        raise ValueError(f"scale {slope} and offset {intercept} are not finite")
    if not header["magic"].item().startswith(b"n+"):
        raise ValueError("its voxels lie in another file")
    # extensions lie before the voxels, of a few kB at most
    if not header.sizeof_hdr <= header["vox_offset"] <= 1 << 20:
        raise ValueError(f"the voxels cannot begin at byte {header['vox_offset']}")


def _voxels(file: Path, header: "Nifti1Header", size: Sequence[int]) -> HuArray:
    """Read the voxels in their scale; ValueError if the file is truncated."""
    x, y, z = size
    dtype = header.get_data_dtype()
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0:  # it says that there is no scale
        slope, intercept = 1.0, 0.0
    with _opened(file) as stream:
        stream.read(int(header["vox_offset"]))

        def planes() -> Iterator[npt.NDArray[Any]]:
            """Read and inflate one plane after the other, and never more than is announced."""
            for index in range(z):
                block = stream.read(x * y * dtype.itemsize)
                if len(block) < x * y * dtype.itemsize:
                    raise ValueError(f"the voxels end in plane {index + 1} of {z}")
                plane = np.frombuffer(block, dtype).reshape(y, x)
                if (slope, intercept) != (1, 0):
                    with np.errstate(over="ignore", invalid="ignore"):  # refused later
                        plane = plane * slope + intercept
                yield plane

        hu = hu_of(planes(), (z, y, x), file)
        # only at its end does gzip find out that what it has read is damaged
        if len(stream.read(_MAX_REST)) == _MAX_REST:
            raise ValueError("more bytes follow the voxels than the header states")
    return hu


@contextmanager
def _opened(file: Path) -> Iterator[BufferedIOBase]:
    with open_plain(file) as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        yield gzip.GzipFile(fileobj=stream) if compressed else stream
