from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from imaging.errors import UnreadableFile
from imaging.read import read_study
from tests.imaging.small_ct import SmallCt


def test_progress_runs_from_0_to_1(tmp_path: Path) -> None:
    SmallCt().write(tmp_path)
    told: list[float] = []
    read_study(tmp_path, progress=told.append)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)
    assert len(told) > 20


def test_sub_folders(tmp_path: Path) -> None:
    for index, file in enumerate(SmallCt().write(tmp_path)):
        place = tmp_path / f"DIR{index % 3}" / "IMAGES"
        place.mkdir(parents=True, exist_ok=True)
        file.rename(place / f"IM{index:05}")
    study = read_study(tmp_path)
    assert study.volume.shape == (12, 32, 32)
    assert study.source == tmp_path


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
    ignored = "not DICOM, ignored: LOCK, Thumbs.db, autorun.inf and 12 more"
    assert study.other_series == (() if "IM" in given else (ignored,))


def test_names_in_capitals(tmp_path: Path) -> None:
    for file in SmallCt().write(tmp_path):
        file.rename(file.with_suffix(".DCM"))
    assert read_study(tmp_path).volume.shape == (12, 32, 32)


def test_an_empty_file_that_is_named_unlike_the_images_is_none(tmp_path: Path) -> None:
    SmallCt().write(tmp_path)
    (tmp_path / "EMPTY").touch()
    assert read_study(tmp_path).other_series == ("not DICOM, ignored: EMPTY",)


def test_error_carries_reason_and_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile) as caught:
        read_study(tmp_path / "gone")
    assert caught.value.file == tmp_path / "gone"
    assert caught.value.kind == "UnreadableFile"
    assert caught.value.reason.startswith("does not exist")


SCANS = (
    *("qin_lsc_0014", "qin_lsc_0028", "qin_lsc_0049", "qin_lsc_0088", "qin_lung_01_0007"),
    *("cmb_crc_01068", "lungfcp_01_0001"),
)


@pytest.mark.parametrize("name", SCANS)
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


@pytest.mark.parametrize(
    ("patient", "slices", "nodule"),
    [("0001", 16, (57.24, 84.94, -115.62)), ("0003", 11, (72.15, 77.83, -191.81))],
)
def test_slab(
    patient: str, slices: int, nodule: tuple[float, float, float], shared_data: Path
) -> None:
    study = read_study(shared_data / f"ct/lidc_slabs/LIDC-IDRI-{patient}")
    assert study.volume.shape == (slices, 512, 512)
    assert study.other_series == ("not DICOM, ignored: annotation.xml",)
    z, y, x = np.rint(study.volume.geometry.to_index(nodule)).astype(int)
    assert study.volume.hu[z - 1 : z + 2, y - 3 : y + 4, x - 3 : x + 4].mean() > -100
