"""Read a volume file (NIfTI, NRRD, MetaImage) as a study; its values are HU as stored.

ITK reads NRRD and MetaImage. What it assumes in silence (no orientation, no spacing, another unit)
is looked up in the header. nibabel reads NIfTI of version 1 or 2: the library beneath ITK turns NaN
into zero, which is water, fills in what a truncated file lacks, and chooses in silence where sform
and qform differ.
"""

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from imaging import c_stderr
from imaging.continuity import require_continuous
from imaging.dicom.layout import AIR_HU, MAX_HU, require_hu
from imaging.dicom.stack import (
    MAX_PIXEL_MM,
    MAX_SPACING_MM,
    MAX_VOXELS,
    MIN_EXTENT_MM,
    MIN_PIXEL_MM,
    MIN_SPACING_MM,
    require_extent,
)
from imaging.errors import (
    IncompleteSeries,
    IrregularGeometry,
    NotCt,
    UnreadableFile,
    is_machine_fault,
    is_out_of_memory,
)
from imaging.files import not_plain, open_plain, special_kind
from imaging.slices import SliceMeasures, measures_of
from imaging.volume import (
    FloatArray,
    Geometry,
    Grid,
    HuArray,
    Limitation,
    LimitationKind,
    Study,
    StudyHeader,
    Volume,
    to_patient_axes,
    triple,
)

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

FORMATS = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mhd": "MetaImage",
    ".mha": "MetaImage",
}
_IO = {"NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}
_HEADER_BYTES, _MAX_LINE, _CHUNK = 1 << 20, 500, 1 << 20
_PATIENT_SPACES = {"lps", "ras", "las"} | {
    *("left-posterior-superior", "right-anterior-superior", "left-anterior-superior")
}
_MILLIMETRES = {"", "?", "mm", "millimeter", "millimeters", "millimetre", "millimetres"}
_ASSUMED = Limitation(
    LimitationKind.ORIENTATION,
    "The file does not state the patient's orientation: that of DICOM is assumed, so left and"
    " right, front and back, or head and feet may be exchanged.",
)
_SAME_PLACE_MM = 2.0
"""How far apart sform and qform may place a voxel. A qform is three 32-bit numbers of a quaternion;
near a half turn they are exact to 1.2 mm at the far corner of a chest (6,000 random turns)."""
_SAME_SPACING = 0.01  # relative
_MAX_REST = 1 << 20


def format_of(path: Path) -> str:
    """Return the format that the file's name states; empty for another kind of file."""
    name = path.name.lower()
    return next((kind for suffix, kind in FORMATS.items() if name.endswith(suffix)), "")


def read_file(file: Path) -> Study:
    """Read the study of one volume file.

    Raises:
        UnreadableFile: the file is damaged, or its data file is not beside it.
        OSError, MemoryError: a fault of the machine.
        NotCt: it holds no three-dimensional image in HU.
        IncompleteSeries, IrregularGeometry: it is too short, or its geometry impossible.
    """
    try:
        with c_stderr.captured():
            hu, geometry, is_oriented = _contents(file)
            stored = Grid(hu.shape, geometry)
            hu, geometry = to_patient_axes(hu, geometry)
    except (
        c_stderr.ReportedDamage,
        RuntimeError,
        ValueError,
        OSError,
        EOFError,
        zlib.error,
    ) as error:
        _raise_if_not_of_file(error, file)
        # ITK puts the reason last, after its source file and addresses
        line = (str(error).strip().splitlines() or ["no reason given"])[-1].split("): ")[-1][:120]
        reason = f"damaged {format_of(file)} file ({line}): send it again"
        raise UnreadableFile(reason, file) from None
    measures = _require_sane(hu, geometry, file)
    header = StudyHeader(series_description=file.name, transfer_syntax=format_of(file))
    limitations = () if is_oriented else (_ASSUMED,)
    volume = Volume(hu, geometry, file.name, file.name, measures)
    return Study(volume, file, header, limitations=limitations, stored=stored)


def _raise_if_not_of_file(error: Exception, file: Path) -> None:
    """Raise what is a fault of the machine, which ITK reports like damage of the file."""
    if is_machine_fault(error):
        raise error
    if is_out_of_memory(error):
        raise MemoryError from None
    with open_plain(file) as stream:  # a disk that fails does so again
        while stream.read(1 << 20):
            pass


def study_of_array(values: npt.NDArray[Any], geometry: Geometry, source: Path) -> Study:
    """Check voxels in HU ``(z, y, x)`` as those of a file; ``source`` names them in errors.

    Raises:
        NotCt: a voxel is NaN or infinite, or the values cannot be HU.
        IncompleteSeries, IrregularGeometry: it is too short, or its geometry impossible.
    """
    hu = _hu_of(values, values.shape, source)
    stored = Grid(hu.shape, geometry)
    hu, geometry = to_patient_axes(hu, geometry)
    volume = Volume(hu, geometry, measures=_require_sane(hu, geometry, source))
    return Study(volume, source, stored=stored)


def _contents(file: Path) -> tuple[HuArray, Geometry, bool]:
    """Read voxels and geometry as the file orders its axes, and whether it states how they lie."""
    if format_of(file) == "NIfTI":
        return _read_nifti(file)
    import SimpleITK as sitk  # here, since the reading process alone needs it

    fields, data_at = _text_header(file)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_IO[format_of(file)])
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    _require_volume(reader.GetSize(), reader.GetNumberOfComponents(), file)
    _require_spacing(fields, file)
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    geometry = Geometry(triple(reader.GetSpacing()[::-1]), triple(reader.GetOrigin()), direction)
    image = reader.Execute()  # as long as it lives, the view of it does
    voxels = sitk.GetArrayViewFromImage(image)
    if fields.get("compresseddata", "").lower() == "true":
        name = fields.get("elementdatafile", "")
        data = (file, data_at) if name.upper() == "LOCAL" else (file.parent / name, 0)
        _require_checksum(*data, voxels.nbytes)
    return _hu_of(voxels, voxels.shape, file), geometry, _states_orientation(fields, file)


def _require_checksum(file: Path, data_at: int, size: int) -> None:
    """Require that the compressed voxels of MetaImage are whole; MetaIO never reads their checksum.

    Raises:
        ValueError, zlib.error: they are damaged, or are not of ``size`` bytes.
    """
    unpacker, found = zlib.decompressobj(wbits=47), 0  # zlib or gzip
    with open_plain(file) as stream:
        stream.seek(data_at)
        while not unpacker.eof and (packed := unpacker.unconsumed_tail or stream.read(_CHUNK)):
            found += len(unpacker.decompress(packed, _CHUNK))
            if found > size:
                break
    if not unpacker.eof or found != size:
        raise ValueError(f"the compressed voxels are damaged after {found} of {size} bytes")


def _text_header(file: Path) -> tuple[dict[str, str], int]:
    """Read the fields of an NRRD or MetaImage header, their names in lower case, and find its end.

    The libraries that read them have buffers of fixed length, for lines and for dimensions, and
    write beyond them.

    Raises:
        ValueError: a line or the number of dimensions is beyond what they can hold.
        UnreadableFile: the voxels lie neither in this file nor in a regular file beside it.
    """
    is_nrrd = format_of(file) == "NRRD"
    fields: dict[str, str] = {}
    lines: list[str] = []
    with open_plain(file) as stream:
        while raw := stream.readline(_HEADER_BYTES):
            lines.append(line := raw.decode("latin-1").strip())
            is_free_text = is_nrrd and (line.startswith("#") or ":=" in line)
            if len(line) > _MAX_LINE and not is_free_text:
                raise ValueError(f"a line of its header has {len(line)} characters")
            name, _, value = line.replace("=", ":", 1).partition(":")
            # the libraries use it as a format for numbers, whatever else it asks for
            if name.strip().lower() in ("elementdatafile", "data file") and "%" in value:
                raise ValueError("the name of its data file is a pattern, expected one file")
            fields[name.strip().lower()] = value.strip()
            # here the header ends, and voxels may follow
            if name.strip() == "ElementDataFile" or (is_nrrd and not line):
                break
            if stream.tell() >= _HEADER_BYTES:
                raise ValueError(f"its header has more than {_HEADER_BYTES} bytes")
        end = stream.tell()
    if (count := fields.get("ndims", "3")) not in ("2", "3", "4", "5"):
        raise ValueError(f"it has {count} dimensions")
    _require_beside(fields, "\n".join(lines).lower(), file)
    return fields, end


def _require_beside(fields: Mapping[str, str], header: str, file: Path) -> None:
    """Require the voxels in the file, or in a file beside it: no path, list or pattern, no link."""
    is_nrrd = format_of(file) == "NRRD"
    names = ("data file", "datafile") if is_nrrd else ("elementdatafile",)
    found = [fields[name] for name in names if name in fields]
    # the library must not find a field where it is not found here
    if sum(map(header.count, names)) != len(found) or not (is_nrrd or found):
        raise UnreadableFile("where its voxels lie is unclear: export the volume again", file)
    if not found or (not is_nrrd and found[0].upper() == "LOCAL"):
        return
    (data,) = found
    is_name = data.isprintable() and not {*data} & {*"/\\%"} and data not in ("", ".", "..")
    if not is_name or data.split()[0].upper() == "LIST":
        reason = f"its voxels lie in {data[:80]!r}, expected one file beside it"
        raise UnreadableFile(f"{reason}: export the volume as one file", file)
    with suppress(FileNotFoundError):  # the library says so
        if kind := special_kind(file.parent / data):
            raise UnreadableFile(not_plain(kind), file.parent / data)


def _require_spacing(fields: Mapping[str, str], file: Path) -> None:
    """Require a spacing in mm: without one, ITK assumes 1 mm."""
    nrrd, meta = ("spacings", "space directions"), ("elementspacing", "elementsize")
    if not fields.keys() & {*nrrd, *meta}:
        raise IrregularGeometry("states no voxel spacing: export the volume again", file)
    for name in ("space units", "units", "distanceunits"):
        value = fields.get(name, "")
        for unit in re.findall('"([^"]*)"', value) or [value]:
            if unit.strip().lower() not in _MILLIMETRES:
                reason = f"its lengths are in {unit}, expected mm: export the volume again"
                raise IrregularGeometry(reason, file)


def _states_orientation(fields: Mapping[str, str], file: Path) -> bool:
    """Tell whether an NRRD or MetaImage header states how the patient lies in the volume."""
    if format_of(file) == "NRRD":
        return fields.get("space", "").lower() in _PATIENT_SPACES
    matrix = fields.keys() & {"transformmatrix", "rotation", "orientation"}
    # RAI, from right to left and so on, is what ITK assumes without a matrix
    return bool(matrix) or fields.get("anatomicalorientation") == "RAI"


@np.errstate(over="ignore", invalid="ignore")  # huge values are refused
def _read_nifti(file: Path) -> tuple[HuArray, Geometry, bool]:
    """Read voxels and geometry of a NIfTI file, as `_contents` does."""
    header = _header(file)
    rank, *dim = header["dim"].tolist()
    size = dim[:rank]
    while len(size) > 3 and size[-1] == 1:  # a series of one volume
        size.pop()
    _require_volume(size, 1, file)
    affine, is_oriented = _affine(header, size, file)
    spacing_mm = np.linalg.norm(affine[:, :3], axis=0)
    if not (np.isfinite([*affine.T, spacing_mm]).all() and spacing_mm.all()):
        reason = f"its geometry is damaged: it states voxels of {spacing_mm.tolist()} mm"
        raise IrregularGeometry(f"{reason}: export the volume again", file)
    geometry = Geometry(triple(spacing_mm[::-1]), triple(affine[:, 3]), affine[:, :3] / spacing_mm)
    _require_perpendicular(geometry.direction, file)
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

        hu = _hu_of(planes(), (z, y, x), file)
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


def _require_volume(size: Sequence[int], values: int, file: Path) -> None:
    """Require three dimensions, one value per voxel, and not too many voxels."""
    shape = " x ".join(map(str, size))
    if len(size) != 3 or min(size) < 2:
        raise NotCt(f"is {shape}, not a three-dimensional volume: give one CT series", file)
    if values != 1:
        raise NotCt(f"has {values} values per voxel, expected 1: give a CT series in HU", file)
    if np.prod(size, dtype=np.float64) > MAX_VOXELS:
        reason = f"{shape} voxels are more than {MAX_VOXELS}: give a smaller volume"
        raise IrregularGeometry(reason, file)


def _hu_of(planes: Iterable[npt.NDArray[Any]], shape: Sequence[int], file: Path) -> HuArray:
    """Round and clip planes to HU in int16; refuse what is not a finite number.

    One plane after the other: the values may take four times the memory of HU.
    """
    hu, bad = np.empty(shape, np.int16), 0
    for values, out in zip(planes, hu, strict=True):
        if values.dtype.kind not in "iuf":
            reason = f"voxels of type {values.dtype} are not numbers: give a CT series in HU"
            raise NotCt(reason, file)
        if values.dtype.kind == "f":
            bad += values.size - int(np.count_nonzero(np.isfinite(values)))
            values = np.rint(values)
        with np.errstate(invalid="ignore"):  # NaN
            np.clip(values, AIR_HU, MAX_HU, out=out, casting="unsafe")
    if bad:
        raise NotCt(f"{bad} voxels are NaN or infinite: export the CT series again", file)
    return hu


def _require_sane(hu: HuArray, geometry: Geometry, file: Path) -> tuple[SliceMeasures, ...]:
    """Require the spacing, extent and values of a chest CT; return what is measured of slices."""
    z, y, x = geometry.spacing_mm
    _require_perpendicular(geometry.direction, file)
    pixels = all(MIN_PIXEL_MM <= v <= MAX_PIXEL_MM for v in (y, x))
    if not (pixels and MIN_SPACING_MM <= z <= MAX_SPACING_MM):
        reason = (
            f"spacing {z:g} x {y:g} x {x:g} mm (z, y, x) is not that of a chest CT"
            f" (slices {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g} mm,"
            f" pixels {MIN_PIXEL_MM:g} to {MAX_PIXEL_MM:g} mm)"
        )
        raise IrregularGeometry(f"{reason}: give the original volume", file)
    if hu.shape[0] * z < MIN_EXTENT_MM:
        reason = f"{hu.shape[0]} slices every {z:.2f} mm are {hu.shape[0] * z:.1f} mm"
        reason = f"{reason}, at least {MIN_EXTENT_MM:g} mm are needed"
        raise IncompleteSeries(f"{reason}: give the whole volume", file)
    require_extent(hu.shape, geometry.spacing_mm, file)
    measures = measures_of(hu, (y, x))
    require_hu(measures, file)
    names = [f"{number} from the feet" for number in range(1, len(hu) + 1)]
    require_continuous(hu, geometry.spacing_mm, names, [file] * len(hu), measures)
    return measures


def _require_perpendicular(direction: FloatArray, file: Path) -> None:
    """Require the axes of a volume, the columns of ``direction``, to be perpendicular."""
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-3):
        reason = f"axes are not perpendicular ({direction.round(3).tolist()})"
        raise IrregularGeometry(f"{reason}: resample the volume", file)
