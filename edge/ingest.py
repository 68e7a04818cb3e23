"""Watches the inbox and says which studies in it are complete. It moves and changes nothing.

A study is a sub-folder, or one file of a known volume format together with the data file that it
names. It is complete when a ``.done`` file says so (in the folder, or ``NAME.done`` beside it), or
when nothing of it has changed for a while and the data file that it names is there. Hidden and
temporary names are left alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import structlog

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
DONE = ".done"
_TEMPORARY = (".tmp", ".part", ".partial", ".filepart", ".crdownload", "~", DONE)
_NAMES_DATA = {".mhd": "elementdatafile", ".nhdr": "data file"}
_HEADER_BYTES = 16384

log = structlog.get_logger()


@dataclass(frozen=True)
class Arrival:
    """A study that lies complete in the inbox.

    Attributes:
        members: names in the inbox of all that belongs to it, the study itself first.
        fingerprint: SHA-256 of the names, sizes and times of its files.
    """

    members: tuple[str, ...]
    fingerprint: str

    @property
    def name(self) -> str:
        """The name of the folder, or of the volume's file."""
        return self.members[0]


@dataclass(frozen=True)
class _Look:
    """A study as it lies in the inbox now.

    Attributes:
        arrival: all of it that is there.
        marked: a ``.done`` file calls it complete.
        lacks_data: its header names a data file that is not there, and nothing marks it complete.
    """

    arrival: Arrival
    marked: bool
    lacks_data: bool


class Inbox:
    """Remembers since when each study has been quiet.

    Args:
        folder: the inbox.
        quiet_s: seconds without a change after which a study counts as complete.
        clock: monotonic seconds.
    """

    def __init__(self, folder: Path, quiet_s: float, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._quiet_s = quiet_s
        self._clock = clock
        self._seen: dict[str, tuple[str, float]] = {}
        self._strays: set[str] = set()
        self._shut: dict[str, str] = {}
        self._headers: set[str] = set()
        self._closed = ""

    def complete(self) -> list[Arrival]:
        """Look once: the studies that are complete now, by name.

        One that cannot be looked at waits until it can, and keeps none of the others waiting. While
        the inbox itself cannot be listed, as one on a network may be, there are none.
        """
        if (names := self._names()) is None:
            return []
        now = self._clock()
        shut: dict[str, str] = {}
        looks: dict[str, _Look] = {}
        for name in sorted(names):
            try:
                if self._is_study(name):
                    looks[name] = self._look(name, names)
            except OSError as error:  # it is not ours to read, goes in circles, its disk fails
                shut[name] = _reason(error)
        self._tell_of_shut(shut)
        self._tell_of_headers({n for n, look in looks.items() if look.lacks_data})
        owned = {member for look in looks.values() for member in look.arrival.members}
        self._tell_of_strays({n for n in names - owned - {*shut} if not _is_passing(n)})
        self._seen = {
            name: (look.arrival.fingerprint, self._since(name, look.arrival.fingerprint, now))
            for name, look in looks.items()
        }
        return [look.arrival for name, look in looks.items() if self._is_complete(name, look, now)]

    def _names(self) -> set[str] | None:
        """What lies in the inbox, None if it cannot be listed; that is said once."""
        try:
            names = set(os.listdir(self._folder))
        except OSError as error:
            if (closed := _reason(error)) != self._closed:
                log.error("the inbox cannot be read, waiting", reason=closed)
            self._closed = closed
            return None
        self._closed = ""
        return names

    def _look(self, name: str, names: set[str]) -> _Look:
        study, data = self._folder / name, _data_file(self._folder / name)
        others = [other for other in (data, name + DONE) if other in names and other != name]
        members = (name, *(other for other in others if (self._folder / other).exists()))
        arrival = Arrival(members, _fingerprint(self._folder, members))
        markers = (self._folder / f"{name}{DONE}", study / DONE)
        marked = any(_is_marked(study, marker) for marker in markers)
        lacks_data = not marked and _is_beside(data) and data not in members
        return _Look(arrival, marked, lacks_data)

    def _since(self, name: str, fingerprint: str, now: float) -> float:
        before, since = self._seen.get(name, ("", now))
        return since if before == fingerprint else now

    def _is_complete(self, name: str, look: _Look, now: float) -> bool:
        fingerprint, since = self._seen[name]
        quiet = fingerprint != "" and now - since >= self._quiet_s
        return look.marked or (quiet and not look.lacks_data)

    def _is_study(self, name: str) -> bool:
        path = self._folder / name
        if _is_passing(name) or path.is_symlink():
            return False
        return path.is_dir() or (path.is_file() and name.lower().endswith(VOLUME_SUFFIXES))

    def _tell_of_strays(self, strays: set[str]) -> None:
        """Say once of files that they belong to no study: they would wait here for ever."""
        if new := strays - self._strays:  # no names: they may be a patient's
            kinds = sorted({Path(name).suffix for name in new})
            log.warning("files that are no study stay in the inbox", count=len(new), kinds=kinds)
        self._strays = strays

    def _tell_of_shut(self, shut: dict[str, str]) -> None:
        """Say once of studies that they cannot be looked at, by the reason alone, as above."""
        if new := shut.keys() - self._shut.keys():
            reasons = sorted({shut[name] for name in new})
            log.warning("studies that cannot be read wait", count=len(new), reasons=reasons)
        self._shut = shut

    def _tell_of_headers(self, headers: set[str]) -> None:
        """Say once of headers that they lack their data, without their names, as above."""
        if new := headers - self._headers:
            log.warning("headers wait for their data files", count=len(new))
        self._headers = headers


def report_names(name: str) -> Iterator[str]:
    """Wishes for a report's folder: the study's name without suffix, then with 2, 3, … after."""
    suffix = next((s for s in VOLUME_SUFFIXES if name.lower().endswith(s)), "")
    stem = name[: len(name) - len(suffix)] or name
    stem = stem.encode("utf-8", "replace").decode()  # a name that is not UTF-8
    while len(stem.encode()) > 200:  # room for a number within the 255 bytes of a name
        stem = stem[:-1]
    yield stem
    number = 2
    while True:
        yield f"{stem}-{number}"
        number += 1


def _is_passing(name: str) -> bool:
    """Whether the name is one of a file in transfer, or hidden, or a marker."""
    return name.startswith(".") or name.lower().endswith(_TEMPORARY)


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


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


def _fingerprint(folder: Path, members: tuple[str, ...]) -> str:
    """Empty for a study without any file: it has not begun to arrive."""
    files = sorted(
        (str(path.relative_to(folder)), status.st_size, status.st_mtime_ns)
        for member in members
        for path, status in _walk(folder / member)
        if not path.name.endswith(DONE)
    )
    return hashlib.sha256(repr(files).encode("utf-8", "replace")).hexdigest() if files else ""


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
