"""Read studies in this process: with the edge's networks, and with a cloud if one is given."""

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import SimpleITK

import imaging.read
from edge import pipeline as edge_pipeline
from edge.agent.inbox import is_study
from edge.assemble import open_pipeline
from edge.decide import decide
from edge.errors import UnfitFolder
from edge.job import Job
from edge.report.evidence import OUTLINES, read_outlines
from edge.report.folder import admission, require_separate
from edge.report.pictures import draw_pictures
from edge.report.write import ReportPaths
from edge.settings.core import load_settings
from imaging.dicom.header import DICOM_SUFFIXES, is_dicom, read_head
from imaging.dicom.layout import MAX_HU
from imaging.errors import NotCt, UnreadableFile
from imaging.files import special_kind
from imaging.volume import Geometry, Study, triple
from imaging.volume_files import study_of_array
from models.runtime.package import only_screening
from overread.report import Report, in_volume

Array = npt.NDArray[Any]
FilePath = str | PathLike[str]
Source = FilePath | Array | SimpleITK.Image

_ARRAY = Path("array")  # what errors and reports call it


class UnsupportedArray(ValueError):
    """An array that cannot be read as a chest CT; the message says what is expected.

    >>> overread.screen([[0]], spacing_mm=(1, 1, 1))
    Traceback (most recent call last):
    overread.api.UnsupportedArray: spacing_mm is for arrays: a file or image states its own spacing
    """


@dataclass(frozen=True, eq=False)
class Outcome:
    """Study ``number`` of ``count`` in a folder: its report or error, see `Screener.screen`.

    >>> [(one.number, one.count, one.error) for one in overread.Screener().screen_folder("ct/")]
    [(1, 1, None)]
    """

    source: Path
    number: int
    count: int
    report: Report | None = None
    error: Exception | None = None


class Screener:
    """The networks, opened once to read many studies, in one thread at a time.

    Args:
        cloud: ``HOST:PORT`` of a cloud service for second readings, None for the edge alone. A
            service on another machine needs TLS: set ``OVERREAD_EDGE_CLOUD__TLS__CA`` in the
            environment.
        deadline_s: seconds after which a report no longer waits for the cloud; 10 by default.
        model: folder with a screening network of your own and its ``manifest.toml``, see
            docs/own-network.md; None for the shipped one. Of several in the folder, the one that
            ``OVERREAD_EDGE_SCREENING_MODEL`` names in the environment reads.

    Raises:
        edge.errors.EdgeError: a setting is wrong, for example the address of the cloud, or the
            manifest of ``model`` lacks a threshold.
        models.runtime.errors.ModelError: ``model`` has no network that can read.

    Example:
        >>> with overread.Screener() as screener:
        ...     for one in screener.screen_folder("ct/"):
        ...         print(one.number, one.count, one.source.name, one.error or one.report.result)
        1 1 ct 2 findings, ...
    """

    def __init__(
        self,
        *,
        cloud: str | None = None,
        deadline_s: float | None = None,
        model: str | Path | None = None,
    ) -> None:
        settings = load_settings(
            cloud__address=cloud,
            deadline_s=deadline_s,
            models__folder=model,
            screening_model=only_screening(Path(model)) if model is not None else None,
        )
        self._parts, self._is_open = ExitStack(), True
        pipeline = self._parts.enter_context(open_pipeline(settings, reads_files=False))
        self._pipeline = replace(pipeline, decide=lambda one, _key: decide(one))

    def __enter__(self) -> Self:
        """Return the screener."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the screener."""
        self.close()

    def close(self) -> None:
        """Close the networks and the connection to the cloud."""
        self._is_open = False
        self._parts.close()

    def screen(
        self,
        source: Source,
        *,
        spacing_mm: Sequence[float] | None = None,
        series: str = "",
        out: FilePath | None = None,
        overwrite: bool = False,
    ) -> Report:
        """Return the report of one chest CT.

        ``findings`` and ``possible`` of the report are its findings and possible findings.

        Not a medical device. For research and development only.

        Args:
            source: a DICOM folder or file, a NIfTI, NRRD or MetaImage file; a SimpleITK image; or
                an array in HU of shape (z, y, x), integers or floats, whose axes run to the head,
                to the back and to the patient's left.
            spacing_mm: voxel size (z, y, x) of an array. It has no default: a wrong spacing gives
                wrong diameters and missed nodules. A file or image states its own.
            series: UID, number or description of the DICOM series to read, or the name of the
                volume file; ``*`` and ``?`` stand for any letters and any letter. Empty: the pixels
                decide.
            out: folder for report.json, report.html and pictures; None writes nothing.
            overwrite: whether another study's report in ``out`` may be replaced. That of the same
                study may always be.

        Raises:
            UnsupportedArray: the array or its spacing cannot be that of a chest CT.
            imaging.errors.StudyError: the study cannot be read, has no HU, or shows no lungs.
            edge.errors.UnfitFolder: ``out`` holds another study's report, is a file, or lies in the
                study's folder; nothing was written.
            OSError: the report cannot be written to ``out``.
            ValueError: the screener is closed.
        """
        if not self._is_open:
            raise ValueError("the screener is closed: open another one")
        _require_out(out, source)
        study = _study(source, spacing_mm, series)
        pipeline = replace(self._pipeline, read=lambda _path: study)
        if out is None:
            nothing = ReportPaths(Path("report.json"), Path("report.html"))
            pipeline = replace(
                pipeline,
                draw=lambda sure, rest, box, _, most: draw_pictures(sure, rest, box, None, most),
                write=lambda *_: nothing,
            )
        else:
            pipeline = replace(pipeline, admit=admission(overwrite=overwrite))
        # an array or image has a name and no path
        path = study.source.absolute() if isinstance(source, str | PathLike) else study.source
        job = Job(path, Path(out or "."))
        result = edge_pipeline.run(pipeline, job, pipeline.start_budget())
        outlines = read_outlines(result.evidence[OUTLINES])
        return replace(in_volume(result.report, outlines, study.grid), pictures=result.pictures)

    def screen_folder(
        self,
        folder: FilePath,
        *,
        series: str = "",
        out: FilePath | None = None,
        overwrite: bool = False,
    ) -> Iterator[Outcome]:
        """Read each study of a folder, one at each step; an error of one does not end the others.

        A study is a sub-folder or a volume file. Other files are ignored. The reports go to folders
        in ``out`` that are named like the studies. For arguments and errors see `screen`.
        """
        sources = _studies_in(_path(folder))
        _require_out(out, folder)
        for number, source in enumerate(sources, start=1):
            one, place = Outcome(source, number, len(sources)), out and Path(out) / source.name
            try:
                report = self.screen(source, series=series, out=place, overwrite=overwrite)
                one = replace(one, report=report)
            except Exception as error:  # whatever it is, the next studies are read
                one = replace(one, error=error)
            yield one


def screen(
    source: Source,
    *,
    spacing_mm: Sequence[float] | None = None,
    series: str = "",
    cloud: str | None = None,
    deadline_s: float | None = None,
    model: str | Path | None = None,
    out: FilePath | None = None,
    overwrite: bool = False,
) -> Report:
    """Return the report of one chest CT; a `Screener` reads several in less time.

    Not a medical device. For research and development only.

    Arguments and errors are those of `Screener` and `Screener.screen`.

    >>> [f"{one.probability:.2f}" for one in overread.screen("ct/").findings]
    ['1.00', ...]
    """
    options: dict[str, Any] = {"series": series, "out": out, "overwrite": overwrite}
    with Screener(cloud=cloud, deadline_s=deadline_s, model=model) as screener:
        return screener.screen(source, spacing_mm=spacing_mm, **options)


def read_study(path: FilePath, series: str = "") -> Study:
    """Return the study at ``path``: its volume in HU, its geometry and its header.

    Args:
        path: a DICOM folder or file, or a NIfTI, NRRD or MetaImage file.
        series: which series to read, as for `screen`.

    Raises:
        imaging.errors.StudyError: the study cannot be read; the message names the file.

    >>> overread.read_study("ct/").volume.hu.shape
    (112, 320, 320)
    """
    given = _path(path)
    place = given.resolve() if given.is_symlink() else given
    return imaging.read.read_study(place, str(series))


def _path(path: FilePath) -> Path:
    if not str(path).strip():  # which Python takes for the current folder
        raise UnreadableFile("the path is empty: give a file or folder", "''")
    return Path(path)


def _require_out(out: FilePath | None, source: Source) -> None:
    if out is None:
        return
    if not str(out).strip():
        raise UnfitFolder("out is empty: give a folder for the report, or None to write nothing")
    require_separate(Path(out), Path(source) if isinstance(source, str | PathLike) else _ARRAY)


def _studies_in(folder: Path) -> list[Path]:
    inside = folder.absolute().iterdir() if folder.is_dir() else ()
    names = sorted(one for one in inside if not one.name.startswith("."))
    files = [one for one in names if one.is_file() and not special_kind(one)]
    if any(one.suffix.lower() in DICOM_SUFFIXES or is_dicom(read_head(one)) for one in files):
        return [folder.absolute()]  # its images lie in it
    if found := [one for one in names if is_study(one.resolve())]:
        return found
    raise UnreadableFile("is no folder of studies: expected a folder or file for each", folder)


def _study(source: Source, spacing_mm: Sequence[float] | None, series: str) -> Study:
    if not isinstance(source, np.ndarray) and spacing_mm is not None:
        raise UnsupportedArray("spacing_mm is for arrays: a file or image states its own spacing")
    if isinstance(source, str | PathLike):
        return read_study(source, series)
    if series:
        raise UnsupportedArray("series is for files: an array is one series")
    if isinstance(source, SimpleITK.Image):
        array = _numbers(SimpleITK.GetArrayViewFromImage(source))
        spacing_zyx, origin_mm = triple(source.GetSpacing()[::-1]), triple(source.GetOrigin())
        geometry = Geometry(spacing_zyx, origin_mm, np.reshape(source.GetDirection(), (3, 3)))
    else:
        array, geometry = _numbers(source), Geometry(_spacing(spacing_mm))
    low, high = float(array.min()), float(array.max())  # NaN is refused later, as in a file
    if low > -200 or low < -MAX_HU - 1 or high < 0 or high > MAX_HU:
        expected = "air near -1000 and water at 0, not scaled to a window, nor stored values"
        raise NotCt(f"values from {low:g} to {high:g} are not HU: expected {expected}", _ARRAY)
    return study_of_array(array, geometry, _ARRAY)


def _numbers(array: Any) -> Array:
    """Return an array that may hold HU of a volume."""
    if not isinstance(array, np.ndarray):
        got = type(array).__name__
        raise UnsupportedArray(f"expected a path, a NumPy array or a SimpleITK image, got {got}")
    if array.ndim != 3:
        raise UnsupportedArray(f"expected an array of shape (z, y, x), got shape {array.shape}")
    if array.dtype.kind not in "iuf":
        raise UnsupportedArray(f"expected HU as integers or floats, got {array.dtype.name}")
    if array.size == 0:
        raise UnsupportedArray(f"the array is empty: shape {array.shape}")
    return array


def _spacing(spacing_mm: Sequence[float] | None) -> tuple[float, float, float]:
    if spacing_mm is None:
        raise UnsupportedArray("spacing_mm is missing: give the voxel size (z, y, x) in mm")
    try:
        # letters and bytes would pass for numbers, and a set has no order
        if isinstance(spacing_mm, str | bytes | bytearray | Set | Mapping):
            raise TypeError
        z, y, x = (float(value) for value in spacing_mm)
    except (TypeError, ValueError, OverflowError):
        raise UnsupportedArray(
            f"expected spacing_mm as three numbers (z, y, x) in mm, got {spacing_mm!r}"
        ) from None
    if not all(np.isfinite(value) and value > 0 for value in (z, y, x)):
        raise UnsupportedArray(f"expected spacing_mm above 0, got {spacing_mm!r}")
    return z, y, x
