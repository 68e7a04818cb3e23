"""Small valid CT series, written as a scanner would, for the tests of the reader."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEGLosslessSV1

SIZE = 32


@dataclass(frozen=True)
class SmallCt:
    """Slices of a round chest in air, 32 x 32 pixels of 2 mm; slice k has k HU in its middle.

    ``images`` makes data sets, feet first; a test may change them; ``write`` saves them, named by
    index.
    """

    count: int = 12
    spacing_mm: float = 2.5
    series: str = "1"
    description: str = "chest"
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0)
    step_mm: tuple[float, float, float] | None = None
    attributes: dict[str, object] = field(default_factory=dict)

    def hu(self) -> np.ndarray:
        """The truth, int16 ``(count, 32, 32)``."""
        y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
        radius = np.hypot(y, x)
        plane = np.where(radius < 13, 40, -1000)
        plane = np.where((radius < 10) & (abs(x) > 2), -850, plane)
        hu = np.repeat(plane[None].astype(np.int16), self.count, axis=0)
        hu[:, SIZE // 2, SIZE // 2] = np.arange(self.count)
        return hu

    def images(self) -> list[Dataset]:
        """One data set a slice, signed 16 bits with an intercept of -1024."""
        return [self._image(index, plane) for index, plane in enumerate(self.hu())]

    def _image(self, index: int, hu: np.ndarray) -> Dataset:
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        uid = f"1.2.826.0.1.{self.series}.{index + 1}"
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = UID(uid)
        data.PatientID, data.PatientName, data.StudyInstanceUID = "P1", "Test^Chest", "1.2.826.1"
        data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.SeriesInstanceUID = f"1.2.826.0.1.{self.series}"
        data.SeriesDescription, data.InstanceNumber = self.description, index + 1
        data.Rows = data.Columns = SIZE
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelRepresentation, data.RescaleSlope, data.RescaleIntercept = 1, 1, -1024
        data.PixelSpacing, data.SliceThickness = [2, 2], round(self.spacing_mm, 3)
        data.ImageOrientationPatient = list(self.orientation)
        step = self.step_mm or (0, 0, self.spacing_mm)
        data.ImagePositionPatient = [round(-30 + index * v, 4) for v in step]
        data.PixelData = (hu + 1024).astype("<i2").tobytes()
        for keyword, value in self.attributes.items():
            setattr(data, keyword, value)
        return data

    def write(self, folder: Path, images: list[Dataset] | None = None) -> list[Path]:
        """Save the images, ``folder/000.dcm`` and on; returns the files."""
        folder.mkdir(parents=True, exist_ok=True)
        images = self.images() if images is None else images
        files = [folder / f"{index:03}.dcm" for index in range(len(images))]
        for file, image in zip(files, images, strict=True):
            image.save_as(file, enforce_file_format=True)
        return files


def encoded(image: Dataset, syntax: str) -> bytes:
    """Compress the image and return its frame; ``syntax`` ends a transfer syntax UID."""
    if UID(f"1.2.840.10008.1.2.{syntax}") != JPEGLosslessSV1:
        image.compress(f"1.2.840.10008.1.2.{syntax}", generate_instance_uid=False)
        return next(generate_frames(image.PixelData, number_of_frames=1))
    stored = np.frombuffer(image.PixelData, "<i2").reshape(1, SIZE, SIZE)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")  # lossless, of first order: .70
    with TemporaryDirectory() as folder:
        writer.SetFileName(f"{folder}/a.dcm")
        writer.Execute(sitk.GetImageFromArray(stored))
        frame = next(generate_frames(dcmread(f"{folder}/a.dcm").PixelData, number_of_frames=1))
    set_frames(image, syntax, [frame])
    return frame


def set_frames(image: Dataset, syntax: str, frames: list[bytes], **layout: object) -> None:
    """Replace the pixel data by encoded frames; ``layout`` is that of `encapsulate`."""
    image.file_meta.TransferSyntaxUID = UID(f"1.2.840.10008.1.2.{syntax}")
    image.PixelData = encapsulate(frames, **layout)
    image["PixelData"].VR = "OB"
    image["PixelData"].is_undefined_length = True
