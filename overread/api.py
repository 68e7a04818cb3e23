"""Read one study in this process: with the edge's networks, and with a cloud if one is given."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

import imaging.read
from edge import pipeline as edge_pipeline
from edge.assemble import open_pipeline
from edge.decide import decide
from edge.job import Job
from edge.report.folder import admission, require_separate
from edge.report.model import Report
from edge.report.write import ReportPaths
from edge.settings.core import load_settings
from imaging.volume import Geometry, Study
from imaging.volume_files import study_of_array
from models.runtime.package import only_screening

ACCEPTED_TYPES = ("int16", "uint16", "float32")

Array = npt.NDArray[Any]


class UnsupportedArray(ValueError):
    """An array that cannot be read as a chest CT; the message says what is expected."""


@overload
def screen(
    source: str | Path,
    *,
    series: str = "",
    cloud: str | None = None,
    deadline_s: float | None = None,
    model: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Report: ...


@overload
def screen(
    source: Array,
    *,
    spacing_mm: Sequence[float],
    cloud: str | None = None,
    deadline_s: float | None = None,
    model: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Report: ...


def screen(
    source: str | Path | Array,
    *,
    spacing_mm: Sequence[float] | None = None,
    series: str = "",
    cloud: str | None = None,
    deadline_s: float | None = None,
    model: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Report:
    """Return the report of one chest CT.

    ``findings`` and ``possible`` of the report are its findings and possible findings.

    Not a medical device. For research and development only.

    Args:
        source: a DICOM folder or file, a NIfTI, NRRD or MetaImage file; or an array in HU of
            shape (z, y, x), int16, uint16 or float32, whose axes run to the head, to the back and
            to the patient's left.
        spacing_mm: voxel size (z, y, x) of an array. It has no default: a wrong spacing gives
            wrong diameters and missed nodules. A file states its own.
        series: UID, number or description of the DICOM series to read, or the name of the volume
            file; ``*`` and ``?`` stand for any letters and any letter. Empty: the pixels decide.
        cloud: ``HOST:PORT`` of a cloud service for second readings, None for the edge alone. A
            service on another machine needs TLS: set ``OVERREAD_EDGE_CLOUD__TLS__CA`` in the
            environment.
        deadline_s: seconds after which the report no longer waits for the cloud; 10 by default.
        model: folder with a screening network of your own and its ``manifest.toml``, see
            docs/own-network.md; None for the shipped one. Of several in the folder, the one that
            ``OVERREAD_EDGE_SCREENING_MODEL`` names in the environment reads.
        out: folder for report.json, report.html and pictures; None writes nothing.
        overwrite: whether another study's report in ``out`` may be replaced. That of the same study
            may always be.

    Raises:
        UnsupportedArray: the array or its spacing cannot be that of a chest CT.
        imaging.errors.StudyError: the study cannot be read, or shows no lungs.
        edge.errors.UnfitFolder: ``out`` holds another study's report, is a file, or lies in the
            study's folder; nothing was written.
        edge.errors.EdgeError: a setting is wrong, for example the address of the cloud, or the
            manifest of ``model`` lacks a threshold.
        models.runtime.errors.ModelError: ``model`` has no network that can read.
        OSError: the report cannot be written to ``out``.

    Example:
        >>> report = screen("ct/")  # doctest: +SKIP
        >>> report.findings[0].diameter_mm  # doctest: +SKIP
        12.4
    """
    study = _study(source, spacing_mm, series)
    if out is not None:
        require_separate(Path(out), study.source)
    settings = load_settings(
        cloud__address=cloud,
        deadline_s=deadline_s,
        models__folder=model,
        screening_model=only_screening(Path(model)) if model is not None else None,
    )
    with open_pipeline(settings, reads_files=False) as opened:
        pipeline = replace(opened, read=lambda _path: study, decide=lambda one, _key: decide(one))
        if out is None:
            pipeline = replace(pipeline, draw=lambda *_: {}, write=_write_nothing)
        else:
            pipeline = replace(pipeline, admit=admission(overwrite=overwrite))
        job = Job(study.source.absolute(), Path(out or "."))
        return edge_pipeline.run(pipeline, job, pipeline.start_budget()).report


def read_study(path: str | Path, series: str = "") -> Study:
    """Return the study at ``path``: its volume in HU, its geometry and its header.

    Args:
        path: a DICOM folder or file, or a NIfTI, NRRD or MetaImage file.
        series: which series to read, as for `screen`.

    Raises:
        imaging.errors.StudyError: the study cannot be read; the message names the file.
    """
    given = Path(path)
    return imaging.read.read_study(given.resolve() if given.is_symlink() else given, series)


def _study(source: str | Path | Array, spacing_mm: Sequence[float] | None, series: str) -> Study:
    if isinstance(source, (str, Path)):
        if spacing_mm is not None:
            raise UnsupportedArray("spacing_mm is for arrays: a file states its own spacing")
        return read_study(source, series)
    if series:
        raise UnsupportedArray("series is for files: an array is one series")
    _require_hounsfield(source)
    return study_of_array(source, Geometry(_spacing(spacing_mm)), Path("array"))


def _require_hounsfield(array: Array) -> None:
    kind = getattr(array, "dtype", None)
    if kind is None:
        raise UnsupportedArray(f"expected a path or a NumPy array, got {type(array).__name__}")
    if array.ndim != 3:
        raise UnsupportedArray(f"expected an array of shape (z, y, x), got shape {array.shape}")
    if kind.name not in ACCEPTED_TYPES:
        expected = ", ".join(ACCEPTED_TYPES)
        raise UnsupportedArray(f"expected an array of HU as {expected}, got {kind.name}")
    if array.size == 0:
        raise UnsupportedArray(f"the array is empty: shape {array.shape}")


def _spacing(spacing_mm: Sequence[float] | None) -> tuple[float, float, float]:
    if spacing_mm is None:
        raise UnsupportedArray("spacing_mm is missing: give the voxel size (z, y, x) in mm")
    try:
        z, y, x = (float(value) for value in spacing_mm)
    except (TypeError, ValueError):
        raise UnsupportedArray(
            f"expected spacing_mm as three numbers (z, y, x) in mm, got {spacing_mm!r}"
        ) from None
    if not all(np.isfinite(value) and value > 0 for value in (z, y, x)):
        raise UnsupportedArray(f"expected spacing_mm above 0, got {spacing_mm!r}")
    return z, y, x


def _write_nothing(_report: Report, _pictures: object, out: Path, _evidence: object) -> ReportPaths:
    return ReportPaths(out / "report.json", out / "report.html")
