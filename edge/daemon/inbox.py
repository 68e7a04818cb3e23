"""Watches the inbox and says which studies in it are complete. It moves and changes nothing.

A study is a sub-folder, or one file of a known volume format together with the data file that it
names. It is complete when a ``.done`` file says so (in the folder, or ``NAME.done`` beside it), or
when nothing of it has changed for a while and the data file that it names is there. Hidden and
temporary names are left alone.

Looks at one study as it lies in the inbox: what belongs to it, and when it changed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

import structlog

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


VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_TEMPORARY = (".tmp", ".part", ".partial", ".filepart", ".crdownload", "~", DONE)

log = structlog.get_logger()


@dataclass(frozen=True)
class Arrival:
    """A study that lies complete in the inbox.

    Attributes:
        members: names in the inbox of all that belongs to it, the study itself first.
        fingerprint: SHA-256 of the names, sizes and times of its files.
        since_s: when it was complete, by its mark or as soon as looking could tell, on the inbox's
            clock: from here its budget runs.
    """

    members: tuple[str, ...]
    fingerprint: str
    since_s: float

    @property
    def name(self) -> str:
        """The name of the folder, or of the volume's file."""
        return self.members[0]


@dataclass(frozen=True)
class _Seen:
    """What is remembered of a study from look to look, on the inbox's clock.

    Attributes:
        fingerprint: of its files.
        changed: when they last changed, as the filesystem has it: a copy that brings names, sizes
            and times along is another all the same.
        first_s: the look that saw them first.
        since_s: when they were complete; None as long as they are not.
    """

    fingerprint: str
    changed: float
    first_s: float
    since_s: float | None = None


class Inbox:
    """Remembers since when each study has been quiet, and since when complete.

    What is marked complete between two looks, as happens while the agent reads another study, was
    so when its newest file says, but within these two looks: the wall clock has no other part in
    it. Without a mark the quiet time runs from the look that saw the study first, and no study
    is charged for it.

    Args:
        folder: the inbox.
        quiet_s: seconds without a change after which a study counts as complete.
        clock: monotonic seconds.
        wall: seconds since the epoch, as files are dated.
    """

    def __init__(
        self,
        folder: Path,
        quiet_s: float,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._quiet_s = quiet_s
        self._clock, self._wall = clock, wall
        self._looked_s: float | None = None
        self._seen: dict[str, _Seen] = {}
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
        looks: dict[str, Look] = {}
        for name in sorted(names):
            try:
                if self._is_study(name):
                    looks[name] = look_at(self._folder, name, names)
            except OSError as error:  # it is not ours to read, goes in circles, its disk fails
                shut[name] = _reason(error)
        self._tell_of_shut(shut)
        self._tell_of_headers({n for n, look in looks.items() if look.lacks_data})
        owned = {member for look in looks.values() for member in look.members}
        self._tell_of_strays({n for n in names - owned - {*shut} if not _is_passing(n)})
        self._seen = {name: self._remembered(name, look, now) for name, look in looks.items()}
        self._looked_s = now
        return [
            Arrival(looks[name].members, seen.fingerprint, seen.since_s)
            for name, seen in self._seen.items()
            if seen.since_s is not None
        ]

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

    def _remembered(self, name: str, look: Look, now: float) -> _Seen:
        seen = self._seen.get(name)
        now_there = (look.fingerprint, look.changed)
        if seen is None or (seen.fingerprint, seen.changed) != now_there:
            seen = _Seen(*now_there, now)
        quiet = look.fingerprint != "" and now - seen.first_s >= self._quiet_s
        if not (look.marked or (quiet and not look.lacks_data)):
            return replace(seen, since_s=None)
        if seen.since_s is not None:
            return seen
        by_quiet_s = seen.first_s + self._quiet_s
        return replace(seen, since_s=self._moment_s(look, now) if look.marked else by_quiet_s)

    def _moment_s(self, look: Look, now: float) -> float:
        """When it was marked: after the last look, for it was not so then.

        What lies there at the first look came while nobody looked, and begins with it.
        """
        if self._looked_s is None:
            return now
        return min(now, max(self._looked_s, now - (self._wall() - look.changed)))

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
