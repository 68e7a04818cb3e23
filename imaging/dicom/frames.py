"""Split multi-frame images (Enhanced CT) into one instance for each frame."""

from pydicom import Dataset

from imaging.dicom.header import Instance
from imaging.errors import IrregularGeometry, UnreadableFile

MAX_FRAMES = 4096
_MACROS = (
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "CTReconstructionSequence",
)


def frames_of(image: Instance) -> list[Instance]:
    """Split a multi-frame image (Enhanced CT) into one instance per frame.

    Each gets the values of its functional groups at the top level: a value of the shared groups
    holds for every frame, one of the per-frame groups for its own (DICOM PS3.3, C.7.6.16). A
    single-frame image is returned as it is.

    Raises:
        UnreadableFile: the groups are damaged, or their number is not that of the frames.
        IrregularGeometry: there are several frames without positions.
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
    top = Dataset()
    top.update({e.tag: e for e in image.data if "FunctionalGroups" not in e.keyword})
    # Enhanced CT has no ContrastBolusAgent: it names the agent by a code (C.7.6.4b)
    if agents := top.get("ContrastBolusAgentSequence"):
        top.ContrastBolusAgent = str(agents[0].get("CodeMeaning") or "not named")
    frames = []
    for frame, own in enumerate(groups):
        flat = Dataset()
        flat.update(top)
        for group in (shared[0], own):
            for macro in _MACROS:
                for item in group.get(macro, [])[:1]:
                    flat.update(item)
        frames.append(Instance(image.file, flat, image.transfer_syntax, frame))
    return frames
