"""Read the DICOM files of a folder as a study: choose a series, stack its slices, decode them."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
from pydicom.uid import UID, MediaStorageDirectoryStorage

from imaging.continuity import require_continuous
from imaging.coverage import coverage_of
from imaging.dicom.ahead import ReadAhead
from imaging.dicom.arrival import files_of, head_of, listed_images
from imaging.dicom.copies import without_copies
from imaging.dicom.header import ANNOUNCED, HEADER_KEYWORDS, Instance, names_of, read_instance
from imaging.dicom.layout import require_hu
from imaging.dicom.pixels import decoded
from imaging.dicom.series import (
    FIRST_ACQUISITION,
    NOT_REQUESTED,
    Choice,
    LungExtent,
    Series,
    by_acquisition,
    choose,
    group,
    only_requested,
    other_body_part,
    preferred,
)
from imaging.dicom.source import source_headers
from imaging.dicom.stack import Stack, widest_gap_mm
from imaging.errors import NoLung, StudyError, UnreadableFile, is_machine_fault
from imaging.lungs import find_lungs
from imaging.selection import SelectSeries, SeriesSummary
from imaging.slices import SliceMeasures, measures_of
from imaging.volume import (
    Geometry,
    HuArray,
    ImageRef,
    Limitation,
    LimitationKind,
    Study,
    StudyHeader,
    Volume,
    to_patient_axes,
)

_MAX_GAP_MM = 1.5
"""Half the diameter of the smallest nodule of calibration. Two scans that we have leave 1.25 mm."""
_AGE = re.compile("(?!000)[0-9]{3}[DWMY]").fullmatch
"""An age as DICOM writes it; 000Y stands for a baby or for an unknown age."""
_MAX_DIGITS = 9
"""Of a number of images; a longer one is damaged."""
_RANKING_STEP_MM = 8.0
"""At this distance the volume of the lungs in 15 whole scans comes out within 2 %."""


def read_series(
    folder: Path,
    files: Sequence[Path],
    *,
    only: Path | None = None,
    request: str = "",
    select: SelectSeries | None = None,
    ahead: ReadAhead | None = None,
) -> Study:
    """Read the study of a folder's DICOM files.

    ``only`` names a file whose series is requested. ``request`` is the UID, the number or the
    description of a series; if several have it, the best of them is read. ``select`` says which
    series may be read, and which come first. ``ahead`` is what was read of the files before.

    Raises:
        StudyError: a file is damaged or no series makes a CT volume; and what ``select`` raises.
    """
    # pydicom warns of values that do not follow the standard; what matters is refused here,
    # with the file's name.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")
        read = ahead.instance if ahead else read_instance
        found = (_read_header(file, read) for file in files)
        images = [i for i in found if i.text("SOPClassUID") != MediaStorageDirectoryStorage]
        if not images:
            reason = "no images, only a DICOM directory: give the folder of the images"
            raise UnreadableFile(reason, folder)
        # ties between series are broken by their order: those in the upper folder came first
        images.sort(key=lambda image: len(image.file.parts))
        series, copies = without_copies(group(images), only)
        images = [image for one in series for image in one.images]
        series = _requested(series, only)
        if select is not None:
            series = preferred(series, select(tuple(map(summary_of, series))))
        if request:
            series = only_requested(series, request, folder)
        series = [part for one in series for part in by_acquisition(one, folder)]
        choice, volume = _read_chest(series, folder)
        ignored = (f"copies of other images, ignored: {names_of(copies)}",) if copies else ()
        return Study(
            volume,
            folder,
            _header(choice.series),
            choice.others + ignored,
            tuple(_limitations(images, choice, folder)),
            images=_images(choice.stack, volume),
            frame_of_reference_uid=choice.series.first.text("FrameOfReferenceUID"),
            rule=choice.series.rule,
            headers=partial(source_headers, _in_order(choice)),
        )


def peek(file: Path) -> SeriesSummary | None:
    """Return what the first bytes of a file say of its series; None if it is no DICOM image.

    It costs little time and memory whatever the file holds. Enhanced CT states the thickness of its
    slices further back.
    """
    found = _peeked(file)
    return found and found[1]


def refused_study(source: Path) -> Study | None:
    """Return what the first bytes of its files say of a study that was not read, without voxels.

    None where they do not say whose it is, or name several patients or studies.
    """
    patients, names, studies = set[str](), set[str](), set[str]()
    best: tuple[Instance, SeriesSummary] | None = None
    for found in filter(None, map(_peeked, files_of(source) or [source])):
        header = found[1].header
        patients.add(header.patient_id)
        names.add(header.patient_name)
        studies.add(header.study_uid)
        if best is None or (best[1].unfit and not found[1].unfit):
            best = found
    # an empty one is that of the other images of its study, as when it is read
    several = len((patients if any(patients) else names) - {""}) > 1 or len(studies) > 1
    if best is None or several:
        return None
    empty = Volume(np.empty((0, 0, 0), np.int16), Geometry())
    # only the first bytes, whatever the file holds
    headers = partial(source_headers, [best[0]], of_order=False) if all(studies) else None
    return Study(empty, source, best[1].header, headers=headers)


def _read_header(file: Path, read: Callable[[Path], Instance]) -> Instance:
    """Read the header of a file; of one that is damaged what lies before, if that is a series."""
    try:
        return read(file)
    except UnreadableFile as error:
        head = _peeked(file)
        if head is None or not head[1].uid:
            raise
        return replace(head[0], damage=error)


def _peeked(file: Path) -> tuple[Instance, SeriesSummary] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = head_of(file, HEADER_KEYWORDS)
            if not data.get("SOPClassUID"):
                return None
            head = Instance(file, data)
            return head, summary_of(group([head])[0])
    # pydicom promises no set of exceptions for damaged files
    except Exception as error:
        if is_machine_fault(error):
            raise
        return None


def summary_of(series: Series) -> SeriesSummary:
    """Return what the headers say of a series."""
    first, number = series.first, series.first.advisory("SeriesNumber")
    return SeriesSummary(
        header=_header(series),
        folder=first.file.parent,
        uid=series.uid,
        number=None if number is None or abs(number) >= 2**31 else int(number),
        image_type=first.texts("ImageType"),
        kernels=tuple(filter(None, series.stated("ConvolutionKernel").split("\\"))),
        body_part=series.stated("BodyPartExamined"),
        slice_thickness_mm=_stated_thickness_mm(series),
        images=len(series.images),
        unfit=series.unfit,
    )


def _stated_thickness_mm(series: Series) -> float | None:
    """Return the largest thickness that a slice states, which Enhanced CT does by frame."""
    stated = (frame.advisory("SliceThickness") for frame in series.frames)
    return max((mm for mm in stated if mm is not None), default=None)


def _in_order(choice: Choice) -> list[Instance]:
    """Return the images of the series, feet first."""
    place = {one.file: z for z, one in reversed([*enumerate(choice.stack.slices)])}
    return sorted(choice.series.images, key=lambda image: place.get(image.file, len(place)))


def _requested(series: Sequence[Series], only: Path | None) -> list[Series]:
    """Mark all series but that of the file ``only`` as not requested, if there is such a file."""
    if only is None:
        return list(series)
    return [
        s if s.unfit or only in {i.file for i in s.images} else replace(s, unfit=NOT_REQUESTED)
        for s in series
    ]


def _read_chest(series: Sequence[Series], folder: Path) -> tuple[Choice, Volume]:
    """Read the best series; a damaged one gives way to another, as an incomplete one does."""
    while True:
        choice = choose(series, folder, _lung_extent)
        try:
            return choice, _read_volume(choice)
        except StudyError as error:
            if not choice.alternatives:
                raise
            damaged = choice.series
            why = f"{error.file.name}: {error.reason}"
            series = [replace(s, unfit=why) if s is damaged else s for s in series]


def _lung_extent(stack: Stack) -> LungExtent:
    """Measure the lungs on few slices, 8 mm apart or less."""
    step = max(1, int(_RANKING_STEP_MM / stack.spacing_mm))
    _, y, x = stack.geometry.spacing_mm
    geometry = replace(stack.geometry, spacing_mm=(step * stack.spacing_mm, y, x))
    few = Stack(stack.slices[::step], geometry)
    hu, measures, geometry = _in_patient_axes(few)
    try:
        lungs = find_lungs(hu, geometry.spacing_mm, "", measures)
    except NoLung:
        return LungExtent()
    slice_mm = geometry.spacing_mm[0]
    cell_l = float(np.prod(np.multiply(lungs.shape, geometry.spacing_mm))) / lungs.air.size / 1e6
    height_mm = coverage_of(lungs, slice_mm).lung_height_mm
    return LungExtent(int(lungs.air.sum()) * cell_l, min(height_mm, stack.extent_mm))


def _read_volume(choice: Choice) -> Volume:
    hu, measures, geometry = _in_patient_axes(choice.stack)
    slices = choice.stack.slices
    require_hu(measures, slices[0].file)
    if len(slices) == len(hu):  # the axes were not exchanged
        names, files = [one.name for one in slices], [one.file for one in slices]
        require_continuous(hu, geometry.spacing_mm, names, files, measures)
    description = choice.series.first.text("SeriesDescription")
    return Volume(hu, geometry, choice.series.uid, description, measures)


def _in_patient_axes(stack: Stack) -> tuple[HuArray, tuple[SliceMeasures, ...], Geometry]:
    stored, measures = decoded(stack)
    hu, geometry = to_patient_axes(stored, stack.geometry)
    return hu, measures if hu is stored else measures_of(hu, geometry.spacing_mm[1:]), geometry


def _images(stack: Stack, volume: Volume) -> tuple[ImageRef, ...]:
    """Return the image of each slice of the volume.

    The slices keep their order, feet to head. Only a stack at 45 degrees may get its axes
    exchanged: then no slice of the volume is an image.
    """
    same = np.allclose(stack.geometry.direction[:, 2], volume.geometry.direction[:, 2])
    return tuple(one.image for one in stack.slices) if same else ()


def _limitations(images: Sequence[Instance], choice: Choice, folder: Path) -> Iterator[Limitation]:
    """Yield what headers show: missing images, gaps, mixed kernels, another part of the body."""
    series, step_mm = choice.series, choice.stack.spacing_mm
    if text := _missing_images(images, series, folder):
        yield Limitation(LimitationKind.COVERAGE, text)
    if (gap_mm := widest_gap_mm(choice.stack.slices, step_mm)) > _MAX_GAP_MM:
        text = (
            f"Slices of {step_mm - gap_mm:.3g} mm every {step_mm:.3g} mm leave gaps of "
            f"{gap_mm:.3g} mm, expected at most {_MAX_GAP_MM:g} mm."
        )
        yield Limitation(LimitationKind.ACQUISITION, text)
    if any(line.endswith(FIRST_ACQUISITION) for line in choice.others):
        own = (image for image in images if image.text("SeriesInstanceUID") == series.uid)
        given = sorted(
            {image.text("AcquisitionNumber") for image in own}, key=lambda n: (len(n), n)
        )
        found = f"The series has several acquisitions of the same places ({', '.join(given)[:200]})"
        text = f"{found}: acquisition {series.acquisition} was read."
        yield Limitation(LimitationKind.ACQUISITION, text)
    kernels = {frame.text("ConvolutionKernel"): frame.file.name for frame in series.frames}
    kernels.pop("", None)  # some scanners leave it empty in single images
    if len(kernels) > 1:
        found = " and ".join(f"{kernel} ({file})" for kernel, file in kernels.items())
        text = f"The reconstruction kernel changes within the series: {found}."
        yield Limitation(LimitationKind.ACQUISITION, text)
    uids = Counter(filter(None, (image.text("SOPInstanceUID") for image in series.images)))
    if alike := [i.file for i in series.images if uids[i.text("SOPInstanceUID")] > 1]:
        text = f"Different images have one SOPInstanceUID: {names_of(alike)}. An archive keeps one."
        yield Limitation(LimitationKind.ACQUISITION, text)
    if other := other_body_part(series):
        text = f"{other}; the models know the chest only."
        yield Limitation(LimitationKind.ACQUISITION, text)


def _missing_images(images: Sequence[Instance], series: Series, folder: Path) -> str:
    """Say if fewer images arrived than a DICOMDIR or the headers of the series announce."""
    # the images that each kind of number counts: of the series, its acquisitions, the study
    acquisitions = {image.text("AcquisitionNumber") for image in series.images}
    counted = (
        [image for image in images if image.text("SeriesInstanceUID") == series.uid],
        [image for image in images if image.text("AcquisitionNumber") in acquisitions],
        list(images),
    )
    if (listed := listed_images(folder, series.uid)) > len(counted[0]):
        return f"Only {len(counted[0])} of {listed} images that the DICOMDIR lists arrived."
    for keyword, belong in zip(ANNOUNCED, counted, strict=True):
        # one number for each acquisition, one for series and study
        numbers = {
            image.text("AcquisitionNumber") if keyword == "ImagesInAcquisition" else "": int(text)
            for image in series.images
            if (text := image.text(keyword)).isdecimal() and len(text) <= _MAX_DIGITS
        }
        announced = sum(numbers.values())
        if announced > len(belong):
            return f"Only {len(belong)} of {announced} announced images arrived."
        if announced:
            break
    return ""


def _header(series: Series) -> StudyHeader:
    text = series.stated
    ages = (frame.text("PatientAge") for frame in series.frames)
    return StudyHeader(
        patient_id=text("PatientID"),
        patient_name=text("PatientName"),
        sex=text("PatientSex"),
        age=next(filter(_AGE, ages), "") or _age(series) or text("PatientAge"),
        study_uid=text("StudyInstanceUID"),
        study_date=text("StudyDate"),
        accession=text("AccessionNumber"),
        modality=text("Modality"),
        manufacturer=text("Manufacturer"),
        kernel=text("ConvolutionKernel"),
        contrast=text("ContrastBolusAgent"),
        series_description=text("SeriesDescription"),
        transfer_syntax=UID(series.first.transfer_syntax).name,
        slice_thickness_mm=max(_stated_thickness_mm(series) or 0.0, 0.0),
    )


def _age(series: Series) -> str:
    """Return the age in years on the day of the study, as DICOM writes it; empty if unknown.

    The date of birth itself is not kept.
    """
    try:
        born, day = (
            datetime.strptime(series.stated(keyword), "%Y%m%d")
            for keyword in ("PatientBirthDate", "StudyDate")
        )
    except ValueError:
        return ""
    years = day.year - born.year - ((day.month, day.day) < (born.month, born.day))
    return f"{years:03}Y" if 0 <= years < 150 else ""
