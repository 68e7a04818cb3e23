"""Looks at one study as it lies in the inbox: what belongs to it, and when it changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

DONE = ".done"
_NAMES_DATA = {".mhd": "elementdatafile", ".nhdr": "data file"}
_HEADER_BYTES = 16384


@dataclass(frozen=True)
class Look:
    """A study as it lies in the inbox now.

    Attributes:
        members: names in the inbox of all of it that is there, the study itself first.
        fingerprint: SHA-256 of the names, sizes and times of its files; empty where it has none.
        changed: when it last changed, or got its name, in seconds since the epoch.
        marked: a ``.done`` file calls it complete.
        lacks_data: its header names a data file that is not there, and nothing marks it complete.
    """

    members: tuple[str, ...]
    fingerprint: str
    changed: float
    marked: bool
    lacks_data: bool


def look_at(inbox: Path, name: str, names: Set[str]) -> Look:
    """The study ``name`` among all the ``names`` in the inbox.

    Raises:
        OSError: a part of it cannot be looked at.
    """
    study, data = inbox / name, _data_file(inbox / name)
    others = [other for other in (data, name + DONE) if other in names and other != name]
    members = (name, *(other for other in others if (inbox / other).exists()))
    files = [found for member in members for found in _walk(inbox / member)]
    markers = (inbox / f"{name}{DONE}", study / DONE)
    marked = any(_is_marked(study, marker) for marker in markers)
    lacks_data = not marked and _is_beside(data) and data not in members
    return Look(members, _fingerprint(inbox, files), _changed(study, files), marked, lacks_data)


def _data_file(path: Path) -> str:
    """What a detached header names as its data file, empty if nothing."""
    key = _NAMES_DATA.get(path.suffix.lower())
    if key is None or not path.is_file():
        return ""
    with path.open("rb") as file:
        lines = file.read(_HEADER_BYTES).decode("utf-8", "replace").splitlines()
    pairs = (line.replace("=", ":", 1).partition(":") for line in lines)
    return next((v.strip() for k, _, v in pairs if k.strip().lower() == key), "")


def _is_beside(data: str) -> bool:
    """Whether this names one file in the header's own folder: no path, pattern or keyword."""
    if not data or "%" in data or PureWindowsPath(data).name != data:
        return False
    return data.split()[0].upper() not in ("LOCAL", "LIST")


def _is_marked(study: Path, marker: Path) -> bool:
    """Whether the marker is there and of this study: one left by an older study is older."""
    try:
        written = marker.stat().st_ctime_ns
    except (FileNotFoundError, NotADirectoryError):
        return False
    changes = [status.st_ctime_ns for path, status in _walk(study) if path != marker]
    return written >= max(changes, default=0)


def _fingerprint(folder: Path, found: Iterable[tuple[Path, os.stat_result]]) -> str:
    """Empty for a study without any file: it has not begun to arrive."""
    files = sorted(
        (str(path.relative_to(folder)), status.st_size, status.st_mtime_ns)
        for path, status in found
        if not path.name.endswith(DONE)
    )
    return hashlib.sha256(repr(files).encode("utf-8", "replace")).hexdigest() if files else ""


def _changed(study: Path, files: Iterable[tuple[Path, os.stat_result]]) -> float:
    """By the time that nobody can set: a copy may bring its own dates, and a rename alters none."""
    times = [status.st_ctime for _, status in files]
    with suppress(FileNotFoundError):
        times.append(study.stat().st_ctime)
    return max(times, default=0.0)


def _walk(study: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The files of a study, or the one that it is; what vanishes meanwhile is not among them."""
    tops = os.walk(study, onerror=_unless_gone)
    inside = (Path(top) / name for top, _, names in tops for name in names)
    for path in inside if study.is_dir() else [study]:
        with suppress(FileNotFoundError):
            yield path, path.stat()


def _unless_gone(error: OSError) -> None:
    """A folder that cannot be listed is no empty one."""
    if not isinstance(error, FileNotFoundError):
        raise error
