"""The stored values of a file's frames, whatever its transfer syntax."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from imaging import compressed
from imaging.errors import UnreadableFile
from imaging.folder import is_bare, read_head
from imaging.instance import load
from imaging.layout import Layout

StoredArray = npt.NDArray[Any]

_NATIVE = {
    "",  # a data set without preamble says nothing: then it is native
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
}


def is_native(transfer_syntax: str) -> bool:
    """Whether pixels are stored as they are, without a codec."""
    return transfer_syntax in _NATIVE


def stored_frames(
    file: Path, frames: Sequence[int], layout: Layout, transfer_syntax: str
) -> list[StoredArray]:
    """The stored values of the frames, each ``(rows, columns)``, int16 or uint16.

    Raises:
        UnreadableFile: the pixel data is missing, cut off or damaged, or in a transfer syntax
            that cannot be read.
    """
    if transfer_syntax not in _NATIVE | compressed.SYNTAXES:
        reason = f"transfer syntax {transfer_syntax} cannot be read"
        raise UnreadableFile(f"{reason}: send it uncompressed or in a lossless one", file)
    data = load(file, ("PixelData",), bare=is_bare(read_head(file)), pixels=True)
    try:
        content = _content(data)
        if is_native(transfer_syntax):
            return [_native(content, frame, layout, transfer_syntax) for frame in frames]
        encoded = list(generate_frames(content, number_of_frames=max(frames) + 1))
        return [compressed.decode(encoded[f], layout, transfer_syntax) for f in frames]
    # generate_frames meets damaged encapsulation with ValueError, struct.error, EOFError ...
    except Exception as error:
        raise UnreadableFile(f"pixel data: {error}: send the file again", file) from None


def _content(data: Dataset) -> bytes:
    content = data.get("PixelData")
    if not isinstance(content, bytes) or not content:
        raise ValueError("missing")
    return content


def _native(content: bytes, frame: int, layout: Layout, transfer_syntax: str) -> StoredArray:
    needed = (frame + 1) * layout.frame_bytes
    if len(content) < needed:
        raise ValueError(f"cut off, {len(content)} of {needed} bytes")
    order = ">" if transfer_syntax == ExplicitVRBigEndian else "<"
    return np.frombuffer(
        content,
        f"{order}{'i' if layout.signed else 'u'}2",
        layout.rows * layout.columns,
        offset=needed - layout.frame_bytes,
    ).reshape(layout.rows, layout.columns)
