"""Read the images of a study while it still arrives: their headers, and the HU of their slices.

What was read of a file counts only while that is the same file, unchanged: `state_of` tells. So the
study may be moved meanwhile. An image that comes late, twice or changed is read again. What depends
on several images is decided when the study is complete, as for any other study. A file that cannot
be read ahead is read then, and the error says what is wrong with it.
"""

import os
import time
import warnings
from dataclasses import replace
from pathlib import Path

from imaging.dicom.arrival import files_of
from imaging.dicom.header import Instance, read_instance
from imaging.dicom.pixels import decode_slice
from imaging.dicom.planes import Plane, Planes
from imaging.dicom.series import group
from imaging.dicom.stack import slice_of
from imaging.errors import is_machine_fault, is_out_of_memory
from process.files import state_of

TICK_S = 0.05
"""A file may change again, with the same time, within one tick of the clock: at most 10 ms."""


class ReadAhead:
    """What was read of files before their study is complete.

    Args:
        most_bytes: of HU that are kept.
        settled_s: files that changed less long ago may be in the middle of a copy.
    """

    def __init__(self, most_bytes: int, settled_s: float = 0.0) -> None:
        self._left, self._settled_s = most_bytes, max(settled_s, TICK_S)
        self._known: dict[tuple[int, ...], Instance | None] = {}
        self._planes: dict[tuple[str, int, int], Planes] = {}

    @property
    def images(self) -> int:
        """How many images were read."""
        return sum(image is not None for image in self._known.values())

    def new_in(self, study: Path) -> list[Path]:
        """Return the files of a study that can be taken in now, in the order of their arrival."""
        latest_ns = time.time_ns() - self._settled_s * 1e9
        found = {file: key for file in files_of(study) if (key := _key(file)) is not None}
        new = [
            f for f, key in found.items() if key not in self._known and max(key[3:]) <= latest_ns
        ]
        return sorted(new, key=lambda file: found[file][3])

    def take_in(self, file: Path) -> None:
        """Read a file, if it is a usual one.

        Raises:
            OSError, MemoryError: a fault of the machine.
        """
        if (key := _key(file)) is None:
            return
        self._known[key] = None
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="pydicom")
                image = read_instance(file)
                self._known[key] = replace(image, plane=self._decoded(image))
        except Exception as error:  # whatever it is: it is left to the reading of the study
            if is_machine_fault(error) or is_out_of_memory(error):
                raise

    def is_known(self, file: Path) -> bool:
        """Return whether a file was read, and is an image."""
        return (key := _key(file)) is not None and self._known.get(key) is not None

    def instance(self, file: Path) -> Instance:
        """Return the header of a file, with its slice where that is decoded.

        Raises:
            As `imaging.dicom.header.read_instance`.
        """
        key = _key(file)
        known = self._known.get(key) if key else None
        return read_instance(file) if known is None else replace(known, file=file)

    def _decoded(self, image: Instance) -> Plane | None:
        """Decode the slice of a usual image of a CT; None for any other, and where no room is."""
        if image.pixels is None or group([image])[0].unfit:
            return None
        one = slice_of(image)
        size = one.layout.rows, one.layout.columns
        planes = self._planes.setdefault((image.text("SeriesInstanceUID"), *size), Planes(*size))
        room = planes.room()
        if room.nbytes > self._left:
            return None
        measures = decode_slice(one, room)
        self._left -= room.nbytes
        planes.count += 1
        return Plane(planes, planes.count - 1, measures)


def _key(file: Path) -> tuple[int, ...] | None:
    try:
        return state_of(os.stat(file, follow_symlinks=False))
    except OSError as error:
        if is_machine_fault(error):
            raise
        return None
