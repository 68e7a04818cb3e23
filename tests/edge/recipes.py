"""Recipes that spoil a real chest scan, and what reading it then says.

A recipe changes a copy of one whole scan that has no limitation. The real functions read the copy:
files, lung box, limitations, guarantee. No network runs: these reasons come before it.
"""

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

from edge.decide import Plan
from edge.escalation.rois import EscalationResult
from edge.guarantee import UNREAD, Guarantee, guarantee_of, guarantee_of_model
from edge.limitations import limitations_of
from edge.settings.core import EdgeSettings
from imaging.dicom.header import read_instance
from imaging.dicom.pixels import stored_frames
from imaging.dicom.stack import slice_of
from imaging.errors import StudyError
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import Study
from models.runtime.package import read_package
from models.runtime.screener import read_by

SCAN = "lidc/lidc_0001"
STORED_AIR = 24
"""The stored value of air, -1000 HU; stored 0 is -1024 HU."""
Pixels = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Scan:
    """The files of one uncompressed series, feet first: ``000.dcm``, ``001.dcm`` and on."""

    folder: Path

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.dcm"))

    def copied(self, folder: Path) -> "Scan":
        """A copy whose files are links; `edit`, `remove` and `add` leave the original as it is."""
        folder.mkdir(parents=True)
        for file in self.files:
            os.link(file, folder / file.name)
        return Scan(folder)

    def pixels(self, index: int) -> Pixels:
        """The stored values of a slice, ``(rows, columns)``; HU = stored - 1024."""
        return pixels_of(dcmread(self.folder / f"{index:03}.dcm"))

    def edit(self, indices: Iterable[int], change: Callable[[Dataset], object]) -> None:
        """Let ``change`` alter the data set of each of these slices."""
        for index in indices:
            file = self.folder / f"{index:03}.dcm"
            data = dcmread(file)
            change(data)
            self.add(data, file.name)

    def edit_pixels(self, indices: Iterable[int], change: Callable[[Pixels], Pixels]) -> None:
        """Replace the stored values of each of these slices by what ``change`` makes of them."""
        self.edit(indices, lambda data: set_pixels(data, change(pixels_of(data))))

    def set(self, indices: Iterable[int], **attributes: object) -> None:
        def change(data: Dataset) -> None:
            for keyword, value in attributes.items():
                setattr(data, keyword, value)

        self.edit(indices, change)

    def become_nifti(
        self, spacing_mm: tuple[float, float, float], change: Callable[[Any], Any]
    ) -> None:
        """Put a NIfTI file in the place of the series; ``change`` alters its HU."""
        hu = np.stack([self.pixels(z) for z in range(len(self.files))]).astype(np.float64) - 1024
        image = sitk.GetImageFromArray(np.clip(change(hu), -1024, None).astype(np.int16))
        image.SetSpacing(spacing_mm)
        for file in self.files:
            file.unlink()
        sitk.WriteImage(image, str(self.folder / "scan.nii"))

    def add(self, data: Dataset, name: str) -> None:
        """Write a data set as a file of this name, in place of one that is there."""
        (self.folder / name).unlink(missing_ok=True)  # it may be a link to the original
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of values that recipes spoil
            data.save_as(self.folder / name)


def pixels_of(data: Dataset) -> Pixels:
    """The stored values of a data set, ``(rows, columns)``; they may be changed."""
    return np.frombuffer(data.PixelData, "<i2").reshape(data.Rows, data.Columns).copy()


def set_pixels(data: Dataset, values: npt.NDArray[np.generic]) -> None:
    data.PixelData = np.clip(values, 0, 32767).astype("<i2").tobytes()


def stored_pixels(file: Path) -> Pixels:
    """The stored values of a shared file, the mean of 2 x 2 pixels: a quarter of the time."""
    one = slice_of(read_instance(file))
    (stored,) = stored_frames([one])
    rows, columns = stored.shape
    mean = stored.reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3))
    return np.asarray(mean.round(), dtype=np.int16)


def base_scan(shared_data: Path, folder: Path) -> Scan:
    """Write the whole scan uncompressed, with the age and kernel that its copies are read by."""
    folder.mkdir()
    images = [dcmread(file) for file in sorted((shared_data / SCAN).glob("*.dcm"))]
    for index, data in enumerate(sorted(images, key=lambda one: one.ImagePositionPatient[2])):
        values = stored_pixels(Path(str(data.filename)))
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 15, 1
        data.Rows, data.Columns = values.shape
        data.PixelSpacing = [2 * float(mm) for mm in data.PixelSpacing]
        set_pixels(data, values)
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OW", False
        data.PatientAge, data.ConvolutionKernel = "060Y", "STANDARD"
        Scan(folder).add(data, f"{index:03}.dcm")
    return Scan(folder)


@dataclass(frozen=True)
class Outcome:
    """What reading a scan said; all but ``refusal`` is None or empty where it was refused."""

    refusal: StudyError | None = None
    study: Study | None = None
    box: Preprocessed | None = None
    texts: tuple[str, ...] = ()
    guarantee: Guarantee = UNREAD


@cache
def shipped() -> Guarantee:
    """The most that a report of the shipped screening model guarantees."""
    model = read_package(EdgeSettings.model_fields["screening_model"].default).model
    return guarantee_of_model(model.settings, read_by(model.version))


def outcome(folder: Path) -> Outcome:
    """Read a folder as the edge does, and say what its report would."""
    most = shipped()
    try:
        study = read_study(folder)
        box = preprocess(study.volume, folder)
    except StudyError as error:
        return Outcome(error)
    limitations = limitations_of(study, box, (), most.terms)
    guarantee = guarantee_of(most, Plan(()), EscalationResult(), limitations)
    return Outcome(None, study, box, tuple(one.text for one in limitations), guarantee)


@dataclass(frozen=True)
class Recipe:
    """A way to spoil a scan, and what its report must say.

    ``says`` are fragments of the refusal's reason where ``refusal`` is set, else of the texts of
    the limitations.
    """

    name: str
    spoil: Callable[[Scan], object]
    says: tuple[str, ...]
    refusal: type[StudyError] | None = None

    def check(self, scan: Scan) -> None:
        """Spoil the scan, read it, and require no guarantee and the reason."""
        self.spoil(scan)
        found = outcome(scan.folder)
        if self.refusal is not None:
            assert isinstance(found.refusal, self.refusal), (found.refusal, found.texts)
        else:
            assert found.refusal is None, found.refusal
            assert not found.guarantee.given
        said = str(found.refusal) if self.refusal else " ".join(found.texts)
        for fragment in self.says:
            assert fragment in said, said


@pytest.fixture(scope="session")
def base(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """The whole scan that recipes spoil; import this fixture where it is used."""
    return base_scan(shared_data, tmp_path_factory.mktemp("base") / "scan")
