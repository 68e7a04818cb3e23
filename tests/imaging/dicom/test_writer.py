from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import UID

from imaging.dicom.writer import write_series
from imaging.volume import Geometry, StudyHeader, Volume

TURN = np.array(
    [[1.0, 0.0, 0.0], [0.0, np.cos(0.2), -np.sin(0.2)], [0.0, np.sin(0.2), np.cos(0.2)]]
)


def _volume(direction: np.ndarray | None = None) -> Volume:
    hu = np.random.default_rng(0).integers(-1024, 3000, (5, 12, 16)).astype(np.int16)
    hu[0, 0, 0] = -3024
    place = np.eye(3) if direction is None else direction
    geometry = Geometry((2.5, 0.7, 0.65), (-51.123456789, -170.25, 333.3), place)
    return Volume(hu, geometry, description="SYNTHETIC PHANTOM seed 1")


@pytest.mark.parametrize("direction", [None, TURN])
def test_series_reads_back_equal(tmp_path: Path, direction: np.ndarray | None) -> None:
    volume = _volume(direction)
    write_series(volume, tmp_path, seed=1)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), volume.hu)
    assert image.GetSpacing() == pytest.approx(volume.geometry.spacing_mm[::-1], abs=1e-6)
    assert image.GetOrigin() == pytest.approx(volume.geometry.origin_mm, abs=1e-6)
    assert np.allclose(np.reshape(image.GetDirection(), (3, 3)), volume.geometry.direction)


def test_files_are_valid_ct_slices_with_the_header_where_a_reader_looks(tmp_path: Path) -> None:
    header = StudyHeader(
        patient_id="P1", patient_name="SYNTHETIC^PHANTOM", sex="O", age="058Y",
        study_uid="1.2.3", kernel="soft", series_description="chest",
    )  # fmt: skip
    paths = write_series(_volume(), tmp_path, header=header, seed=1)
    files = [pydicom.dcmread(path) for path in paths]
    assert len({f.SOPInstanceUID for f in files}) == 5
    assert len({f.SeriesInstanceUID for f in files}) == 1
    for k, ds in enumerate(files):
        assert ds.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert ds.SOPClassUID == pydicom.uid.CTImageStorage
        assert UID(ds.SOPInstanceUID).is_valid
        assert ds.ImagePositionPatient[2] == pytest.approx(333.3 + 2.5 * k)
        assert (ds.PatientID, ds.PatientName, ds.PatientSex) == ("P1", "SYNTHETIC^PHANTOM", "O")
        assert (ds.PatientAge, ds.StudyInstanceUID) == ("058Y", "1.2.3")
        assert (ds.Modality, ds.ConvolutionKernel, ds.SliceThickness) == ("CT", "soft", 2.5)
        assert ds.SeriesDescription == "chest"


def test_a_seed_makes_the_same_bytes_and_none_new_uids(tmp_path: Path) -> None:
    seeded = [write_series(_volume(), tmp_path / name, seed=7)[2] for name in ("a", "b")]
    fresh = [write_series(_volume(), tmp_path / name)[2] for name in ("c", "d")]
    assert seeded[0].read_bytes() == seeded[1].read_bytes()
    uids = [pydicom.dcmread(path).SeriesInstanceUID for path in fresh]
    assert uids[0] != uids[1]
    assert pydicom.dcmread(fresh[0]).SeriesDescription == "SYNTHETIC PHANTOM seed 1"


def test_a_folder_with_a_series_is_refused(tmp_path: Path) -> None:
    write_series(_volume(), tmp_path)
    with pytest.raises(FileExistsError, match="already holds"):
        write_series(_volume(), tmp_path)


def test_left_handed_axes_are_refused(tmp_path: Path) -> None:
    """Slices stacked against their normal would be read back upside down."""
    with pytest.raises(ValueError, match="not the normal of the slices"):
        write_series(_volume(np.diag([1.0, 1.0, -1.0])), tmp_path)
