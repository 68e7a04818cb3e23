"""The series of one folder, and which of them is read: the thinnest axial CT of the lungs.

Multi-frame images (Enhanced CT): each frame as if it were an image of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from imaging.dicom.header import Instance
from imaging.dicom.stack import Stack, slice_of, stack_of
from imaging.errors import IrregularGeometry, NotCt, StudyError, UnreadableFile

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


COVERS_LUNGS_MM = 200.0
"""An adult's lungs are 200 mm and more from apex to base."""
_NEARLY = 0.8  # of the longest series, where none is that long

_NOT_SLICES = {"LOCALIZER", "SCOUT", "MIP", "MAX_IP", "MIN_IP", "MINIP", "MAXIP", "VRT"} | {
    *("PROJECTION IMAGE", "VOLREN", "SCREEN SAVE", "SCREENSHOT", "DOSE", "DOSE_INFO", "DOSE INFO")
}
_REFORMATTED = {"MPR", "REFORMATTED", "CSA MPR", "CSA RESAMPLED", "RESAMPLED"}
_CT_CLASSES = {"", *(f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "2.1", "2.2"))}
_CHEST = ("CHEST", "THORAX", "LUNG", "PULM", "TAP", "CAP")
_ELSEWHERE = ("HEAD", "BRAIN", "SKULL", "NECK", "ABDOM", "PELVI", "SPINE", "LEG", "KNEE", "HIP")


@dataclass(frozen=True, eq=False)
class Series:
    """Images of one SeriesInstanceUID; ``unfit`` says why none of them can be read, if so."""

    uid: str
    images: tuple[Instance, ...]
    unfit: str = ""

    @property
    def first(self) -> Instance:
        """The image whose header speaks for the series."""
        return self.images[0]

    def __str__(self) -> str:
        name = self.first.text("SeriesDescription") or f"series {self.uid or 'without UID'}"
        count = f"{len(self.images)} image{'s' if len(self.images) != 1 else ''}"
        return f"{name!r} ({self.first.text('Modality') or 'no modality'}, {count})"


@dataclass(frozen=True, eq=False)
class Choice:
    """The series to read with its stack, and a line for each that was passed over.

    ``rivals`` of those passed over would make a volume too.
    """

    series: Series
    stack: Stack
    passed_over: tuple[str, ...]
    rivals: int = 0


def group(images: Iterable[Instance]) -> list[Series]:
    """The series that the images belong to, those that are no axial CT slices set apart.

    Raises:
        NotCt: one series mixes CT with another modality.
    """
    groups: dict[tuple[str, str], list[Instance]] = {}
    for image in images:
        key = image.text("SeriesInstanceUID"), _unfit(image)
        groups.setdefault(key, []).append(image)
    series = [Series(uid, tuple(found), unfit) for (uid, unfit), found in groups.items()]
    _require_unmixed(series)
    return series


def choose(series: Sequence[Series], folder: Path) -> Choice:
    """The thinnest axial CT series that covers the lungs, of those that make a volume.

    A series that makes none is passed over, with its reason, as long as another one does.

    Raises:
        StudyError: no series makes a volume; the error is that of the largest.
        NotCt: there is no CT series, or there are CT series of several patients.
    """
    fit = [s for s in series if not s.unfit]
    if not fit:
        found = "; ".join(f"{s}: {s.unfit}" for s in series)
        raise NotCt(f"no CT slices, only {found}: send the chest CT series", _place(series, folder))
    _require_one_patient(fit, folder)
    stacks, failures = _stacks(fit, folder)
    if not stacks:
        raise failures[max(failures, key=lambda s: len(s.images))]
    ranked = sorted(stacks, key=lambda s: _rank(s, stacks))
    reasons = {s: s.unfit for s in series if s.unfit} | {s: str(e) for s, e in failures.items()}
    reasons |= {s: _compared(s, stacks) for s in ranked[1:]}
    lines = tuple(f"{s}: {reason}" for s, reason in reasons.items())
    return Choice(ranked[0], stacks[ranked[0]], lines, len(ranked) - 1)


def _stacks(
    fit: Sequence[Series], folder: Path
) -> tuple[dict[Series, Stack], dict[Series, StudyError]]:
    stacks: dict[Series, Stack] = {}
    failures: dict[Series, StudyError] = {}
    for one in fit:
        try:
            slices = [slice_of(frame) for image in one.images for frame in frames_of(image)]
            stacks[one] = stack_of(slices, folder)
        except StudyError as error:
            failures[one] = error
    return stacks, failures


def _unfit(image: Instance) -> str:
    """Why an image cannot be a slice of a CT volume; empty if it can."""
    if (modality := image.text("Modality")) != "CT":
        return f"modality {modality or 'not given'} is not CT"
    if (sop_class := image.text("SOPClassUID")) not in _CT_CLASSES:
        return f"no CT image (SOP class {sop_class})"
    if words := _NOT_SLICES & set(image.texts("ImageType")):
        return f"{min(words).lower()}, not slices"
    if (unit := image.text("RescaleType")) not in ("", "US", "HU", "HU_MOD"):
        return f"values are {unit}, not HU"
    return ""


def _require_unmixed(series: Sequence[Series]) -> None:
    ct = {s.uid for s in series if s.first.text("Modality") == "CT"}
    for one in series:
        if one.uid in ct and one.first.text("Modality") != "CT":
            reason = f"{one.unfit}, though others of its series are: send one series of CT"
            raise NotCt(reason, one.first.file)


def _require_one_patient(fit: Sequence[Series], folder: Path) -> None:
    owners = {image.text("PatientID"): image.file for one in fit for image in one.images}
    if len(owners) > 1:
        names = ", ".join(file.name for file in list(owners.values())[:3])
        reason = f"CT of {len(owners)} patients in one folder ({names}): send each by itself"
        raise NotCt(reason, folder)


def _rank(one: Series, stacks: dict[Series, Stack]) -> tuple[float, ...]:
    stack = stacks[one]
    long_enough = min(COVERS_LUNGS_MM, _NEARLY * max(s.extent_mm for s in stacks.values()))
    return (
        stack.extent_mm < long_enough,
        _is_elsewhere(one.first),
        -_date(one.first),
        bool(_REFORMATTED & set(one.first.texts("ImageType"))),
        round(_thickness_mm(stack), 2),
        -stack.extent_mm,
        one.first.number("SeriesNumber") or 0.0,
    )


def _thickness_mm(stack: Stack) -> float:
    """What limits the resolution along the axis: the thickness or the distance of slices."""
    return max(stack.spacing_mm, stack.slices[0].thickness_mm)


def _is_elsewhere(image: Instance) -> bool:
    """Whether the header names another part of the body and not the chest."""
    keywords = ("BodyPartExamined", "SeriesDescription", "ProtocolName")
    words = " ".join(image.text(k) for k in keywords).upper()
    return any(w in words for w in _ELSEWHERE) and not any(w in words for w in _CHEST)


def _date(image: Instance) -> int:
    date = image.text("StudyDate")
    return int(date) if date.isdecimal() else 0


def _compared(one: Series, stacks: dict[Series, Stack]) -> str:
    stack = stacks[one]
    size = f"{_thickness_mm(stack):g} mm slices over {stack.extent_mm:.0f} mm"
    return f"{size}, another series was preferred"


def _place(series: Sequence[Series], folder: Path) -> Path:
    """The file at fault where there is only one, so that the message names it."""
    images = [image for one in series for image in one.images]
    return images[0].file if len(images) == 1 else folder
