"""The study of a demonstration: a phantom drawn for it, or a copy of a person's own.

Either arrives in the inbox as a scanner's export would: under a name that the agent leaves alone
until everything is there, then complete at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from edge.ingest import VOLUME_SUFFIXES
from edge.look import DONE
from evaluation.errors import MissingData
from imaging.dicom.header import MAX_FILES
from imaging.dicom.writer import write_series
from imaging.phantom.phantom import Phantom, PhantomSpec, phantom_header

Told = Callable[[float], None]
"""Is told the part done, 0..1."""

_PART = ".part"
_DATA_KEY = {".mhd": "elementdatafile", ".nhdr": "data file"}
_HEADER_BYTES = 16384


def demo_spec(seed: int) -> PhantomSpec:
    """A whole chest of 120 slices of 2.5 mm with five nodules that a reader should see."""
    return PhantomSpec(
        seed=seed,
        spacing_mm=(2.5, 0.75, 0.75),
        size_mm=(300.0, 360.0, 360.0),
        nodule_count=5,
        diameter_mm=(6.0, 25.0),
    )


def require_study(source: Path) -> None:
    """Nothing, for what the agent takes: a folder, or a volume file by its name.

    Raises:
        MissingData: it is another file.
    """
    if not source.is_dir() and not _volume_suffix(source):
        known = ", ".join(VOLUME_SUFFIXES)
        reason = f"is none of {known}; of a DICOM series give the folder"
        raise MissingData(source, reason)


def deliver_phantom(phantom: Phantom, spec: PhantomSpec, inbox: Path, told: Told) -> None:
    """Write the phantom into the inbox as a DICOM series."""
    part = inbox / f"phantom-{spec.seed}{_PART}"
    write_series(phantom.volume, part, header=phantom_header(spec), seed=spec.seed, progress=told)
    _complete(part)


def deliver_copy(source: Path, inbox: Path, told: Told) -> None:
    """Copy a DICOM folder or a volume file, with its data file, into the inbox.

    Raises:
        MissingData: it is neither, or too much to copy.
        OSError: a file cannot be read.
    """
    require_study(source)
    if source.is_dir():
        part = inbox / f"study{_PART}"
        _copy({file: part / file.relative_to(source) for file in _files(source)}, inbox, told)
        part.mkdir(exist_ok=True)  # an empty folder is the agent's to refuse
        _complete(part)
        return
    name = f"study{_volume_suffix(source)}"
    copies = {source: inbox / f"{name}{_PART}"}
    if (data := _data_file(source)) is not None:
        copies[data] = inbox / data.name
    _copy(copies, inbox, told)
    (inbox / f"{name}{_PART}").rename(inbox / name)
    (inbox / f"{name}{DONE}").touch()


def _complete(part: Path) -> None:
    """Give the folder its name, with the marker that nothing more will come."""
    (part / DONE).touch()
    part.rename(part.with_suffix(""))


def _volume_suffix(file: Path) -> str:
    """The ending of a volume file's name, empty for another file."""
    name = file.name.lower()
    return next((suffix for suffix in VOLUME_SUFFIXES if name.endswith(suffix)), "")


def _data_file(header: Path) -> Path | None:
    """The file with the voxels that a detached header names beside itself."""
    key = _DATA_KEY.get(header.suffix.lower())
    if key is None:
        return None
    with header.open("rb") as file:
        lines = file.read(_HEADER_BYTES).decode("utf-8", "replace").splitlines()
    pairs = (line.replace("=", ":", 1).partition(":") for line in lines)
    named = next((v.strip() for k, _, v in pairs if k.strip().lower() == key), "")
    data = header.with_name(named) if named and Path(named).name == named else None
    return data if data is not None and data.is_file() else None


def _files(folder: Path) -> Iterator[Path]:
    """The regular files below a folder; links to folders are not followed."""
    found = (Path(top, name) for top, _, names in os.walk(folder) for name in names)
    for count, file in enumerate(found, start=1):
        if count > MAX_FILES:
            raise MissingData(folder, f"holds more than {MAX_FILES} files: give one study")
        if file.is_file():
            yield file


def _copy(copies: dict[Path, Path], inbox: Path, told: Told) -> None:
    size = sum(file.stat().st_size for file in copies)
    free = shutil.disk_usage(inbox).free
    if size > free:
        reason = f"is {size / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free for its copy"
        raise MissingData(next(iter(copies)).parent, f"{reason}: give another folder with --out")
    for count, (file, target) in enumerate(copies.items(), start=1):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        told(count / len(copies))
