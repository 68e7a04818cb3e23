"""Group the images of a folder into series, and choose one: the thinnest axial CT of the lungs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from imaging.dicom.header import Instance, names_of
from imaging.dicom.stack import Stack, slice_of, stack_of
from imaging.errors import IrregularGeometry, NotCt, StudyError, UnreadableFile

MAX_FRAMES = 4096
_MACROS = (
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
)
COVERS_LUNGS_MM = 200.0
"""An adult's lungs are 200 mm or more from apex to base."""
_NOT_SLICES = {"LOCALIZER", "SCOUT", "MIP", "MAX_IP", "MIN_IP", "MINIP", "MAXIP", "VRT"} | {
    *("PROJECTION IMAGE", "VOLREN", "SCREEN SAVE", "SCREENSHOT", "DOSE", "DOSE_INFO", "DOSE INFO")
}
_REFORMATTED = {"MPR", "REFORMATTED", "CSA MPR", "CSA RESAMPLED", "RESAMPLED"}
_CT_CLASSES = {"", *(f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "2.1", "2.2"))}
_CHEST = ("CHEST", "THORAX", "LUNG", "PULM", "TAP", "CAP")
_ELSEWHERE = ("HEAD", "BRAIN", "SKULL", "NECK", "ABDOM", "PELVI", "SPINE", "LEG", "KNEE", "HIP")


@dataclass(frozen=True, eq=False)
class Series:
    """Images of one SeriesInstanceUID; ``unfit`` says why they cannot be read, if so."""

    uid: str
    images: tuple[Instance, ...]
    unfit: str = ""

    @property
    def first(self) -> Instance:
        """The image whose header describes the series."""
        return self.images[0]

    def __str__(self) -> str:
        name = self.first.text("SeriesDescription") or f"series {self.uid or 'without UID'}"
        count = f"{len(self.images)} image{'s' if len(self.images) != 1 else ''}"
        return f"{name!r} ({self.first.text('Modality') or 'no modality'}, {count})"


@dataclass(frozen=True, eq=False)
class Choice:
    """The chosen series with its stack.

    Attributes:
        series: the chosen series.
        stack: its slices.
        others: a line for each other series, with the reason why it was not chosen.
        alternatives: how many of the others would make a volume too.
    """

    series: Series
    stack: Stack
    others: tuple[str, ...]
    alternatives: int = 0


def group(images: Iterable[Instance]) -> list[Series]:
    """Group images into series; images that are not slices of CT form series of their own.

    Raises:
        NotCt: one series mixes CT with another modality.
    """
    groups: dict[tuple[str, str], list[Instance]] = {}
    for image in images:
        key = image.text("SeriesInstanceUID"), _unfit(image)
        groups.setdefault(key, []).append(image)
    series = [Series(uid, tuple(found), unfit) for (uid, unfit), found in groups.items()]
    ct = {s.uid for s in series if s.first.text("Modality") == "CT"}
    for one in series:
        if one.uid in ct and one.first.text("Modality") != "CT":
            reason = f"{one.unfit}, but other images of its series are: send only CT images"
            raise NotCt(reason, one.first.file)
    return series


def choose(series: Sequence[Series], folder: Path) -> Choice:
    """Choose the thinnest axial CT series that covers the lungs, of those that make a volume.

    Raises:
        StudyError: no series makes a volume; the error is that of the largest.
        NotCt: there is no CT series, or there are CT series of several patients.
    """
    fit = [s for s in series if not s.unfit]
    if not fit:
        found = "; ".join(f"{s}: {s.unfit}" for s in series)
        images = [image for one in series for image in one.images]
        file = images[0].file if len(images) == 1 else folder
        raise NotCt(f"no CT slices, only {found}: send the chest CT series", file)
    _require_one_patient(fit, folder)
    stacks: dict[Series, Stack] = {}
    failures: dict[Series, StudyError] = {}
    for one in fit:
        try:
            slices = [slice_of(frame) for image in one.images for frame in frames_of(image)]
            stacks[one] = stack_of(slices, folder)
        except StudyError as error:
            failures[one] = error
    if not stacks:
        raise failures[max(failures, key=lambda s: len(s.images))]
    ranked = sorted(stacks, key=lambda s: _rank(s, stacks))
    reasons = {s: s.unfit for s in series if s.unfit} | {s: str(e) for s, e in failures.items()}
    for other in ranked[1:]:
        size = f"{_thickness_mm(stacks[other]):g} mm slices over {stacks[other].extent_mm:.0f} mm"
        reasons[other] = f"{size}, another series was preferred"
    lines = tuple(f"{s}: {reason}" for s, reason in reasons.items())
    return Choice(ranked[0], stacks[ranked[0]], lines, len(ranked) - 1)


def _unfit(image: Instance) -> str:
    """Say why an image cannot be a slice of a CT volume; empty if it can."""
    if (modality := image.text("Modality")) != "CT":
        return f"modality {modality or 'not given'} is not CT"
    if (sop_class := image.text("SOPClassUID")) not in _CT_CLASSES:
        return f"not a CT image (SOP class {sop_class})"
    if words := _NOT_SLICES & set(image.texts("ImageType")):
        return f"{min(words).lower()}, not slices"
    if (unit := image.text("RescaleType").upper()) not in ("", "US", "HU", "HU_MOD"):
        return f"values are {unit}, not HU"
    return ""


def _require_one_patient(fit: Sequence[Series], folder: Path) -> None:
    """Require one PatientID; an empty one is that of the other images of its study.

    Where no image has one, PatientName stands in; without names there is nothing to compare.
    """
    images = [image for one in fit for image in one.images]
    keyword = "PatientID" if any(image.text("PatientID") for image in images) else "PatientName"
    named = [image for image in images if image.text(keyword)]
    owners = {image.text(keyword): image.file for image in named}
    if len(owners) > 1:
        files = names_of(list(owners.values()))
        reason = f"CT of {len(owners)} patients in one folder ({files}): send one patient a folder"
        raise NotCt(reason, folder)
    known = {image.text("StudyInstanceUID") for image in named} - {""}
    for image in images:
        if named and not image.text(keyword) and image.text("StudyInstanceUID") not in known:
            reason = (
                f"{keyword} is empty, and its study is not that of {named[0].file.name}: it may"
            )
            raise NotCt(f"{reason} be of another patient, send one patient a folder", image.file)


def _rank(one: Series, stacks: dict[Series, Stack]) -> tuple[float, ...]:
    """Compute the sort key: covers the lungs, chest, newest, original, thinnest, longest, first."""
    stack = stacks[one]
    # where none covers the lungs, 0.8 of the longest series is enough
    long_enough = min(COVERS_LUNGS_MM, 0.8 * max(s.extent_mm for s in stacks.values()))
    return (
        stack.extent_mm < long_enough,
        _is_elsewhere(one.first),
        -int(date) if (date := one.first.text("StudyDate")).isdecimal() else 0,
        bool(_REFORMATTED & set(one.first.texts("ImageType"))),
        round(_thickness_mm(stack), 2),
        -stack.extent_mm,
        one.first.advisory("SeriesNumber") or 0.0,
    )


def _thickness_mm(stack: Stack) -> float:
    """Return what limits the resolution along z: the thickness or the spacing of the slices."""
    return max(stack.spacing_mm, stack.slices[0].thickness_mm)


def _is_elsewhere(image: Instance) -> bool:
    """Tell whether the header names another part of the body and not the chest."""
    keywords = ("BodyPartExamined", "SeriesDescription", "ProtocolName")
    words = " ".join(image.text(k) for k in keywords).upper()
    return any(w in words for w in _ELSEWHERE) and not any(w in words for w in _CHEST)


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
