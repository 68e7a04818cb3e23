import csv
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.uid import DeflatedExplicitVRLittleEndian

from imaging.dicom import header
from imaging.errors import SeriesNotFound, UnreadableFile
from imaging.read import read_study
from tests.imaging.small_ct import SmallCt

_ELF = b"\x7fELF\2\1\1" + bytes(500)
_DISC = {
    "autorun.inf": b"[autorun]\r\nopen=viewer.exe\r\n",
    "index.htm": b"<html>",
    "viewer.exe": b"MZ" + bytes(500),
    "VIEWER/viewer": _ELF,
    "VIEWER/lib/libdcm.so.5": _ELF,
    "VIEWER/lib/libempty.so.5": b"",
    "VIEWER/CACHE": b"",
    "VIEWER/settings": b"\0\1\2",
    "VIEWER/setup.tmp": b"\0\1\2",
    "PICTURES/IM0001": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(300),
    "PICTURES/IM0002.JPG": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(300),
    "Thumbs.db": b"\xd0\xcf\x11\xe0" + bytes(300),
    "LOCK": b"",
    "DICOMDIR": b"not read",
    "DICOM/._IM0003": b"\0\5\x16\7" + bytes(100),
    "DICOM/VERSION": b"4.2\n",
    "DICOM/LOCK": b"",
    "DICOM/libviewer.so.5": b"",
    "DICOM/IM0004.part": b"\0\1\2",  # IM0004 itself came later
}


def _write_disc(folder: Path) -> None:
    for index, file in enumerate(SmallCt().write(folder / "DICOM")):
        file.rename(folder / f"DICOM/IM{index:04}")
    for name, content in _DISC.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("given", ["", "DICOMDIR", "DICOM/IM0007"])
def test_a_patient_s_disc_is_read_with_all_that_lies_on_it(given: str, tmp_path: Path) -> None:
    """A viewer, its libraries, empty files and pictures are no images, and are named as such."""
    _write_disc(tmp_path)
    study = read_study(tmp_path / given)
    np.testing.assert_array_equal(study.volume.hu, SmallCt().hu())
    ignored = "not DICOM, ignored: LOCK, Thumbs.db, autorun.inf and 14 more"
    assert study.other_series == (() if "IM" in given else (ignored,))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_is_left_of_a_transfer_is_not_read(share: float, tmp_path: Path) -> None:
    """It began again and finished, so the file is there under its own name."""
    content = SmallCt().write(tmp_path)[5].read_bytes()
    (tmp_path / "005.dcm.part").write_bytes(content[: int(share * len(content))])
    study = read_study(tmp_path)
    np.testing.assert_array_equal(study.volume.hu, SmallCt().hu())
    assert study.other_series == ("not DICOM, ignored: 005.dcm.part",)


SCANS = (
    *("qin_lsc_0014", "qin_lsc_0028", "qin_lsc_0049", "qin_lsc_0088", "qin_lung_01_0007"),
    *("cmb_crc_01068", "lungfcp_01_0001"),
)


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.long
def test_whole_scan(name: str, shared_data: Path) -> None:
    with (shared_data / "ct/scans.csv").open() as table:
        known = next(row for row in csv.DictReader(table) if row["scan"] == name)
    study = read_study(shared_data / "ct" / name)
    hu, geometry = study.volume.hu, study.volume.geometry
    assert hu.shape == (int(known["slices"]), 512, 512)
    pixel = float(known["pixel_spacing_mm"])
    expected = (float(known["slice_spacing_mm"]), pixel, pixel)
    assert geometry.spacing_mm == pytest.approx(expected, abs=1e-3)
    np.testing.assert_allclose(geometry.direction, np.eye(3), atol=1e-6)
    assert (study.header.kernel, study.header.transfer_syntax) == (
        known["kernel"],
        known["transfer_syntax"],
    )
    assert hu.min() == -1024
    assert -1000 < np.median(hu) < 100
    if known["x"]:
        z, y, x = np.rint(geometry.to_index([float(known[a]) for a in "xyz"])).astype(int)
        assert hu[z - 1 : z + 2, y - 3 : y + 4, x - 3 : x + 4].mean() > -300


def _link(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere)


def _fifo(path: Path, _elsewhere: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, _elsewhere: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


SPECIAL = [(_link, "is a link"), (_fifo, "is a named pipe"), (_socket, "is a socket")]


@pytest.mark.parametrize(("make", "reason"), SPECIAL, ids=["link", "pipe", "socket"])
def test_a_slice_that_is_no_regular_file_is_refused_unopened(
    make: Callable[[Path, Path], None], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slice that the link leads to would complete the series; a pipe would never answer."""
    monkeypatch.chdir(tmp_path)
    files = SmallCt(12).write(tmp_path / "study")
    elsewhere = tmp_path / "elsewhere.dcm"
    files[5].rename(elsewhere)
    make(files[5], elsewhere)
    with pytest.raises(UnreadableFile, match=reason) as refused:
        read_study(tmp_path / "study")
    assert refused.value.file == files[5]


@pytest.mark.parametrize(("make", "_reason"), SPECIAL, ids=["link", "pipe", "socket"])
def test_what_is_no_regular_file_beside_the_images_is_ignored_and_named(
    make: Callable[[Path, Path], None],
    _reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A viewer on a patient's disc may hold links."""
    monkeypatch.chdir(tmp_path)
    SmallCt(12).write(tmp_path / "study")
    make(tmp_path / "study" / "viewer.bin", tmp_path)
    assert read_study(tmp_path / "study").other_series == ("not DICOM, ignored: viewer.bin",)


def test_a_linked_folder_of_slices_is_not_read(tmp_path: Path) -> None:
    SmallCt(12).write(tmp_path / "elsewhere")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "slices").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnreadableFile, match="no DICOM files in this folder"):
        read_study(tmp_path / "study")


def test_a_link_in_place_of_a_study_is_refused(tmp_path: Path) -> None:
    SmallCt(12).write(tmp_path / "elsewhere")
    (tmp_path / "study").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnreadableFile, match="is a link: give the file or folder itself"):
        read_study(tmp_path / "study")


def test_deflated_images_are_inflated_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = SmallCt(12).images()
    for image in images:
        image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    files = SmallCt(12).write(tmp_path, images)
    np.testing.assert_array_equal(read_study(tmp_path).volume.hu, SmallCt(12).hu())
    monkeypatch.setattr(header, "MAX_INFLATED", 1 << 20)
    images[7].PixelData = bytes(4 << 20)
    images[7].save_as(files[7], enforce_file_format=True)
    assert files[7].stat().st_size < 10_000
    with pytest.raises(UnreadableFile, match="inflates to more than 1 MB") as refused:
        read_study(tmp_path)
    assert refused.value.file == files[7]


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOMEM, errno.ESTALE])
def test_a_fault_of_the_machine_is_no_error_of_the_study(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the files it meets, in whichever pass."""
    SmallCt(12).write(tmp_path)
    real, opened = os.open, list[object]()

    def failing(path: str, *rest: int) -> int:
        opened.append(path)
        if len(opened) == fails_at:
            raise OSError(number, os.strerror(number), path)
        return real(path, *rest)

    monkeypatch.setattr("imaging.files.os.open", failing)
    fails_at = 0
    read_study(tmp_path)
    assert len(opened) >= 36  # each of 12 files is opened to know it, for its header, its pixels
    while fails_at < 36:
        fails_at += 1
        opened.clear()
        with pytest.raises(OSError, match=os.strerror(number)) as raised:
            read_study(tmp_path)
        assert raised.value.errno == number


def _write_volumes(folder: Path) -> None:
    for value, name in enumerate(("Chest_1.nii.gz", "abdomen.nii.gz", "old [1].nrrd")):
        voxels = np.full((30, 20, 20), -1000, np.int16)
        voxels[:, 5:15, 5:15] = value
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folder / name))


def test_several_volume_files_are_refused_by_their_names(tmp_path: Path) -> None:
    """Nothing tells whether they are of one patient."""
    _write_volumes(tmp_path)
    with pytest.raises(UnreadableFile, match=r"3 volume files \(Chest_1.nii.gz, abdomen.nii.gz, o"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("series", "value"),
    [("chest*", 0), ("ABDOMEN.nii.gz", 1), ("?ld*.nrrd", 2), ("Old [1].nrrd", 2)],
)
def test_a_volume_file_is_chosen_by_its_name(series: str, value: int, tmp_path: Path) -> None:
    _write_volumes(tmp_path)
    study = read_study(tmp_path, series)
    assert study.volume.hu.max() == value
    assert len(study.other_series) == 2
    assert all(line.endswith(": not requested") for line in study.other_series)


@pytest.mark.parametrize("given", ["", "old [1].nrrd"])
def test_a_volume_file_that_is_not_there_is_refused_with_what_is(
    given: str, tmp_path: Path
) -> None:
    _write_volumes(tmp_path)
    with pytest.raises(SeriesNotFound, match=r"no volume file has the name '4', expected .*old"):
        read_study(tmp_path / given, "4")


def test_folders_nested_without_end_are_refused(tmp_path: Path) -> None:
    tmp_path.joinpath(*"d" * 100).mkdir(parents=True)
    with pytest.raises(UnreadableFile, match="nested more than 64 deep"):
        read_study(tmp_path)
