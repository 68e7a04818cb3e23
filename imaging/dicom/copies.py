"""Leave out the images of a series that show nothing new: copies, whatever UIDs they have."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from imaging.dicom.frames import frames_of
from imaging.dicom.header import Instance
from imaging.dicom.pixels import StoredArray, stored_frames
from imaging.dicom.series import Series
from imaging.dicom.stack import Slice, slice_of
from imaging.errors import StudyError

_OWN = "PatientID", "PatientName", "StudyInstanceUID", "AcquisitionNumber"
"""Images that differ in one of these are no copies, whatever they show."""


def without_copies(series: Sequence[Series], only: Path | None) -> tuple[list[Series], list[Path]]:
    """Leave out images with the place and pixels of another one of their series; list their files.

    The file ``only`` is kept, then an original before a derived image, then the one in the upper
    folder: images that came later lie below those of their study.
    """
    copies = set[Path]()
    for item in series:
        found: dict[tuple[object, ...], list[list[Slice]]] = defaultdict(list)
        is_alone = item.unfit or len(item.images) < 2
        for image in () if is_alone else sorted(item.images, key=lambda i: _rank(i, only)):
            with suppress(StudyError):  # whatever it is, reading says so
                slices = [slice_of(frame) for frame in frames_of(image)]
                # two acquisitions are told apart as a whole: both may have slices without content
                found[*map(image.text, _OWN), *map(_place, slices)].append(slices)
        for alike in found.values():
            kept = list[list[StoredArray]]()
            for slices in alike if len(alike) > 1 else ():
                with suppress(StudyError):
                    frames = stored_frames(slices)
                    if any(all(map(np.array_equal, frames, other)) for other in kept):
                        copies.add(slices[0].file)
                    else:
                        kept.append(frames)
    left = [replace(s, images=tuple(i for i in s.images if i.file not in copies)) for s in series]
    return left, sorted(copies)


def _rank(image: Instance, only: Path | None) -> tuple[object, ...]:
    is_derived = "DERIVED" in image.texts("ImageType")
    return image.file != only, is_derived, len(image.file.parts), image.file


def _place(one: Slice) -> tuple[object, ...]:
    numbers = (*one.position_mm, *one.axes.ravel(), *one.pixel_mm)
    layout = replace(one.layout, padding=None)
    return layout, one.rescale, *(round(float(number), 2) + 0.0 for number in numbers)
