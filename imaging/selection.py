"""Let the caller say which series of a study may be read, and which of them comes first.

The caller sees what the headers say of each series, before any pixel is decoded. What it decides by
is its own: this package knows only its answers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imaging.volume import StudyHeader


@dataclass(frozen=True)
class SeriesSummary:
    """What the headers of its images say of a series; empty where they say nothing.

    Attributes:
        uid, number: SeriesInstanceUID and SeriesNumber; a number that is none is None.
        header: patient, examination and series.
        image_type, kernels: every value of ImageType and of ConvolutionKernel.
        slice_thickness_mm: the largest; None if it is not stated.
        images: how many there are.
        folder: in which the first image lies.
        unfit: why it cannot be read; empty if its header allows it.
    """

    header: StudyHeader
    folder: Path
    uid: str = ""
    number: int | None = None
    image_type: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    body_part: str = ""
    slice_thickness_mm: float | None = None
    images: int = 1
    unfit: str = ""


@dataclass(frozen=True)
class Preference:
    """The caller's answer for one series.

    Attributes:
        rule: name of the rule that decided; the study says it of the series that was read.
        rank: of several series that show lung, those of the lowest rank are chosen from.
        ignored: whether it must not be read.
    """

    rule: str
    rank: int = 0
    ignored: bool = False


SelectSeries = Callable[[tuple[SeriesSummary, ...]], tuple[Preference, ...]]
"""Returns one preference for each series, in their order; what it raises ends the reading."""
