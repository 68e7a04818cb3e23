"""Write a volume as a CT series in DICOM files: CT Image Storage, explicit VR little endian.

Pixels are HU in signed 16 bits (slope 1, intercept 0), so that reading gives exactly what was
written. Dates come from the header only, never from the clock. With a seed, the same volume gives
the same bytes.
"""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from imaging.volume import Geometry, HuArray, StudyHeader, Volume

_PERPENDICULAR = 1e-4
"""How far the cosine between the third axis and the slice normal may be from 1."""


def write_series(
    volume: Volume, folder: Path, *, header: StudyHeader | None = None, seed: int | None = None
) -> list[Path]:
    """Write one file a slice, and return the files in the order of the volume's z.

    Args:
        volume: what to write; its description stands in where the header has none, and its series
            UID is used if it has one.
        folder: created if missing; must not hold DICOM files.
        header: patient and examination; empty fields are written empty.
        seed: makes the UIDs reproducible; without it they are new.

    Raises:
        FileExistsError: ``folder`` holds ``.dcm`` files.
        ValueError: the third axis is not the normal of the slices, which DICOM cannot express.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.dcm")):
        raise FileExistsError(f"{folder} already holds a series: choose an empty folder")
    direction = volume.geometry.direction
    normal = np.cross(direction[:, 0], direction[:, 1])
    if abs(float(normal @ direction[:, 2]) - 1) > _PERPENDICULAR:
        matrix = direction.tolist()
        raise ValueError(f"the third axis is not the normal of the slices, direction {matrix}")
    shared = _shared(volume, header or StudyHeader(), seed)
    paths = []
    for k, hu in enumerate(volume.hu):
        paths.append(folder / f"{k + 1:05d}.dcm")
        _slice(shared, volume.geometry, hu, k, seed).save_as(paths[-1], enforce_file_format=True)
    return paths


def _uid(seed: int | None, *names: str) -> UID:
    return generate_uid(entropy_srcs=None if seed is None else [str(seed), *names])


def _shared(volume: Volume, header: StudyHeader, seed: int | None) -> Dataset:
    """Build the attributes that are the same in every file of the series."""
    ds = Dataset()
    # patient and study
    ds.PatientName, ds.PatientID = header.patient_name, header.patient_id
    ds.PatientBirthDate, ds.PatientSex = "", header.sex
    if header.age:
        ds.PatientAge = header.age
    ds.StudyInstanceUID, ds.StudyID = header.study_uid or _uid(seed, "study"), ""
    ds.StudyDate, ds.StudyTime = header.study_date, ""
    ds.AccessionNumber, ds.ReferringPhysicianName = header.accession, ""
    # series
    ds.Modality = header.modality
    ds.SeriesInstanceUID, ds.SeriesNumber = volume.series_uid or _uid(seed, "series"), 1
    ds.SeriesDescription = (header.series_description or volume.description)[:64]
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = _uid(seed, "frame"), ""
    ds.Manufacturer, ds.ConvolutionKernel = header.manufacturer, header.kernel
    # image
    ds.SOPClassUID, ds.ImageType = CTImageStorage, ["DERIVED", "SECONDARY", "AXIAL"]
    ds.KVP, ds.AcquisitionNumber, ds.PatientPosition = None, 1, "HFS"
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "HU"
    ds.WindowCenter, ds.WindowWidth = -600, 1500
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    # grid
    _, ds.Rows, ds.Columns = volume.shape
    spacing, direction = volume.geometry.spacing_mm, volume.geometry.direction
    ds.PixelSpacing = [_ds(spacing[1]), _ds(spacing[2])]
    ds.SliceThickness = ds.SpacingBetweenSlices = _ds(spacing[0])
    ds.ImageOrientationPatient = [_ds(v) for v in (*direction[:, 0], *direction[:, 1])]
    return ds


def _slice(
    shared: Dataset, geometry: Geometry, hu: HuArray, k: int, seed: int | None
) -> FileDataset:
    """Build the file of slice ``k``, pixels ``hu`` int16 ``(y, x)``."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(seed, "slice", str(k))
    ds = FileDataset("", dict(shared), preamble=b"\0" * 128, file_meta=meta)
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.InstanceNumber = k + 1
    position_mm = geometry.to_world((k, 0, 0))
    ds.ImagePositionPatient = [_ds(v) for v in position_mm]
    ds.SliceLocation = _ds(float(position_mm @ geometry.direction[:, 2]))
    ds.PixelData = np.ascontiguousarray(hu, dtype="<i2").tobytes()
    return ds


def _ds(value: float) -> DSfloat:
    """Format a decimal string of at most 16 characters, as DICOM requires."""
    return DSfloat(float(value), auto_format=True)
