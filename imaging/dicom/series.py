"""Group the images of a folder into series, and choose one by what their pixels show."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from imaging.dicom.frames import frames_of
from imaging.dicom.header import Instance, names_of
from imaging.dicom.stack import DUPLICATE_MM, Slice, Stack, slice_of, stack_of
from imaging.errors import NotCt, OnlyLocalizer, SeriesNotFound, StudyError
from imaging.selection import Preference

_MIN_HEIGHT_SHARE, _WHOLE_SHARE = 0.75, 0.9
"""Of the most lung that any series shows: one breath differs from the next by a tenth."""
_NOT_SLICES = {
    *("LOCALIZER", "SCOUT", "MIP", "MAX_IP", "MIN_IP", "MINIP", "MAXIP", "VRT", "VOLREN"),
    *("PROJECTION", "SCREEN", "SCREENSHOT", "DOSE"),
}
_LOCALIZER = "localizer, not slices"
_REFORMATTED = {"MPR", "REFORMATTED", "RESAMPLED"}
NOT_REQUESTED = "not requested"
FIRST_ACQUISITION = "its acquisition came first"
"""The reason why one of several acquisitions is read that nothing else tells apart."""
_CT_CLASSES = {"", *(f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "2.1", "2.2"))}
_CHEST = {
    *("CHEST", "THORAX", "THORACIC", "THORAKAL", "LUNG", "LUNGS", "LUNGE", "PULMONARY", "PULMO"),
    *("CHESTABDOMEN", "CHESTABDPELVIS", "NECKCHEST", "NECKCHESTABDOMEN", "NECKCHESTABDPELV"),
    *("TAP", "CAP"),
}
_ELSEWHERE = {
    *("HEAD", "BRAIN", "SKULL", "SINUS", "NECK", "HEADNECK", "ABDOMEN", "ABDOMINAL", "ABD"),
    *("PELVIS", "PELVIC", "ABDOMENPELVIS", "SPINE", "CSPINE", "TSPINE", "LSPINE", "HIP", "HIPS"),
    *("LEG", "LEGS", "KNEE", "KNEES", "FOOT", "ANKLE", "SHOULDER", "ELBOW", "WRIST", "HAND"),
    *("HEART", "CARDIAC", "LIVER", "KIDNEY", "COLON", "EXTREMITY"),
}
_OF_ONE_SERIES = (
    *("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "PatientPosition"),
)
_MAX_EMPTY = 0.1
_NAMES = ("BodyPartExamined", "SeriesDescription", "ProtocolName")
_SHARP = {"LUNG", "BONE", "BONEPLUS", "EDGE", "ULTRA", "SHARP", "YC", "YD", "YE"}


@dataclass(frozen=True, eq=False)
class Series:
    """Images of one SeriesInstanceUID; ``unfit`` says why they cannot be read, if so.

    ``rule`` and ``rank`` are those of the caller's preference, if it has one. ``acquisition`` is
    the AcquisitionNumber of one of several in the same place.
    """

    uid: str
    images: tuple[Instance, ...]
    unfit: str = ""
    rule: str = ""
    rank: int = 0
    acquisition: str = ""

    @property
    def first(self) -> Instance:
        """The image whose header describes the series."""
        return self.images[0]

    @cached_property
    def frames(self) -> Sequence[Instance]:
        """Its slices; the images where these cannot be split, as reading them then says."""
        with suppress(StudyError):
            if not self.unfit:
                return [frame for image in self.images for frame in frames_of(image)]
        return self.images

    def stated(self, keyword: str) -> str:
        """Return the value of the first slice that states one; empty if none does.

        Some scanners leave it empty in single images.
        """
        return next(filter(None, (frame.text(keyword) for frame in self.frames)), "")

    def __str__(self) -> str:
        name = self.first.text("SeriesDescription") or f"series {self.uid or 'without UID'}"
        count = f"{len(self.images)} image{'s' if len(self.images) != 1 else ''}"
        if self.acquisition:
            count = f"acquisition {self.acquisition}, {count}"
        return f"{name!r} ({self.first.text('Modality') or 'no modality'}, {count})"


@dataclass(frozen=True)
class LungExtent:
    """How much lung the pixels of a series show: the volume of its air, and its height."""

    volume_l: float = 0.0
    height_mm: float = 0.0

    def __str__(self) -> str:
        if not self.volume_l:
            return "no lung in it"
        return f"{self.volume_l:.2g} l of lung over {self.height_mm:.0f} mm"


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

    A series that mixes CT with another modality is damaged.
    """
    groups: dict[tuple[str, str], list[Instance]] = {}
    for image in images:
        key = image.text("SeriesInstanceUID"), _unfit(image)
        groups.setdefault(key, []).append(image)
    series = [Series(uid, tuple(found), unfit) for (uid, unfit), found in groups.items()]
    ct = {s.uid for s in series if s.first.text("Modality") == "CT"}
    mixed = {s.uid: s for s in series if s.uid in ct and s.first.text("Modality") != "CT"}
    for at, item in enumerate(series):
        if (other := mixed.get(item.uid)) is not None:
            reason = f"{other.unfit}, but other images of its series are: send only CT images"
            damaged = replace(item.first, damage=NotCt(reason, other.first.file))
            series[at] = replace(item, images=(damaged, *item.images[1:]), unfit="")
    return series


def by_acquisition(one: Series, folder: Path) -> list[Series]:
    """Separate the acquisitions of a series whose slices lie between or upon each other.

    They are several phases or reconstructions. Acquisitions that follow each other along the
    patient, such as two breath-holds, are one volume. So are those of which none makes one, or
    which make one together and not each alone: one may fill a gap of the other.
    """
    found: dict[str, list[Instance]] = {}
    for image in one.images:
        found.setdefault(image.text("AcquisitionNumber"), []).append(image)
    if one.unfit or len(found) < 2 or "" in found:
        return [one]
    ends, every, volumes = list[tuple[float, float]](), list[Slice](), 0
    for images in found.values():
        with suppress(StudyError):  # whatever it is, reading says so
            slices = [slice_of(frame) for image in images for frame in frames_of(image)]
            at_mm = [float(s.position_mm @ slices[0].normal) for s in slices]
            ends.append((min(at_mm), max(at_mm)))
            every += slices
            volumes += _makes_volume(slices, folder)
    # sorted by where they begin: each must end before the next begins
    apart = all(low[1] < high[0] - DUPLICATE_MM for low, high in pairwise(sorted(ends)))
    known, some = len(ends) == len(found), volumes < len(found)
    if apart or not volumes or (known and some and _makes_volume(every, folder)):
        return [one]
    return [replace(one, images=tuple(v), acquisition=k) for k, v in found.items()]


def _makes_volume(slices: Sequence[Slice], folder: Path) -> bool:
    with suppress(StudyError):
        return bool(stack_of(slices, folder))
    return False


def preferred(series: Sequence[Series], answers: Sequence[Preference]) -> list[Series]:
    """Return the series with the caller's preferences; those that it ignores cannot be read."""
    return [
        replace(
            item,
            rule=answer.rule,
            rank=answer.rank,
            unfit=f"ignored by the rule {answer.rule!r}" if answer.ignored else item.unfit,
        )
        for item, answer in zip(series, answers, strict=True)
    ]


def only_requested(series: Sequence[Series], request: str, folder: Path) -> list[Series]:
    """Mark all series as not requested but those of one UID, one number or one description.

    In a description ``*`` and ``?`` stand for any letters and any letter; case does not matter.

    Raises:
        SeriesNotFound: no series is meant; the message lists those that there are.
    """
    asked = [s for s in series if _is_meant(s, request)]
    if not asked:
        there = "; ".join(
            f"{s}, number {s.first.text('SeriesNumber') or 'not given'}, UID {s.uid or 'not given'}"
            for s in series
        )
        reason = f"no series has the UID, the number or the description {request!r}"
        raise SeriesNotFound(f"{reason}, expected one of: {there}", folder)
    return [s if s in asked or s.unfit else replace(s, unfit=NOT_REQUESTED) for s in series]


def _is_meant(one: Series, request: str) -> bool:
    if one.unfit == NOT_REQUESTED:
        return False
    number = one.first.advisory("SeriesNumber")
    is_number = request.isdecimal() and number is not None
    if request == one.uid or (is_number and number == float(request)):
        return True
    return is_named(one.first.text("SeriesDescription"), request)


def is_named(name: str, request: str) -> bool:
    """Tell whether ``request`` means ``name``; ``*`` and ``?`` stand for other letters."""
    name, request = name.upper(), request.upper()
    return name == request or fnmatchcase(name, request)


def choose(
    series: Sequence[Series], folder: Path, extent_of: Callable[[Stack], LungExtent]
) -> Choice:
    """Choose the CT series that shows the lungs best, of those that make a volume.

    Series are passed over step by step, until one is left: what they show comes first, then their
    age, then how they were made, and their names last (`_ranked`). ``extent_of`` looks into the
    pixels of a stack. It is called only if there are several.

    Raises:
        StudyError: no series makes a volume; the error is that of the largest.
        NotCt: there is no CT series, or there are CT series of several patients.
        OnlyLocalizer: there is nothing but localizer images.
    """
    fit = [s for s in series if not s.unfit]
    if not fit:
        found = "; ".join(f"{s}: {s.unfit}" for s in series)
        images = [image for one in series for image in one.images]
        file = images[0].file if len(images) == 1 else folder
        if all(s.unfit == _LOCALIZER for s in series):
            raise OnlyLocalizer(f"only {found}: the chest CT series has not come", file)
        raise NotCt(f"no CT slices, only {found}: send the chest CT series", file)
    _require_one_patient(fit, folder)
    # what makes no volume is set aside with its reason; pixels are read only if a choice is left
    stacks: dict[Series, Stack] = {}
    failures: dict[Series, StudyError] = {}
    for stack in fit:
        try:
            _require_readable(stack)
            _require_one_source(stack)
            slices = [slice_of(frame) for image in stack.images for frame in frames_of(image)]
            stacks[stack] = stack_of(slices, folder)
        except StudyError as error:
            failures[stack] = error
    extents: dict[Series, LungExtent] = {}
    for stack in list(stacks) if len(stacks) > 1 else []:
        try:
            extents[stack] = extent_of(stacks[stack])
        except StudyError as error:
            failures[stack] = error
            del stacks[stack]
    if not stacks:
        raise failures[max(failures, key=lambda s: len(s.images))]
    best, passed_over = _ranked(stacks, extents)
    reasons = {s: s.unfit for s in series if s.unfit}
    reasons |= {s: f"{e.file.name}: {e.reason}" for s, e in failures.items()}
    lines = tuple(f"{s}: {reason}" for s, reason in (reasons | passed_over).items())
    return Choice(best, stacks[best], lines, len(stacks) - 1)


def _ranked(
    stacks: dict[Series, Stack], extents: dict[Series, LungExtent]
) -> tuple[Series, dict[Series, str]]:
    """Return the best series, and for each other what it shows and why it was passed over.

    Each step leaves some of those that the step before has left.
    """
    left, reasons = list(stacks), dict[Series, str]()

    def drop(reason: str, kept: Callable[[Series], bool]) -> None:
        for one in [s for s in left if not kept(s)]:
            left.remove(one)
            reasons[one] = reason

    def drop_worse(reason: str, rank: Callable[[Series], float]) -> None:
        least = min(map(rank, left))
        drop(reason, lambda s: rank(s) == least)

    if extents:
        drop_worse("it shows {best}", lambda s: extents[s].volume_l == 0)
        drop_worse("the rule {rule!r} comes first", lambda s: s.rank)
        most_mm = max(extents[s].height_mm for s in left)
        enough_mm = _MIN_HEIGHT_SHARE * most_mm
        drop("it shows {best}", lambda s: extents[s].height_mm >= enough_mm)
        drop_worse("it is newer", _age)
        whole_mm = _WHOLE_SHARE * max(extents[s].height_mm for s in left)
        whole_l = _WHOLE_SHARE * max(extents[s].volume_l for s in left)
        drop(
            "it shows {best}",
            lambda s: extents[s].height_mm >= whole_mm and extents[s].volume_l >= whole_l,
        )
        kinds = {s: _words(s.first.text("ImageType")) for s in left}
        drop_worse("it is an original", lambda s: bool(_REFORMATTED & kinds[s]))
        drop_worse("its slices are thinner", lambda s: round(_thickness_mm(stacks[s]), 2))
        # most scans of the calibration had a soft or standard kernel
        drop_worse("its kernel is softer", _is_sharp)
        drop_worse("its name fits a chest better", _name_rank)
        drop_worse("it is longer", lambda s: -len(stacks[s].slices))
        drop_worse("its number is lower", lambda s: s.first.advisory("SeriesNumber") or 0.0)
        drop_worse(FIRST_ACQUISITION, lambda s: s.first.advisory("AcquisitionNumber") or 0.0)
        drop("it comes first", lambda s: s is left[0])
    best = left[0]
    for stack, reason in reasons.items():
        shown = f"{extents[stack]}, slices of {_thickness_mm(stacks[stack]):g} mm"
        why = reason.format(best=extents[best], rule=best.rule)
        reasons[stack] = f"{shown}, another series was preferred: {why}"
    return best, reasons


def _unfit(image: Instance) -> str:
    """Say why an image cannot be a slice of a CT volume; empty if it can."""
    if (modality := image.text("Modality")) != "CT":
        return f"modality {modality or 'not given'} is not CT"
    if (sop_class := image.text("SOPClassUID")) not in _CT_CLASSES:
        return f"not a CT image (SOP class {sop_class})"
    if words := _NOT_SLICES & {*image.texts("ImageType"), *_words(image.text("ImageType"))}:
        is_localizer = words <= {"LOCALIZER", "SCOUT"}
        return _LOCALIZER if is_localizer else f"{min(words).lower()}, not slices"
    with suppress(StudyError):  # frames that cannot be split are refused where they are read
        units = {frame.text("RescaleType").upper() for frame in frames_of(image)}
        if others := sorted(units - {"", "US", "HU", "HU_MOD"}):
            return f"values are {others[0]}, not HU"
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


def _require_readable(one: Series) -> None:
    """Require that no file of a series is damaged: what it shows would be missing."""
    for damage in filter(None, (image.damage for image in one.images)):
        raise damage


def _require_one_source(one: Series) -> None:
    """Require one patient, study and frame of reference in a series.

    Some scanners leave a value empty in single images. Identifiers are not quoted: the error is
    seen where those of a patient may not be.
    """
    for keyword in _OF_ONE_SERIES:
        values = [image.text(keyword).casefold().rstrip("^ =") for image in one.images]
        counted = Counter(values)
        if counted[""] < _MAX_EMPTY * len(values):
            del counted[""]
        if len(counted) > 1:
            usual, odd = (values.index(value) for value, _ in counted.most_common(2))
            reason = f"{keyword} is not that of {one.images[usual].file.name} of the same series"
            advice = "which is a mixture: send one series of one patient"
            raise NotCt(f"{reason}, {advice}", one.images[odd].file)


def _age(one: Series) -> float:
    return -int(date) if (date := one.first.text("StudyDate")).isdecimal() else 0


def _words(text: str) -> set[str]:
    """Return the words of a header value, in capitals and without digits."""
    return set(re.findall(r"[A-Z]+", text.upper()))


def _thickness_mm(stack: Stack) -> float:
    """Return what limits the resolution along z: the thickness or the spacing of the slices."""
    return max(stack.spacing_mm, *(one.thickness_mm for one in stack.slices))


def _is_sharp(one: Series) -> bool:
    """Tell whether the kernel is one for lung or bone; without a kernel the description tells."""
    kernel = one.stated("ConvolutionKernel").split("\\")[0].upper()
    if not kernel:
        return bool(_SHARP & _words(one.first.text("SeriesDescription")))
    # Siemens: B70f, Br64d, I50f ...; Canon: FC51 ...
    numbered = re.match(r"(FC|[BHIQ][FLRV]?)(\d+)", kernel)
    limit = 30 if kernel.startswith("FC") else 50
    return kernel in _SHARP or bool(numbered and int(numbered[2]) >= limit)


def _name_rank(one: Series) -> int:
    """Rank what the header calls the series: 0 the chest, 1 nothing, 2 another part of the body."""
    words = set[str]().union(*(_words(one.stated(k)) for k in _NAMES))
    return 0 if words & _CHEST else 2 if words & _ELSEWHERE else 1


def other_body_part(one: Series) -> str:
    """Say which attribute names another part of the body than the chest; the first that names one.

    BodyPartExamined counts more than the other names. The text is empty if none does.
    """
    named = ((k, one.stated(k)) for k in _NAMES)
    telling = ((k, text) for k, text in named if _words(text) & (_CHEST | _ELSEWHERE))
    keyword, text = next(telling, ("", ""))
    return "" if _words(text) & _CHEST or not text else f"{keyword} is {text[:64]}"
