"""Read one study from disk: a DICOM folder, a DICOM file or a volume file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imaging.dicom.ahead import ReadAhead
from imaging.dicom.header import (
    DICOM_SUFFIXES,
    find_dicom,
    is_dicom,
    is_unfinished,
    lost_image,
    names_of,
    read_head,
)
from imaging.dicom.series import is_named
from imaging.dicom.study import read_series
from imaging.errors import SeriesNotFound, UnreadableFile
from imaging.files import SIDECARS, unchanged
from imaging.selection import SelectSeries, SeriesSummary
from imaging.volume import Study
from imaging.volume_files import FORMATS, format_of, read_file

ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".iso")
"""Suffixes of archives, which are refused: they are unpacked by the user, who sees what is in."""


def read_study(
    path: Path, series: str = "", select: SelectSeries | None = None, ahead: ReadAhead | None = None
) -> Study:
    """Read the study at ``path``: HU, with axes to the patient's left, back and head.

    Only regular files are opened, and no link is followed: neither ``path`` nor inside a folder.

    Args:
        path: a folder with DICOM files, its DICOMDIR, one of its files (then only its series is
            read), a volume file (NIfTI, NRRD, MetaImage), or a folder with one volume file.
        series: UID, number or description of the DICOM series to read, or the name of the volume
            file; ``*`` and ``?`` stand for any letters and any letter. Empty: the pixels decide.
        select: says which series may be read, and which come first; what it raises is raised.
        ahead: what was read of the study while it arrived.

    Raises:
        StudyError: the study cannot be read; the message names the file and says what to do.
        OSError: a fault of the machine, or a file was changed meanwhile; the study may be read
            later.
    """
    if path.is_symlink():
        raise UnreadableFile("is a link: give the file or folder itself", path)
    if path.is_dir():
        return _read_directory(path, series, select, ahead)
    if not path.is_file():
        raise UnreadableFile("does not exist or is not a file: check the path", path)
    if path.name.upper() == "DICOMDIR":
        return _read_directory(path.parent, series, select)
    if is_unfinished(path):
        raise UnreadableFile(lost_image(path, b""), path)
    if format_of(path):
        return _read_volume([path], series, select, path)
    if is_dicom(head := read_head(path)):
        files, _others = find_dicom(path.parent)
        with unchanged(files):
            return read_series(path.parent, files, only=path, request=series, select=select)
    if path.name.lower().endswith(ARCHIVES):
        raise UnreadableFile("is an archive: unpack it, and give the folder of the study", path)
    if not head or path.suffix.lower() in DICOM_SUFFIXES:
        raise UnreadableFile(lost_image(path, head), path)
    known = ", ".join(FORMATS)
    reason = f"unknown file format: give a DICOM folder, a DICOM file, or one of {known}"
    raise UnreadableFile(reason, path)


def _read_directory(
    folder: Path, series: str, select: SelectSeries | None, ahead: ReadAhead | None = None
) -> Study:
    """Read the DICOM files of a folder, or its volume file where there are none."""
    files, others = find_dicom(folder, ahead.is_known) if ahead else find_dicom(folder)
    if files:
        with unchanged(files):
            study = read_series(folder, files, request=series, select=select, ahead=ahead)
        ignored = [file for file in others if file.name not in SIDECARS]
        told = (f"not DICOM, ignored: {names_of(ignored)}",) if ignored else ()
        return replace(study, other_series=study.other_series + told)
    volumes = [file for file in others if format_of(file)]
    if volumes:
        return _read_volume(volumes, series, select, folder)
    archives = [file for file in others if file.name.lower().endswith(ARCHIVES)]
    if archives:
        reason = f"no DICOM files in this folder, but an archive, {archives[0].name}: unpack it"
        raise UnreadableFile(reason, folder)
    found = f"but {len(others)} other files such as {others[0].name}" if others else "it is empty"
    if not others and any(name.name.upper() == "DICOMDIR" for name in folder.iterdir()):
        found = "only a DICOMDIR, whose images lie elsewhere"
    reason = f"no DICOM files in this folder, {found}: give the folder of one CT study"
    raise UnreadableFile(reason, folder)


def _read_volume(
    files: Sequence[Path], series: str, select: SelectSeries | None, source: Path
) -> Study:
    """Read the volume file of the name ``series``, or the only one; the others may be anyone's."""
    meant = [file for file in files if is_named(file.name, series or "*")]
    if series and not meant:
        there = names_of(files)
        raise SeriesNotFound(f"no volume file has the name {series!r}, expected {there}", source)
    if len(meant) > 1:
        reason = f"{len(meant)} volume files ({names_of(meant)}), which may be of several patients"
        raise UnreadableFile(f"{reason}: give one of them", source)
    with unchanged(meant):
        study = read_file(meant[0])
    if select is not None:
        # a volume file has no header of a series
        header = replace(study.header, series_description=meant[0].name)
        images = study.volume.shape[0]
        (answer,) = select((SeriesSummary(header, meant[0].parent, images=images),))
        study = replace(study, rule=answer.rule)
    others = tuple(f"{file.name}: not requested" for file in files if file != meant[0])
    return replace(study, other_series=study.other_series + others)
