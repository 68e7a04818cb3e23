"""Read one study from disk, as whatever it lies there: DICOM folder, DICOM file, volume file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from imaging.dicom.header import find_dicom, is_dicom
from imaging.dicom.study import read_series
from imaging.errors import UnreadableFile
from imaging.volume import Study
from imaging.volume_files import FORMATS, format_of, read_file


def read_study(path: Path, *, progress: Callable[[float], None] | None = None) -> Study:
    """The study at ``path``, voxels in HU with axes turned to the patient's left, back, head.

    Args:
        path: a folder with DICOM files, one of its files (then its series is read and no
            other), or a volume file (NIfTI, NRRD, MetaImage), alone in a folder or by itself.
        progress: is told how much is done, from 0 to 1, in the caller's thread.

    Raises:
        StudyError: the study cannot be read; the message names the file and what to do.
    """
    report = progress or _no_report
    report(0.0)
    study = _read(path, report)
    report(1.0)
    return study


def _read(path: Path, progress: Callable[[float], None]) -> Study:
    if path.is_dir():
        return _read_directory(path, progress)
    if not path.is_file():
        raise UnreadableFile("does not exist, or is no file: check the path", path)
    if format_of(path):
        return read_file(path)
    if is_dicom(path):
        files, _others = find_dicom(path.parent)
        return read_series(path.parent, files, only=path, progress=progress)
    known = ", ".join(FORMATS)
    reason = f"is no file that can be read: give a DICOM folder or file, or one of {known}"
    raise UnreadableFile(reason, path)


def _read_directory(folder: Path, progress: Callable[[float], None]) -> Study:
    """Of its DICOM files; where there are none, of the one volume file in it."""
    files, others = find_dicom(folder)
    if files:
        study = read_series(folder, files, progress=progress)
        return replace(study, other_series=study.other_series + _ignored(others))
    volumes = [file for file in others if format_of(file)]
    if len(volumes) != 1:
        raise UnreadableFile(_nothing(others), folder)
    return read_file(volumes[0])


def _nothing(others: Sequence[Path]) -> str:
    found = f"but {len(others)} other files such as {others[0].name}" if others else "it is empty"
    return f"no DICOM files in this folder, {found}: give the folder of one CT study"


def _ignored(others: Sequence[Path]) -> tuple[str, ...]:
    if not others:
        return ()
    names = ", ".join(file.name for file in others[:3])
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return (f"not DICOM, ignored: {names}{more}",)


def _no_report(_done: float) -> None:
    """Nobody asked for the progress."""
