"""Leave out what comes twice: files that equal another one, and images that show no more than one.

A derived image may repeat an original, and a study may be sent again under other UIDs. Where every
slice of an image has the place and the HU of a slice that is there, the image shows nothing new.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from imaging.dicom.frames import frames_of
from imaging.dicom.header import Instance
from imaging.dicom.pixels import decode_image
from imaging.dicom.series import Series
from imaging.dicom.stack import Slice, slice_of
from imaging.errors import StudyError
from imaging.files import open_plain
from imaging.volume import HuArray

_PLACE_DIGITS = 2
"""Of mm and direction cosines, at which two slices are at one place."""


def without_equal_files(
    images: Sequence[Instance], only: Path | None
) -> tuple[list[Instance], list[Path]]:
    """Leave out files that equal another byte for byte, and list them; ``only`` is kept.

    Files of one image that differ stay: it cannot be known which of them is right.
    """
    same_uid = Counter(image.text("SOPInstanceUID") for image in images)
    kept: dict[bytes, Path] = {}
    copies: list[Path] = []
    for image in sorted(images, key=lambda image: image.file != only):
        if same_uid[image.text("SOPInstanceUID")] > 1:
            with open_plain(image.file) as stream:
                digest = hashlib.file_digest(stream, "sha256").digest()
            if kept.setdefault(digest, image.file) != image.file:
                copies.append(image.file)
    left_out = set(copies)
    return [image for image in images if image.file not in left_out], copies


def without_equal_images(one: Series, only: Path | None) -> tuple[Series, list[Path]]:
    """Leave out images of a series that show the same slices as another, and list their files.

    The file ``only`` is kept, then an original before a derived image, then the one in the upper
    folder: images that came later lie below those of their study. Only places that occur twice
    cost time.
    """
    found: dict[tuple[object, ...], list[tuple[Instance, list[Slice]]]] = defaultdict(list)

    def rank(image: Instance) -> tuple[object, ...]:
        is_derived = "DERIVED" in image.texts("ImageType")
        return image.file != only, is_derived, len(image.file.parts), image.file

    is_alone = one.unfit or len(one.images) < 2
    for image in () if is_alone else sorted(one.images, key=rank):
        with suppress(StudyError):  # whatever it is, reading says so
            slices = [slice_of(frame) for frame in frames_of(image)]
            found[tuple(map(_place, slices))].append((image, slices))
    copies = list[Path]()
    for alike in found.values():
        kept = list[HuArray]()
        for image, slices in alike if len(alike) > 1 else []:
            with suppress(StudyError):
                hu = decode_image(slices)
                if any(np.array_equal(hu, other) for other in kept):
                    copies.append(image.file)
                else:
                    kept.append(hu)
    left_out = set(copies)
    images = tuple(image for image in one.images if image.file not in left_out)
    return (replace(one, images=images) if copies else one), copies


def _place(one: Slice) -> tuple[float, ...]:
    layout, numbers = one.layout, (*one.position_mm, *one.axes.ravel(), *one.pixel_mm)
    rounded = (round(float(number), _PLACE_DIGITS) + 0.0 for number in numbers)
    return (layout.rows, layout.columns, *rounded)
