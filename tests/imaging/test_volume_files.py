"""Volume files: the same voxels at the same places as they were written."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from imaging.errors import UnreadableFile
from imaging.read import read_study
from imaging.volume import LimitationKind, Study
from tests.imaging.volumes import (
    DIRECTIONS,
    MARK,
    MARK_RAS_MM,
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

_ORDERS = {
    "as DICOM": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "RAS order": (-1, 0, 0, 0, -1, 0, 0, 0, 1),
    "coronal order": (1, 0, 0, 0, 0, 1, 0, -1, 0),
}


def _noise() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 400, (24, 28, 32)).astype(np.int16)


def _image(direction: tuple[int, ...]) -> sitk.Image:
    image = sitk.GetImageFromArray(_noise())
    image.SetSpacing((0.8, 0.9, 1.5))
    image.SetOrigin((-120.0, 34.5, -250.25))
    image.SetDirection(direction)
    return image


@pytest.mark.parametrize("direction", _ORDERS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mhd", ".mha"])
def test_round_trip(suffix: str, direction: str, tmp_path: Path) -> None:
    image = _image(_ORDERS[direction])
    file = tmp_path / f"scan{suffix}"
    sitk.WriteImage(image, str(file))
    volume = read_study(file).volume
    for index in ((0, 0, 0), (31, 27, 23), (3, 20, 11)):
        point = image.TransformIndexToPhysicalPoint(index)
        z, y, x = np.rint(volume.geometry.to_index(point)).astype(int)
        np.testing.assert_allclose(volume.geometry.to_world([z, y, x]), point, atol=1e-3)
        assert volume.hu[z, y, x] == image.GetPixel(index)
    np.testing.assert_allclose(volume.geometry.direction, np.eye(3), atol=1e-5)
    assert volume.hu.flags.c_contiguous


def test_floats_are_rounded_and_clipped(tmp_path: Path) -> None:
    values = np.full((24, 24, 24), -1000.4, np.float32)
    values[2:20, 2:20, 2:20] = 39.6
    values[0, 0, 0] = -3024
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "a.nii.gz"))
    hu = read_study(tmp_path / "a.nii.gz").volume.hu
    assert (hu[0, 0, 0], hu[1, 1, 1], hu[5, 5, 5]) == (-1024, -1000, 40)


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, -100.0), (1.0, -20.0), (0.0, 7.0)])
def test_scale_of_nifti(slope: float, intercept: float, tmp_path: Path) -> None:
    """The scale is applied exactly; a slope of 0 says that there is none."""
    stored = np.random.default_rng(0).integers(-1000, 400, (24, 24, 24)).astype(np.int16)
    file = nifti(tmp_path / "a.nii", RAS, None, (slope, intercept), values=stored)
    expected = stored * slope + intercept if slope else stored
    hu = np.rint(expected).T[:, ::-1, ::-1]
    np.testing.assert_array_equal(read_study(file).volume.hu, hu)


def _mark_mm(study: Study) -> tuple[float, ...]:
    """Where the mark lies in the patient: right, front, head."""
    index = np.argwhere(study.volume.hu == MARK).mean(axis=0)
    return tuple(study.volume.geometry.to_world(index) * (-1, -1, 1))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("header", [nibabel.Nifti1Header, nibabel.Nifti2Header])
@pytest.mark.parametrize(
    ("sform", "qform"), [(RAS, None), (None, RAS), (RAS, RAS), (RAS, RAS + 0.001)]
)
def test_where_nifti_lies(
    sform: np.ndarray | None, qform: np.ndarray | None, header: type, suffix: str, tmp_path: Path
) -> None:
    study = read_study(nifti(tmp_path / f"a{suffix}", sform, qform, header=header))
    assert _mark_mm(study) == pytest.approx(MARK_RAS_MM, abs=0.01)
    assert study.limitations == ()


def test_a_qform_is_rounded_and_contradicts_nothing(tmp_path: Path) -> None:
    """Near a half turn, as from RAS to the axes of DICOM, its last digit is half a millimetre."""
    values = np.full((300, 300, 12), -1000, np.int16)
    values[100:200, 100:200] = 40
    rng, header, rounded = np.random.default_rng(0), nibabel.Nifti1Header(), []
    header.set_data_shape(values.shape)
    for _ in range(300):
        axis = np.array([0, 0, 1]) + rng.normal(size=3) * 1e-3
        axis /= np.linalg.norm(axis)
        matrix = np.diag([2.5, 2.5, 2.0, 1.0])
        c, s = np.cos(angle := np.pi - 10 ** rng.uniform(-6, -2)), np.sin(angle)
        turn = c * np.eye(3) + (1 - c) * np.outer(axis, axis) + s * np.cross(np.eye(3), -axis)
        matrix[:3, :3] = turn * (2.5, 2.5, 2)
        header.set_qform(matrix, 1)
        off_mm = np.linalg.norm((header.get_qform() - matrix) @ (299, 299, 11, 1))
        rounded.append((off_mm, matrix))
    off_mm, matrix = max(rounded, key=lambda one: one[0])
    assert off_mm > 0.5
    file = nifti(tmp_path / "a.nii", matrix, matrix, values=values, zooms=(2.5, 2.5, 2))
    assert read_study(file).limitations == ()


@pytest.mark.parametrize(("code", "mm"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)])
def test_units_of_nifti(code: int, mm: float, tmp_path: Path) -> None:
    """Metres, millimetres and microns are the same volume; without a unit it is millimetres."""
    matrix = np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ RAS
    pixdim = np.array([1, 2, 2, 3, 1, 1, 1, 1], np.float32) / mm
    study = read_study(nifti(tmp_path / "a.nii", matrix, None, pixdim=pixdim, xyzt_units=code))
    assert study.volume.geometry.spacing_mm == pytest.approx((3, 2, 2))
    assert _mark_mm(study) == pytest.approx(MARK_RAS_MM, abs=0.01)


@pytest.mark.parametrize("sides", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_left_handed_nifti(form: str, sides: tuple[int, ...], tmp_path: Path) -> None:
    """A file of mirrored axes that says so is the same patient."""
    matrix = RAS @ np.diag([*sides, 1])
    for axis, side in enumerate(sides):
        matrix[:3, 3] -= (side < 0) * matrix[:3, axis] * (body().T.shape[axis] - 1)
    forms = (matrix, None) if form == "sform" else (None, matrix)
    values = body().T[tuple(slice(None, None, side) for side in sides)]
    study = read_study(nifti(tmp_path / "a.nii", *forms, values=values))
    assert _mark_mm(study) == pytest.approx(MARK_RAS_MM, abs=0.01)
    np.testing.assert_array_equal(study.volume.hu, body()[:, ::-1, ::-1])


def test_a_series_of_one_volume(tmp_path: Path) -> None:
    study = read_study(nifti(tmp_path / "a.nii", RAS, None, values=body().T[..., None]))
    assert _mark_mm(study) == pytest.approx(MARK_RAS_MM, abs=0.01)


@pytest.mark.parametrize(
    "make",
    [
        lambda f: nifti(f / "a.nii", None, None),
        lambda f: nifti(f / "a.nii", RAS, MIRRORED, sform_code=0, qform_code=0),
        lambda f: nrrd(f / "a.nrrd", "spacings: 2 2 3"),
        lambda f: nrrd(f / "a.nrrd", "space dimension: 3", DIRECTIONS, ORIGIN),
        lambda f: nrrd(f / "a.nrrd", "space: scanner-xyz", DIRECTIONS, ORIGIN),
        lambda f: nrrd(f / "a.nrrd", "space: 3D-right-handed", DIRECTIONS, ORIGIN),
        lambda f: meta(f / "a.mha", SPACING),
        lambda f: meta(f / "a.mha", SPACING, "AnatomicalOrientation = ???"),
    ],
    ids=[
        *("NIfTI", "NIfTI with codes 0", "NRRD", "NRRD with directions"),
        *("NRRD of the scanner", "NRRD of space", "MetaImage", "MetaImage with ???"),
    ],
)
def test_an_orientation_that_no_header_states_is_assumed_and_said(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    """The axes are then taken as those of DICOM, and the report guarantees nothing."""
    study = read_study(make(tmp_path))
    np.testing.assert_array_equal(study.volume.hu, body())
    assert study.volume.geometry.spacing_mm == (3, 2, 2)
    assert [limitation.kind for limitation in study.limitations] == [LimitationKind.ORIENTATION]
    assert "left and right, front and back" in study.limitations[0].text


@pytest.mark.parametrize(
    ("fields", "sides"),
    [
        *((["space: left-posterior-superior"], (-1, -1)), (["space: LPS"], (-1, -1))),
        *((["space: right-anterior-superior"], (1, 1)), (["space: RAS"], (1, 1))),
        *((["space: left-anterior-superior"], (-1, 1)), (["space: LAS"], (-1, 1))),
        (["space: RAS", 'space units: "mm" "mm" "mm"'], (1, 1)),
    ],
)
def test_spaces_of_nrrd(fields: list[str], sides: tuple[int, int], tmp_path: Path) -> None:
    study = read_study(nrrd(tmp_path / "a.nrrd", *fields, DIRECTIONS, ORIGIN))
    x, y, z = MARK_RAS_MM
    assert _mark_mm(study) == pytest.approx((x * sides[0], y * sides[1], z))
    assert study.limitations == ()


@pytest.mark.parametrize("at", [0, 3], ids=["first", "last"])
def test_an_axis_of_nrrd_without_direction(at: int, tmp_path: Path) -> None:
    axes = [("24", "domain", "(2,0,0)"), ("24", "domain", "(0,2,0)"), ("16", "domain", "(0,0,3)")]
    axes.insert(at, ("1", "list", "none"))
    sizes, kinds, directions = (" ".join(values) for values in zip(*axes, strict=True))
    fields = ("dimension: 4", f"sizes: {sizes}", f"kinds: {kinds}", "space: RAS")
    file = nrrd(tmp_path / "a.nrrd", *fields, f"space directions: {directions}", ORIGIN)
    assert _mark_mm(read_study(file)) == pytest.approx(MARK_RAS_MM)


@pytest.mark.parametrize(
    "field", [MATRIX, "Orientation = 1 0 0 0 1 0 0 0 1", "AnatomicalOrientation = RAI"]
)
def test_metaimage_states_its_orientation(field: str, tmp_path: Path) -> None:
    assert read_study(meta(tmp_path / "a.mha", field, SPACING)).limitations == ()


def test_long_free_text_in_nrrd_is_read(tmp_path: Path) -> None:
    fields = (f"# {'x' * 5000}", f"key:={'x' * 5000}", "spacings: 2 2 3")
    np.testing.assert_array_equal(read_study(nrrd(tmp_path / "a.nrrd", *fields)).volume.hu, body())


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nii.gz"])
@pytest.mark.parametrize("at", [0.3, 0.6, 0.9, 0.999])
def test_compressed_voxels_that_are_damaged_are_refused(
    at: float, suffix: str, tmp_path: Path
) -> None:
    """Damaged data can often be decompressed, to other voxels: the checksum tells."""
    file = tmp_path / f"a{suffix}"
    sitk.WriteImage(_image(_ORDERS["as DICOM"]), str(file), useCompression=True)
    np.testing.assert_array_equal(read_study(file).volume.hu, _noise())
    data = tmp_path / "a.zraw" if suffix == ".mhd" else file
    content = bytearray(data.read_bytes())
    content[int(at * len(content))] ^= 1
    data.write_bytes(content)
    with pytest.raises(UnreadableFile):
        read_study(file)


def test_alone_in_a_folder(tmp_path: Path) -> None:
    sitk.WriteImage(_image(_ORDERS["as DICOM"]), str(tmp_path / "scan.nii.gz"))
    (tmp_path / "notes.txt").write_text("x")
    study = read_study(tmp_path)
    assert study.source == tmp_path / "scan.nii.gz"
    assert study.header.transfer_syntax == "NIfTI"
