"""Multi-frame images (Enhanced CT): each frame as if it were an image of its own."""

from __future__ import annotations

from pydicom import Dataset

from imaging.errors import IrregularGeometry, UnreadableFile
from imaging.instance import Instance

MAX_FRAMES = 4096

_MACROS = (
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "CTAcquisitionDetailsSequence",
)


def frames_of(image: Instance) -> list[Instance]:
    """The frames of one file, with what the functional groups say of each at the top level.

    A classic single-frame image is returned as it is (DICOM PS3.3, C.7.6.16: a value in the
    shared groups holds for every frame, one in the per-frame groups for its own).

    Raises:
        UnreadableFile: the groups are damaged or fewer than the frames.
        IrregularGeometry: there are several frames and nothing says where they lie.
    """
    count = image.integer("NumberOfFrames") or 1
    if "PerFrameFunctionalGroupsSequence" not in image.data:
        if count == 1:
            return [image]
        reason = f"{count} frames without functional groups: send the original series"
        raise IrregularGeometry(reason, image.file)
    try:
        return _flattened(image, count)
    # Nested values fail in pydicom as top-level ones do: with any exception.
    except Exception as error:
        reason = f"damaged functional groups ({type(error).__name__}: {error})"[:160]
        raise UnreadableFile(f"{reason}: send the file again", image.file) from None


def _flattened(image: Instance, count: int) -> list[Instance]:
    shared = image.data.get("SharedFunctionalGroupsSequence") or [Dataset()]
    groups = list(image.data.PerFrameFunctionalGroupsSequence)
    if len(groups) != count or count > MAX_FRAMES:
        raise ValueError(f"{len(groups)} groups for {count} frames, at most {MAX_FRAMES}")
    top = _without_groups(image.data)
    return [
        Instance(image.file, _merged(top, shared[0], group), image.transfer_syntax, frame)
        for frame, group in enumerate(groups)
    ]


def _without_groups(data: Dataset) -> Dataset:
    top = Dataset()
    top.update({e.tag: e for e in data if "FunctionalGroups" not in e.keyword})
    return top


def _merged(top: Dataset, shared: Dataset, own: Dataset) -> Dataset:
    flat = Dataset()
    flat.update(top)
    for group in (shared, own):
        for macro in _MACROS:
            for item in group.get(macro, [])[:1]:
                flat.update(item)
    return flat
