"""Volume files that are refused: each with its error and its reason."""

import gzip
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from imaging.errors import IncompleteSeries, IrregularGeometry, NotCt, StudyError, UnreadableFile
from imaging.read import read_study
from tests.imaging.test_refusals import rows
from tests.imaging.volumes import (
    DIRECTIONS,
    MATRIX,
    MIRRORED,
    ORIGIN,
    RAS,
    SPACING,
    body,
    meta,
    nifti,
    nrrd,
)


def _volume(folder: Path, name: str, values: np.ndarray, **geometry: Any) -> Path:
    image = sitk.GetImageFromArray(values, isVector=False)
    image.SetSpacing(geometry.get("spacing", (2.0,) * image.GetDimension()))
    sitk.WriteImage(image, str(folder / name))
    return folder / name


def _nan(folder: Path) -> Path:
    values = body("float32")
    values[3, 4, 5] = np.nan
    return _volume(folder, "a.nii.gz", values)


def _complex(folder: Path) -> Path:
    nibabel.Nifti1Image(body("complex64"), np.eye(4)).to_filename(folder / "a.nii")
    return folder / "a.nii"


def _cut_gzip(folder: Path) -> Path:
    file = _volume(folder, "a.nii.gz", body())
    file.write_bytes(file.read_bytes()[:100])
    return file


def _cut_nifti(folder: Path) -> Path:
    whole = gzip.decompress(_volume(folder, "a.nii.gz", body()).read_bytes())
    (folder / "b.nii").write_bytes(whole[: len(whole) // 2])
    return folder / "b.nii"


def _lost_data(folder: Path) -> Path:
    file = _volume(folder, "a.mhd", body())
    (folder / "a.raw").unlink()
    return file


def _noise_file(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(b"\x9c" * 900)
    return folder / name


def _detached(folder: Path, data: str, *, is_nrrd: bool = False) -> Path:
    """A header whose voxels lie in ``data``; ``folder/elsewhere/a.raw`` has them."""
    (folder / "elsewhere").mkdir()
    study = folder / "study"
    study.mkdir()
    file = _volume(study, "a.nhdr" if is_nrrd else "a.mhd", body())
    raw = next(one for one in study.iterdir() if one != file)
    text = file.read_text().replace(raw.name, data.format(elsewhere=folder / "elsewhere"))
    raw.rename(folder / "elsewhere" / raw.name)
    file.write_text(text)
    return file


def _linked_data(folder: Path) -> Path:
    file = _detached(folder, "a.raw")
    (folder / "study" / "a.raw").symlink_to(folder / "elsewhere" / "a.raw")
    return file


def _pipe_as_data(folder: Path) -> Path:
    file = _detached(folder, "a.raw")
    os.mkfifo(folder / "study" / "a.raw")
    return file


def _wide_and_tall(folder: Path) -> Path:
    values = np.full((12, 336, 336), -1000, np.int16)
    values[:, 100:200, 100:200] = 40
    return _volume(folder, "a.nii.gz", values, spacing=(3.0, 3.0, 10.0))


def _sform_with(place: Any, value: float) -> Callable[[Path], Path]:
    sform = RAS.copy()
    sform[place] = value
    return lambda folder: nifti(folder / "a.nii", sform, None)


def _other_voxel(folder: Path) -> Path:
    """Only the checksum at its end tells: the damaged data can be decompressed."""
    content = nifti(folder / "a.nii", RAS, None).read_bytes()
    whole = gzip.compress(content, compresslevel=0)
    file = folder / "a.nii.gz"
    file.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    return file


def _more_voxels(folder: Path) -> Path:
    file = nifti(folder / "a.nii", RAS, None)
    file.write_bytes(file.read_bytes() + bytes(1 << 20))
    return file


VOLUMES: dict[type[StudyError], dict[str, tuple[Callable[[Path], Path], str]]] = {
    NotCt: {
        "NaN": (_nan, "1 voxels are NaN"),
        "2-D": (lambda f: _volume(f, "a.nii", body(shape=(24, 24))), "24 x 24"),
        "4-D": (lambda f: _volume(f, "a.nii", body(shape=(3, 16, 24, 24))), "16 x 3, not"),
        "bytes": (lambda f: _volume(f, "a.nrrd", abs(body()).astype("uint8")), "40 to 232"),
    },
    IncompleteSeries: {"short": (lambda f: _volume(f, "a.mha", body()[:8]), "16.0 mm")},
    IrregularGeometry: {
        "far apart": (
            lambda f: _volume(f, "a.nii", body(), spacing=(1.0, 1.0, 15.0)),
            "spacing 15 x 1 x 1 mm",
        ),
        "microscopic": (
            lambda f: _volume(f, "a.nrrd", body(), spacing=(0.001, 0.001, 2.0)),
            "spacing 2 x 0.001 x 0.001",
        ),
        "wider than any gantry": (_wide_and_tall, "120 x 1008 x 1008 mm"),
        "sform and qform of exchanged sides": (
            lambda f: nifti(f / "a.nii", RAS, MIRRORED),
            "sform and qform contradict each other by up to 60.0 mm",
        ),
        "sform and qform 5 mm off": (
            lambda f: nifti(f / "a.nii", RAS + np.diag([0, 0, 5], 1), RAS),
            "sform and qform contradict each other by up to 5.0 mm",
        ),
        "double pixels": (
            lambda f: nifti(f / "a.nii", RAS @ np.diag([2.0, 2, 2, 1]), None),
            "sform and pixdim contradict each other: voxels of",
        ),
        # what converters make of a tilted gantry
        "sheared": (_sform_with((1, 2), 0.8), "axes are not perpendicular"),
        "a zero axis": (_sform_with(np.s_[:3, 0], 0.0), "it states voxels of [0.0"),
        "an axis of NaN": (_sform_with(np.s_[:3, 0], np.nan), "it states voxels of [nan"),
        # else every diameter would be wrong: ITK assumes 1 mm, or takes microns for millimetres
        "NRRD without spacing": (lambda f: nrrd(f / "a.nrrd"), "states no voxel spacing"),
        "NRRD with an origin alone": (
            lambda f: nrrd(f / "a.nrrd", "space: LPS", ORIGIN),
            "states no voxel spacing",
        ),
        "MetaImage without spacing": (
            lambda f: meta(f / "a.mha", MATRIX),
            "states no voxel spacing",
        ),
        "NRRD in microns": (
            lambda f: nrrd(f / "a.nrrd", "space: LPS", DIRECTIONS, 'space units: "um" "um" "um"'),
            "its lengths are in um, expected mm",
        ),
        "NRRD in centimetres": (
            lambda f: nrrd(f / "a.nrrd", "spacings: 2 2 3", 'units: "cm" "cm" "cm"'),
            "its lengths are in cm, expected mm",
        ),
        "MetaImage in microns": (
            lambda f: meta(f / "a.mha", MATRIX, SPACING, "DistanceUnits = um"),
            "its lengths are in um, expected mm",
        ),
        "MetaImage, negative spacing": (
            lambda f: meta(f / "a.mha", MATRIX, "ElementSpacing = 2 2 -3"),
            "spacing -3 x 2 x 2 mm",
        ),
        "NRRD, negative spacing": (
            lambda f: nrrd(f / "a.nrrd", "spacings: 2 2 -3"),
            "spacing -3 x 2 x 2 mm",
        ),
    },
    UnreadableFile: {
        **{
            f"data at {data!r}, {'NRRD' if is_nrrd else 'MetaImage'}": (
                partial(_detached, data=data, is_nrrd=is_nrrd),
                "expected one file beside it",
            )
            for data in ("{elsewhere}/a.raw", "../elsewhere/a.raw", "LIST\n{elsewhere}/a.raw")
            for is_nrrd in (False, True)
        },
        "a pattern of data files": (
            lambda f: _detached(f, "a%03d.raw 1 16 1"),
            "is a pattern, expected one file",
        ),
        "data through a link": (_linked_data, "a.raw: is a link, not a file"),
        "a named pipe as data": (_pipe_as_data, "a.raw: is a named pipe"),
        "data named twice": (
            lambda f: _detached(f, "a.raw\nElementDataFile = {elsewhere}/a.raw"),
            "damaged MetaImage",
        ),
        "data named in a comment for another reader": (
            lambda f: _detached(f, "a.raw\x0cElementDataFile = {elsewhere}/a.raw"),
            "where its voxels lie is unclear",
        ),
        **{
            f"scale {scale}": (
                lambda f, scale=scale: nifti(f / "a.nii", RAS, None, scale),
                "are not finite",
            )
            for scale in ((np.nan, 0), (1, np.nan), (np.inf, 0), (np.nan, np.nan))
        },
        # NrrdIO and MetaIO write such a line beyond their buffers, and the process ends
        **{
            f"{len(line)} characters, {suffix}": (
                lambda f, make=make, suffix=suffix, line=line: make(f / f"a.{suffix}", line),
                f"line of its header has {len(line)} characters",
            )
            for line in ("x" * 1000, "x" * 200_000, f"space: {'x' * 1000}")
            for make, suffix in ((nrrd, "nrrd"), (meta, "mha"))
        },
        "a name too long": (
            lambda f: meta(f / "a.mha", MATRIX, data="LOCAL" + "x" * 600),
            "a line of its header has",
        ),
        # a name such as %s would read the memory of the process
        "a name that is a format": (
            lambda f: meta(f / "a.mha", MATRIX, SPACING, data="%s%s%n.raw"),
            "the name of its data file is a pattern",
        ),
        "a name that is a format, NRRD": (
            lambda f: nrrd(f / "a.nhdr", "spacings: 2 2 3", "data file: %n%d.raw 1 9 1"),
            "the name of its data file is a pattern",
        ),
        "more dimensions than the library can hold": (
            lambda f: meta(f / "a.mha", "NDims = 20", f"DimSize = {'2 ' * 20}"),
            "it has 20 dimensions",
        ),
        "a damaged voxel in gzip": (_other_voxel, "CRC check failed"),
        "more voxels than stated": (_more_voxels, "more bytes follow the voxels"),
        "complex numbers": (_complex, "voxels of type 32 are not numbers"),
        "cut gzip": (_cut_gzip, "a.nii.gz: damaged NIfTI"),
        "cut NIfTI": (_cut_nifti, "b.nii: damaged NIfTI"),
        "lost data file": (_lost_data, "a.mhd: damaged MetaImage"),
        "noise as NIfTI": (lambda f: _noise_file(f, "a.nii"), "a.nii: damaged"),
        "noise as NRRD": (lambda f: _noise_file(f, "a.nrrd"), "a.nrrd: damaged"),
        "another kind of file": (lambda f: _noise_file(f, "a.png"), "unknown file format"),
        "an archive": (lambda f: _noise_file(f, "a.zip"), "is an archive: unpack it"),
        "a transfer": (lambda f: _noise_file(f, "a.nii.part"), "has not finished"),
        "noise as DICOM": (lambda f: _noise_file(f, "a.dcm"), "a.dcm: is not DICOM"),
    },
}


@pytest.mark.parametrize(("make", "error", "text"), rows(VOLUMES))
def test_bad_volume_files(
    make: Callable[[Path], Path],
    error: type[StudyError],
    text: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A volume file that holds no CT is refused, and the library below keeps quiet."""
    with pytest.raises(error, match=re.escape(text)):
        read_study(make(tmp_path))
    assert capfd.readouterr().err == ""
