"""Read the pixel data of a stack of slices: the stored values of its files, and their HU."""

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.encaps import generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from imaging import c_stderr
from imaging.dicom import codecs
from imaging.dicom.header import load
from imaging.dicom.layout import Layout, write_hu
from imaging.dicom.planes import in_order
from imaging.dicom.scan import one_frame
from imaging.dicom.stack import Slice, Stack
from imaging.errors import UnreadableFile, is_machine_fault
from imaging.files import open_plain
from imaging.slices import SliceMeasures
from imaging.volume import HuArray

StoredArray = npt.NDArray[Any]

_NATIVE = {
    "",  # a data set without preamble does not state its syntax: it is native
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
}
TRANSFER_SYNTAXES = frozenset(map(UID, (_NATIVE - {""}) | codecs.SYNTAXES))
"""What can be decoded."""


def decoded(stack: Stack) -> tuple[HuArray, tuple[SliceMeasures, ...]]:
    """Return the HU of every slice, ``(z, y, x)``, and what is measured of each.

    Those that are decoded already are not copied if they lie in this order or its reverse. Damage
    that a library reports is an error.
    """
    planes = [one.plane for one in stack.slices]
    if (hu := in_order(planes)) is not None:
        return hu, tuple(plane.measures for plane in planes if plane)
    if stack.slices[0].transfer_syntax in _NATIVE:
        return _decode(stack)
    try:
        with c_stderr.captured():
            return _decode(stack)
    except c_stderr.ReportedDamage as damage:
        reason = f"pixel data: {damage}: send the file again"
        raise UnreadableFile(reason, _damaged_file(stack)) from None


def _damaged_file(stack: Stack) -> Path:
    """Find the first file whose damage the decoder reports, one by one."""
    for image in stack.slices:
        try:
            with c_stderr.captured():
                stored_frames([image])
        except c_stderr.ReportedDamage:
            return image.file
    return stack.slices[0].file.parent


def _decode(stack: Stack) -> tuple[HuArray, tuple[SliceMeasures, ...]]:
    """Decode and measure every slice; files are decoded in parallel."""
    slices, layout = stack.slices, stack.slices[0].layout
    hu = np.empty((len(slices), layout.rows, layout.columns), np.int16)
    measures: dict[int, SliceMeasures] = {}
    slices_of: dict[Path, list[int]] = defaultdict(list)
    for z, image in enumerate(slices):
        if image.plane is not None:
            hu[z], measures[z] = image.plane.hu, image.plane.measures
        else:
            slices_of[image.file].append(z)

    def decode_file(zs: Sequence[int]) -> None:
        for z, values in zip(zs, stored_frames([slices[z] for z in zs], hu[zs[0]]), strict=True):
            write_hu(values, slices[z].layout, slices[z].rescale, hu[z])
            measures[z] = SliceMeasures.of(hu[z], slices[0].pixel_mm)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        try:
            tasks = [pool.submit(decode_file, zs) for zs in slices_of.values()]
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return hu, tuple(measures[z] for z in range(len(slices)))


def decode_slice(one: Slice, out: HuArray) -> SliceMeasures:
    """Decode the HU of the only slice of a file into ``out``, and measure them.

    Raises:
        UnreadableFile: as `stored_frames`; also for damage that a library reports.
    """
    try:
        with c_stderr.captured() if one.transfer_syntax not in _NATIVE else nullcontext():
            (values,) = stored_frames([one], out)
    except c_stderr.ReportedDamage as damage:
        raise UnreadableFile(f"pixel data: {damage}: send the file again", one.file) from None
    write_hu(values, one.layout, one.rescale, out)
    return SliceMeasures.of(out, one.pixel_mm)


def stored_frames(slices: Sequence[Slice], room: HuArray | None = None) -> list[StoredArray]:
    """Read the stored values of slices of one file, each ``(rows, columns)``, int16 or uint16.

    One that is stored as it is may be read into ``room``, int16 of its size.

    Raises:
        UnreadableFile: the pixel data is missing, truncated or damaged, or its transfer syntax is
            not supported.
    """
    one = slices[0]
    file, layout, transfer_syntax = one.file, one.layout, one.transfer_syntax
    if transfer_syntax not in _NATIVE | codecs.SYNTAXES:
        name = UID(transfer_syntax).name[:80]
        reason = f"transfer syntax {name} ({transfer_syntax[:64]}) is not supported"
        raise UnreadableFile(f"{reason}: send the file uncompressed", file)
    if len(slices) == 1 and (values := _usual_frame(one, room)) is not None:
        return [values]
    data = load(file, ("PixelData", "NumberOfFrames"), pixels=True)
    try:
        content = data.get("PixelData")
        if not isinstance(content, bytes) or not content:
            raise ValueError("missing or cut off")
        frames = [each.frame for each in slices]
        if transfer_syntax in _NATIVE:
            return [_native(content, frame, layout, transfer_syntax) for frame in frames]
        count = int(data.get("NumberOfFrames") or 1)
        encoded = list(generate_frames(content, number_of_frames=count))
        return [codecs.decode(encoded[f], layout, transfer_syntax) for f in frames]
    # generate_frames meets damaged encapsulation with ValueError, struct.error, EOFError ...
    except Exception as error:
        if is_machine_fault(error):
            raise
        raise UnreadableFile(f"pixel data: {error}: send the file again", file) from None


def _usual_frame(one: Slice, room: HuArray | None) -> StoredArray | None:
    """Read the frame of a file that `scan` knows, without parsing it again.

    None if its frame is damaged: pydicom then says what is wrong.
    """
    known = one.pixels
    if known is None:
        return None
    with open_plain(one.file) as stream:
        stream.seek(known.offset)
        if known.length is None:
            content = stream.read()
        elif (
            room is None or known.length != room.nbytes or stream.readinto(room.data) != room.nbytes
        ):
            return None
        else:
            return room if one.layout.signed else room.view(np.uint16)
    try:
        return codecs.decode(one_frame(content), one.layout, one.transfer_syntax)
    except ValueError:
        return None


def _native(content: bytes, frame: int, layout: Layout, transfer_syntax: str) -> StoredArray:
    frame_bytes = layout.rows * layout.columns * 2
    needed = (frame + 1) * frame_bytes
    if len(content) < needed:
        raise ValueError(f"truncated, {len(content)} of {needed} bytes")
    order = ">" if transfer_syntax == ExplicitVRBigEndian else "<"
    return np.frombuffer(
        content,
        f"{order}{'i' if layout.signed else 'u'}2",
        layout.rows * layout.columns,
        offset=needed - frame_bytes,
    ).reshape(layout.rows, layout.columns)
