"""One compressed frame as its values, by SimpleITK's GDCM: fast, and free of Python's lock.

GDCM reads files only, and reads the whole header of a study's file anew. So each frame is
written into a file of its own with nothing but the pixel attributes: quicker, and independent
of what else the file says.
"""

from __future__ import annotations

import os
import struct
import tempfile
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from imaging import codestream
from imaging.layout import Layout

SYNTAXES = frozenset(
    {
        *(JPEGLossless, JPEGLosslessSV1, JPEGLSLossless),
        *(JPEGLSNearLossless, JPEG2000Lossless, JPEG2000, RLELossless),
    }
)
"""The transfer syntaxes of compressed CT that can be read."""

_ITEM, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)


def decode(frame: bytes, layout: Layout, transfer_syntax: str) -> npt.NDArray[Any]:
    """The stored values of one frame, ``(rows, columns)``, int16 or uint16.

    Raises:
        ValueError: the frame is damaged; the message says how.
    """
    rle = transfer_syntax == RLELossless
    codestream.check(frame, layout.rows, layout.columns, rle=rle)
    values = _read_image(_file_head(layout, transfer_syntax) + _encapsulated(frame))
    if values.shape != (layout.rows, layout.columns):
        raise ValueError(f"decodes to {values.shape} values")
    return values


def _read_image(content: bytes) -> npt.NDArray[Any]:
    handle, name = tempfile.mkstemp(suffix=".dcm")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(name)
        image = reader.Execute()
        return np.asarray(sitk.GetArrayFromImage(image)[0])
    except RuntimeError:
        raise ValueError("the compressed picture cannot be decoded") from None
    finally:
        os.unlink(name)


@lru_cache(maxsize=16)
def _file_head(layout: Layout, transfer_syntax: str) -> bytes:
    """A DICOM file up to its pixel data, with no rescaling and nothing of the patient."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, UID("1.2.3")
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = layout.rows, layout.columns
    data.BitsAllocated, data.BitsStored = 16, layout.bits_stored
    data.HighBit = layout.high_bit
    data.PixelRepresentation = int(layout.signed)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    stream = BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _encapsulated(frame: bytes) -> bytes:
    """The pixel data element with the frame as its one fragment (DICOM PS3.5, annex A.4)."""
    even = frame + b"\x00" * (len(frame) % 2)
    start = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    table, end = struct.pack("<HHI", *_ITEM, 0), struct.pack("<HHI", *_SEQUENCE_END, 0)
    return start + table + struct.pack("<HHI", *_ITEM, len(even)) + even + end
