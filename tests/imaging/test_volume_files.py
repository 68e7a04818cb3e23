"""Volume files: the same voxels at the same places as they were written."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from imaging.errors import IrregularGeometry, UnreadableFile
from imaging.read import read_study
from imaging.volume import LimitationKind, Study

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
    file = tmp_path / "a.nii"
    nibabel.Nifti1Image(stored, np.diag([-2.0, -2.0, 2.0, 1.0])).to_filename(file)
    content = bytearray(file.read_bytes())
    content[112:120] = struct.pack("<2f", slope, intercept)
    file.write_bytes(content)
    expected = stored * slope + intercept if slope else stored
    np.testing.assert_array_equal(read_study(file).volume.hu, np.rint(expected).transpose(2, 1, 0))


# The voxels of the files below: a body in air with a mark to its left, in front and at its feet,
# where x runs to the right, y to the front and z to the head.
_MARK, _MARK_RAS_MM = 300, (-15.0, 37.0, -88.0)


def _body() -> np.ndarray:
    values = np.full((16, 24, 24), -1000, np.int16)
    values[:, 6:18, 6:18] = 40
    values[4, 16:18, 7:9] = _MARK
    return values


_RAS = np.array([[2.0, 0, 0, -30], [0, 2, 0, 4], [0, 0, 3, -100], [0, 0, 0, 1]])


def _nifti(file: Path, sform: np.ndarray | None, qform: np.ndarray | None, **options: Any) -> Path:
    header = options.pop("header", nibabel.Nifti1Header)()
    values = options.pop("values", _body().T)
    header.set_data_shape(values.shape)
    header.set_zooms(options.pop("zooms", (2, 2, 3)) + (1,) * (values.ndim - 3))
    is_2 = isinstance(header, nibabel.Nifti2Header)
    made = (nibabel.Nifti2Image if is_2 else nibabel.Nifti1Image)(values, None, header)
    made.header.set_qform(qform, int(qform is not None))
    made.header.set_sform(sform, int(sform is not None))
    for key, value in options.items():
        made.header[key] = value
    made.to_filename(file)
    return file


def _mark_mm(study: Study) -> tuple[float, ...]:
    """Where the mark lies in the patient: right, front, head."""
    index = np.argwhere(study.volume.hu == _MARK).mean(axis=0)
    return tuple(study.volume.geometry.to_world(index) * (-1, -1, 1))


_MIRRORED = np.diag([-1.0, 1, 1, 1]) @ _RAS


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("header", [nibabel.Nifti1Header, nibabel.Nifti2Header])
@pytest.mark.parametrize(
    ("sform", "qform"), [(_RAS, None), (None, _RAS), (_RAS, _RAS), (_RAS, _RAS + 0.001)]
)
def test_where_nifti_lies(
    sform: np.ndarray | None, qform: np.ndarray | None, header: type, suffix: str, tmp_path: Path
) -> None:
    study = read_study(_nifti(tmp_path / f"a{suffix}", sform, qform, header=header))
    assert _mark_mm(study) == pytest.approx(_MARK_RAS_MM, abs=0.01)
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
    file = _nifti(tmp_path / "a.nii", matrix, matrix, values=values, zooms=(2.5, 2.5, 2))
    assert read_study(file).limitations == ()


@pytest.mark.parametrize(
    ("matrix", "off"),
    [(_MIRRORED, 60.0), (_RAS + np.diag([0, 0, 5], 1), 5.0)],
    ids=["sides are exchanged", "5 mm off"],
)
def test_sform_and_qform_that_contradict_each_other_are_refused(
    matrix: np.ndarray, off: float, tmp_path: Path
) -> None:
    for name, forms in (("s", (_RAS, matrix)), ("q", (matrix, _RAS))):
        with pytest.raises(IrregularGeometry, match=rf"sform and qform .* up to {off:.1f} mm"):
            read_study(_nifti(tmp_path / f"{name}.nii", *forms))


def _ras_with(place: Any, value: float) -> np.ndarray:
    changed = _RAS.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("sform", "text"),
    [
        (_RAS @ np.diag([2.0, 2, 2, 1]), "sform and pixdim contradict each other: voxels of"),
        # what converters make of a tilted gantry
        (_ras_with((1, 2), 0.8), "axes are not perpendicular"),
        (_ras_with(np.s_[:3, 0], 0.0), r"its geometry is damaged.*\[0\.0"),
        (_ras_with(np.s_[:3, 0], np.nan), r"its geometry is damaged.*\[nan"),
    ],
    ids=["double pixels", "sheared", "zero", "NaN"],
)
def test_an_sform_that_makes_no_volume_is_refused(
    sform: np.ndarray, text: str, tmp_path: Path
) -> None:
    with pytest.raises(IrregularGeometry, match=text):
        read_study(_nifti(tmp_path / "a.nii", sform, None))


@pytest.mark.parametrize(("code", "mm"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)])
def test_units_of_nifti(code: int, mm: float, tmp_path: Path) -> None:
    """Metres, millimetres and microns are the same volume; without a unit it is millimetres."""
    matrix = np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ _RAS
    pixdim = np.array([1, 2, 2, 3, 1, 1, 1, 1], np.float32) / mm
    study = read_study(_nifti(tmp_path / "a.nii", matrix, None, pixdim=pixdim, xyzt_units=code))
    assert study.volume.geometry.spacing_mm == pytest.approx((3, 2, 2))
    assert _mark_mm(study) == pytest.approx(_MARK_RAS_MM, abs=0.01)


@pytest.mark.parametrize("sides", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_left_handed_nifti(form: str, sides: tuple[int, ...], tmp_path: Path) -> None:
    """A file of mirrored axes that says so is the same patient."""
    matrix = _RAS @ np.diag([*sides, 1])
    for axis, side in enumerate(sides):
        matrix[:3, 3] -= (side < 0) * matrix[:3, axis] * (_body().T.shape[axis] - 1)
    forms = (matrix, None) if form == "sform" else (None, matrix)
    values = _body().T[tuple(slice(None, None, side) for side in sides)]
    study = read_study(_nifti(tmp_path / "a.nii", *forms, values=values))
    assert _mark_mm(study) == pytest.approx(_MARK_RAS_MM, abs=0.01)
    np.testing.assert_array_equal(study.volume.hu, _body()[:, ::-1, ::-1])


@pytest.mark.parametrize("scale", [(np.nan, 0), (1, np.nan), (np.inf, 0), (np.nan, np.nan)])
def test_a_scale_that_is_no_number_is_refused(scale: tuple[float, float], tmp_path: Path) -> None:
    file = _nifti(tmp_path / "a.nii", _RAS, None)
    content = file.read_bytes()
    file.write_bytes(content[:112] + struct.pack("<2f", *scale) + content[120:])
    with pytest.raises(UnreadableFile, match=r"scale .* and offset .* are not finite"):
        read_study(file)


def test_a_series_of_one_volume(tmp_path: Path) -> None:
    study = read_study(_nifti(tmp_path / "a.nii", _RAS, None, values=_body().T[..., None]))
    assert _mark_mm(study) == pytest.approx(_MARK_RAS_MM, abs=0.01)


def _nrrd(file: Path, *fields: str) -> Path:
    lines = ["NRRD0005", "type: short", "endian: little", "encoding: raw"]
    if not any(field.startswith("dimension") for field in fields):
        lines += ["dimension: 3", "sizes: 24 24 16"]
    file.write_bytes("\n".join([*lines, *fields, "", ""]).encode() + _body().tobytes())
    return file


def _meta(file: Path, *fields: str) -> Path:
    lines = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "DimSize = 24 24 16"]
    end = ["ElementType = MET_SHORT", "ElementDataFile = LOCAL", ""]
    file.write_bytes("\n".join([*lines, *fields, *end]).encode() + _body().tobytes())
    return file


_DIRECTIONS = "space directions: (2,0,0) (0,2,0) (0,0,3)"
_ORIGIN = "space origin: (-30,4,-100)"
_MATRIX = "TransformMatrix = 1 0 0 0 1 0 0 0 1"


@pytest.mark.parametrize(
    "make",
    [
        lambda f: _nifti(f / "a.nii", None, None),
        lambda f: _nifti(f / "a.nii", _RAS, _MIRRORED, sform_code=0, qform_code=0),
        lambda f: _nrrd(f / "a.nrrd", "spacings: 2 2 3"),
        lambda f: _nrrd(f / "a.nrrd", "space dimension: 3", _DIRECTIONS, _ORIGIN),
        lambda f: _nrrd(f / "a.nrrd", "space: scanner-xyz", _DIRECTIONS, _ORIGIN),
        lambda f: _nrrd(f / "a.nrrd", "space: 3D-right-handed", _DIRECTIONS, _ORIGIN),
        lambda f: _meta(f / "a.mha", "ElementSpacing = 2 2 3"),
        lambda f: _meta(f / "a.mha", "ElementSpacing = 2 2 3", "AnatomicalOrientation = ???"),
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
    np.testing.assert_array_equal(study.volume.hu, _body())
    assert study.volume.geometry.spacing_mm == (3, 2, 2)
    assert [limitation.kind for limitation in study.limitations] == [LimitationKind.ORIENTATION]
    assert "left and right, front and back" in study.limitations[0].text


@pytest.mark.parametrize(
    ("space", "sides"),
    [
        *(("left-posterior-superior", (-1, -1)), ("LPS", (-1, -1))),
        *(("right-anterior-superior", (1, 1)), ("RAS", (1, 1))),
        *(("left-anterior-superior", (-1, 1)), ("LAS", (-1, 1))),
    ],
)
def test_spaces_of_nrrd(space: str, sides: tuple[int, int], tmp_path: Path) -> None:
    study = read_study(_nrrd(tmp_path / "a.nrrd", f"space: {space}", _DIRECTIONS, _ORIGIN))
    x, y, z = _MARK_RAS_MM
    assert _mark_mm(study) == pytest.approx((x * sides[0], y * sides[1], z))
    assert study.limitations == ()


@pytest.mark.parametrize("at", [0, 3], ids=["first", "last"])
def test_an_axis_of_nrrd_without_direction(at: int, tmp_path: Path) -> None:
    axes = [("24", "domain", "(2,0,0)"), ("24", "domain", "(0,2,0)"), ("16", "domain", "(0,0,3)")]
    axes.insert(at, ("1", "list", "none"))
    sizes, kinds, directions = (" ".join(values) for values in zip(*axes, strict=True))
    fields = ("dimension: 4", f"sizes: {sizes}", f"kinds: {kinds}", "space: RAS")
    file = _nrrd(tmp_path / "a.nrrd", *fields, f"space directions: {directions}", _ORIGIN)
    assert _mark_mm(read_study(file)) == pytest.approx(_MARK_RAS_MM)


@pytest.mark.parametrize(
    "field", [_MATRIX, "Orientation = 1 0 0 0 1 0 0 0 1", "AnatomicalOrientation = RAI"]
)
def test_metaimage_states_its_orientation(field: str, tmp_path: Path) -> None:
    assert read_study(_meta(tmp_path / "a.mha", field, "ElementSpacing = 2 2 3")).limitations == ()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda f: _nrrd(f / "a.nrrd"), "states no voxel spacing"),
        (lambda f: _nrrd(f / "a.nrrd", "space: LPS", _ORIGIN), "states no voxel spacing"),
        (lambda f: _meta(f / "a.mha", _MATRIX), "states no voxel spacing"),
        (
            lambda f: _nrrd(f / "a.nrrd", "space: LPS", _DIRECTIONS, 'space units: "um" "um" "um"'),
            "its lengths are in um, expected mm",
        ),
        (
            lambda f: _nrrd(f / "a.nrrd", "spacings: 2 2 3", 'units: "cm" "cm" "cm"'),
            "its lengths are in cm, expected mm",
        ),
        (
            lambda f: _meta(f / "a.mha", _MATRIX, "ElementSpacing = 2 2 3", "DistanceUnits = um"),
            "its lengths are in um, expected mm",
        ),
        (lambda f: _meta(f / "a.mha", _MATRIX, "ElementSpacing = 2 2 -3"), "spacing -3 x 2 x 2 mm"),
        (lambda f: _nrrd(f / "a.nrrd", "spacings: 2 2 -3"), "spacing -3 x 2 x 2 mm"),
    ],
)
def test_a_spacing_that_is_not_stated_in_millimetres_is_refused(
    make: Callable[[Path], Path], text: str, tmp_path: Path
) -> None:
    """Else every diameter would be wrong: ITK assumes 1 mm, or takes microns for millimetres."""
    with pytest.raises(IrregularGeometry, match=text):
        read_study(make(tmp_path))


def test_units_that_are_millimetres(tmp_path: Path) -> None:
    fields = ("space: RAS", _DIRECTIONS, _ORIGIN, 'space units: "mm" "mm" "mm"')
    assert _mark_mm(read_study(_nrrd(tmp_path / "a.nrrd", *fields))) == pytest.approx(_MARK_RAS_MM)


@pytest.mark.parametrize("line", ["x" * 1000, "x" * 200_000, f"space: {'x' * 1000}"])
def test_a_header_line_that_is_longer_than_a_library_can_hold_is_refused(
    line: str, tmp_path: Path
) -> None:
    """NrrdIO and MetaIO write such a line beyond their buffers, and the process ends."""
    for file in (_nrrd(tmp_path / "a.nrrd", line), _meta(tmp_path / "a.mha", _MATRIX, line)):
        with pytest.raises(UnreadableFile, match=f"line of its header has {len(line)} characters"):
            read_study(file)


def test_the_name_of_a_data_file_may_be_too_long(tmp_path: Path) -> None:
    file = _meta(tmp_path / "a.mha", _MATRIX)
    file.write_bytes(file.read_bytes().replace(b"LOCAL\n", b"LOCAL" + b"x" * 600))
    with pytest.raises(UnreadableFile, match="a line of its header has"):
        read_study(file)


def test_the_name_of_a_data_file_is_no_format(tmp_path: Path) -> None:
    """A name such as %s would read the memory of the process."""
    mha = _meta(tmp_path / "a.mha", _MATRIX, "ElementSpacing = 2 2 3")
    mha.write_bytes(mha.read_bytes().replace(b"LOCAL", b"%s%s%n.raw"))
    for file in (mha, _nrrd(tmp_path / "a.nhdr", "spacings: 2 2 3", "data file: %n%d.raw 1 9 1")):
        with pytest.raises(UnreadableFile, match="the name of its data file is a pattern"):
            read_study(file)


def test_more_dimensions_than_the_library_can_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="it has 20 dimensions"):
        read_study(_meta(tmp_path / "a.mha", "NDims = 20", f"DimSize = {'2 ' * 20}"))


def test_long_free_text_in_nrrd_is_read(tmp_path: Path) -> None:
    fields = (f"# {'x' * 5000}", f"key:={'x' * 5000}", "spacings: 2 2 3")
    np.testing.assert_array_equal(
        read_study(_nrrd(tmp_path / "a.nrrd", *fields)).volume.hu, _body()
    )


def test_a_gzip_file_with_a_damaged_voxel_is_refused(tmp_path: Path) -> None:
    """Only the checksum at its end tells: the damaged data can be decompressed."""
    file = tmp_path / "a.nii.gz"
    content = bytearray(_nifti(tmp_path / "a.nii", _RAS, None).read_bytes())
    whole = gzip.compress(bytes(content), compresslevel=0)
    file.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(UnreadableFile, match="CRC check failed"):
        read_study(file)


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


def test_more_voxels_than_the_header_states_are_refused(tmp_path: Path) -> None:
    file = _nifti(tmp_path / "a.nii", _RAS, None)
    file.write_bytes(file.read_bytes() + bytes(1 << 20))
    with pytest.raises(UnreadableFile, match="more bytes follow the voxels"):
        read_study(file)


def test_alone_in_a_folder(tmp_path: Path) -> None:
    sitk.WriteImage(_image(_ORDERS["as DICOM"]), str(tmp_path / "scan.nii.gz"))
    (tmp_path / "notes.txt").write_text("x")
    study = read_study(tmp_path)
    assert study.source == tmp_path / "scan.nii.gz"
    assert study.header.transfer_syntax == "NIfTI"
