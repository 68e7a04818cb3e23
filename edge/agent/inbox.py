"""Find the complete studies in the inbox; nothing is moved or changed.

A study is a sub-folder, or one file of a known volume format with the data file that it names. It
is complete when a ``.done`` file says so (in the folder, or ``NAME.done`` beside it), or when it
has not changed for a while and the data file that it names is there. The while is longer if a file
in the folder has the name of a transfer, or fewer images arrived than their headers announce.
Hidden and temporary names are ignored. An archive is taken too: only the report on it can tell the
sender that it is not read.
"""

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

import structlog

from edge.access import obstacle, walk
from edge.folders import DONE
from imaging.dicom.arrival import missing_images
from imaging.dicom.header import UNFINISHED, is_unfinished
from imaging.files import VOLUME_SUFFIXES
from imaging.read import ARCHIVES

_NAMES_DATA = {".mhd": "elementdatafile", ".nhdr": "data file"}
_HEADER_BYTES = 16384
_TEMPORARY = (*UNFINISHED, "~", DONE)
UNFINISHED_WAITS = 10
"""How many quiet times a study waits with a file in it whose transfer has not finished.

Then it is read, or refused with that file's name: a transfer that broke off never finishes.
"""

log = structlog.get_logger()


@dataclass(frozen=True)
class InboxEntry:
    """A study in the inbox, as it is now, and what the `Inbox` remembers of it between polls.

    Attributes:
        members: names in the inbox of all its parts that exist, the study itself first.
        fingerprint: SHA-256 of the names, sizes and times of its files; empty for no files.
        changed: when it last changed or was renamed according to the filesystem, in seconds since
            the epoch: this detects a new copy with the same names, sizes and times.
        marked: a ``.done`` file says that it is complete.
        lacks_data: its header names a data file that is missing, and no ``.done`` file is there.
        unfinished: one of its files has the name of a transfer.
        first_s: the poll that saw it first as it is now, on the inbox's clock.
        quiet_s: for how long it must not change to be complete; None until the shortest time is
            over, and the headers are read.
        since_s: when it became complete, on the inbox's clock; its budget runs since then. It is
            infinite while it is not complete.
    """

    members: tuple[str, ...]
    fingerprint: str
    changed: float = 0.0
    marked: bool = False
    lacks_data: bool = False
    unfinished: bool = False
    first_s: float = 0.0
    quiet_s: float | None = None
    since_s: float = math.inf

    @property
    def name(self) -> str:
        """Name of its folder or of its volume file."""
        return self.members[0]


def inspect_entry(inbox: Path, name: str, names: Set[str]) -> InboxEntry:
    """Inspect the study ``name`` among all the ``names`` in the inbox.

    Raises:
        OSError: a part of it cannot be read.
    """
    study, data = inbox / name, data_file(inbox / name)
    if data in names and is_study(inbox / data):
        data = ""  # it has a report of its own
    others = [other for other in (data, name + DONE) if other in names and other != name]
    members = (name, *(other for other in others if (inbox / other).is_file()))
    files = [found for member in members for found in _walk(inbox / member)]
    markers = (inbox / f"{name}{DONE}", study / DONE)
    marked = any(_is_marked(study, marker) for marker in markers)
    lacks_data = not marked and _is_beside(data) and data not in members
    unfinished = any(is_unfinished(path) for path, _ in files)
    # the latest status change: a copy may set other times, and a rename changes none
    times = [status.st_ctime for _, status in files]
    with suppress(FileNotFoundError):
        times.append(study.stat().st_ctime)
    changed, fingerprint = max(times, default=0.0), _fingerprint(inbox, files)
    return InboxEntry(members, fingerprint, changed, marked, lacks_data, unfinished)


def data_file(path: Path) -> str:
    """Return the data file that a detached header names; empty for none, or no plain name."""
    key = _NAMES_DATA.get(path.suffix.lower())
    if key is None or not path.is_file():
        return ""
    with path.open("rb") as file:
        lines = file.read(_HEADER_BYTES).decode("utf-8", "replace").splitlines()
    pairs = (line.replace("=", ":", 1).partition(":") for line in lines)
    data = next((v.strip() for k, _, v in pairs if k.strip().lower() == key), "")
    return "" if _is_temporary(data) or PureWindowsPath(data).name != data else data


def _is_beside(data: str) -> bool:
    """Return whether this is one file beside the header: no pattern or keyword."""
    if not data or "%" in data:
        return False
    return data.split()[0].upper() not in ("LOCAL", "LIST")


def _is_marked(study: Path, marker: Path) -> bool:
    """Return whether the marker exists and belongs to this study: a stale one is older."""
    try:
        written = marker.stat().st_ctime_ns
    except (FileNotFoundError, NotADirectoryError):
        return False
    changes = [status.st_ctime_ns for path, status in _walk(study) if path != marker]
    return written >= max(changes, default=0)


def _fingerprint(folder: Path, found: Iterable[tuple[Path, os.stat_result]]) -> str:
    """Return the fingerprint; empty for a study of which no file has arrived."""
    files = sorted(
        (str(path.relative_to(folder)), status.st_size, status.st_mtime_ns)
        for path, status in found
        if not path.name.endswith(DONE)
    )
    return hashlib.sha256(repr(files).encode("utf-8", "replace")).hexdigest() if files else ""


def _walk(study: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the files of a study, or the file itself.

    Left out are files that vanish meanwhile, and hidden ones: they are no images, and they change
    while the study does not.
    """
    found = (entry for entry in walk(study) if not entry.name.startswith("."))
    inside = (Path(entry.path) for entry in found if not entry.is_dir())
    for path in inside if study.is_dir() else [study]:
        with suppress(FileNotFoundError):
            yield path, path.stat()


class Inbox:
    """Remember since when each study has been unchanged, and since when it is complete.

    A study may be marked complete between two polls, while the agent reads another one. Then it is
    complete since the time of its newest file, but not before the first of these polls: the wall
    clock is used for nothing else. Without a mark, the quiet time begins with the poll that saw the
    study first, and it is not part of the study's budget.

    Args:
        quiet_s: seconds without a change after which a study counts as complete.
        wall: seconds since the epoch, for the times of files.

    Attributes:
        blocked: how many studies the last poll saw that the agent may not move or read.
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
        self._polled_s: float | None = None
        self._seen: dict[str, InboxEntry] = {}
        self._logged: dict[str, Set[str]] = {}
        self._closed = ""
        self.blocked = 0

    def complete(self) -> list[InboxEntry]:
        """Poll once: return the studies that are complete now, by name.

        A study that cannot be read waits, and does not delay the others. While the inbox itself
        cannot be listed, for example on a network share, nothing is complete.
        """
        try:
            names = set(os.listdir(self._folder))
        except OSError as error:
            if (closed := _reason(error)) != self._closed:
                log.error("inbox unreadable, waiting", reason=closed)
            self._closed = closed
            return []
        self._closed = ""
        now = self._clock()
        unreadable: dict[str, str] = {}
        entries: dict[str, InboxEntry] = {}
        for name in sorted(names):
            try:
                if is_study(self._folder / name):
                    entries[name] = inspect_entry(self._folder, name, names)
            except OSError as error:  # no permission, a loop of links, a failing disk
                unreadable[name] = reason_of(error, self._folder / name)
        self._log_once("studies in the inbox are unreadable", unreadable, "reasons")
        headers = {name: "" for name, entry in entries.items() if entry.lacks_data}
        self._log_once("headers lack their data files", headers)
        transfers = {name: "" for name, entry in entries.items() if entry.unfinished}
        self._log_once("transfers in the inbox have not finished", transfers)
        owned = {member for entry in entries.values() for member in entry.members}
        others = names - owned - unreadable.keys()
        strays = {name: Path(name).suffix for name in others if not _is_temporary(name)}
        self._log_once("files in the inbox belong to no study", strays, "suffixes")
        self._seen = {name: self._remembered(entry, now) for name, entry in entries.items()}
        self._polled_s = now
        complete = [entry for entry in self._seen.values() if entry.since_s < math.inf]
        blocked = {study.name: obstacle_to(self._folder, study.members) for study in complete}
        blocked = {name: reason for name, reason in blocked.items() if reason}
        self._log_once("studies in the inbox may not be taken", blocked, "reasons")
        self.blocked = len(blocked) + len(unreadable)
        return [study for study in complete if study.name not in blocked]

    def arriving(self) -> list[Path]:
        """Return the folders of the last poll that were not complete, the last changed one last."""
        seen = self._seen.items()
        found = [(entry.changed, name) for name, entry in seen if entry.since_s == math.inf]
        return [self._folder / name for _, name in sorted(found) if (self._folder / name).is_dir()]

    def _remembered(self, entry: InboxEntry, now: float) -> InboxEntry:
        """Return the entry with what is remembered of it, if it has not changed since."""
        seen = self._seen.get(entry.name)
        if seen is None or (seen.fingerprint, seen.changed) != (entry.fingerprint, entry.changed):
            seen, entry = None, replace(entry, first_s=now)
        else:
            entry = replace(entry, first_s=seen.first_s, quiet_s=seen.quiet_s)
        quiet = entry.fingerprint != "" and now - entry.first_s >= self._quiet_s
        if quiet and not entry.marked and entry.quiet_s is None:
            entry = replace(entry, quiet_s=self._quiet_for(entry))
        quiet_s = entry.quiet_s or 0.0
        quiet = quiet and now - entry.first_s >= quiet_s
        if not (entry.marked or (quiet and not entry.lacks_data)):
            return entry
        if seen is not None and seen.since_s < math.inf:
            return replace(entry, since_s=seen.since_s)
        if not entry.marked:
            return replace(entry, since_s=entry.first_s + quiet_s)
        # It was marked not before the last poll, which saw it unmarked. A study that is there at
        # the first poll counts from this poll.
        since_s = now if self._polled_s is None else self._polled_s
        return replace(entry, since_s=min(now, max(since_s, now - (self._wall() - entry.changed))))

    def _quiet_for(self, entry: InboxEntry) -> float:
        long_s = UNFINISHED_WAITS * self._quiet_s
        if missing := missing_images(self._folder / entry.name):
            log.info("announced images are missing, waiting", missing=missing, at_most_s=long_s)
        return long_s if missing or entry.unfinished else self._quiet_s

    def _log_once(self, event: str, details: Mapping[str, str], key: str = "") -> None:
        """Log an event once for each name, without the names: they may be a patient's."""
        if new := details.keys() - self._logged.get(event, frozenset()):
            values = {key: sorted({details[name] for name in new})} if key else {}
            log.warning(event, count=len(new), **values)
        self._logged[event] = details.keys()


def is_study(path: Path) -> bool:
    """Return whether this entry of the inbox is a study: a folder, or a file of a known format."""
    if _is_temporary(path.name) or path.is_symlink():
        return False
    is_known = path.name.lower().endswith(VOLUME_SUFFIXES + ARCHIVES)
    return path.is_dir() or (is_known and path.is_file())


def _is_temporary(name: str) -> bool:
    """Return whether the name is hidden, a marker, or of a file in transfer."""
    return name.startswith(".") or name.lower().endswith(_TEMPORARY)


def obstacle_to(inbox: Path, members: Iterable[str]) -> str:
    """Return why the agent may not take a study with these members; empty if it may."""
    return next(filter(None, (obstacle(inbox / member) for member in members)), "")


def reason_of(error: OSError, path: Path) -> str:
    """Return why an entry of the inbox cannot be read."""
    with suppress(OSError):
        if isinstance(error, PermissionError) and (reason := obstacle(path)):
            return reason
    return _reason(error)


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
