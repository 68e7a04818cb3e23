"""Read a volume file (NIfTI, NRRD, MetaImage) as a study; its values are HU as stored.

ITK reads NRRD and MetaImage. What it assumes in silence (no orientation, no spacing, another unit)
is looked up in the header. NIfTI is read by `imaging.nifti`.
"""

import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imaging import c_stderr
from imaging.errors import IrregularGeometry, UnreadableFile, is_machine_fault, is_out_of_memory
from imaging.files import not_plain, open_plain, special_kind
from imaging.nifti import read_nifti
from imaging.volume import (
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
from imaging.volume_checks import hu_of, require_sane, require_volume

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
    measures = require_sane(hu, geometry, file)
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
    hu = hu_of(values, values.shape, source)
    stored = Grid(hu.shape, geometry)
    hu, geometry = to_patient_axes(hu, geometry)
    volume = Volume(hu, geometry, measures=require_sane(hu, geometry, source))
    return Study(volume, source, stored=stored)


def _contents(file: Path) -> tuple[HuArray, Geometry, bool]:
    """Read voxels and geometry as the file orders its axes, and whether it states how they lie."""
    if format_of(file) == "NIfTI":
        return read_nifti(file)
    import SimpleITK as sitk  # here, since the reading process alone needs it

    fields, data_at = _text_header(file)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_IO[format_of(file)])
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    require_volume(reader.GetSize(), reader.GetNumberOfComponents(), file)
    _require_spacing(fields, file)
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    geometry = Geometry(triple(reader.GetSpacing()[::-1]), triple(reader.GetOrigin()), direction)
    image = reader.Execute()  # as long as it lives, the view of it does
    voxels = sitk.GetArrayViewFromImage(image)
    if fields.get("compresseddata", "").lower() == "true":
        name = fields.get("elementdatafile", "")
        data = (file, data_at) if name.upper() == "LOCAL" else (file.parent / name, 0)
        _require_checksum(*data, voxels.nbytes)
    return hu_of(voxels, voxels.shape, file), geometry, _states_orientation(fields, file)


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
