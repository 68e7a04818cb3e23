"""The records of the audit trail, how they are chained, and their files.

A record is one line of canonical JSON: keys in order, no spaces, ASCII. It holds the SHA-256 of the
line before it. So nobody can change, remove or insert a record without changing all records after
it.

There is a file for each month and `MAX_FILE_BYTES`, and the chain goes on through all of them. A
file is named for the sequence of its first record, so that names sort as records do whatever a
clock does. Files only grow. A last line that a power cut has torn is removed before the next line
is written: its record is still in the database.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import structlog

from edge.access import make_folder
from edge.atomic_files import sync_folder

ORIGIN = "0" * 64
"""What the first record of a trail holds as the hash of the record before it."""

MAX_FILE_BYTES = 5_000_000
"""Beyond this size the next record begins a file: some 10,000 records, which take 0.2 s to read."""

_TYPES = {"sequence": int, "time": str, "event": str, "fields": dict, "previous": str}

log = structlog.get_logger()


class InvalidRecord(ValueError):
    """A line is no record; the message says why."""


@dataclass(frozen=True)
class TrailRecord:
    """One record.

    Attributes:
        sequence: 1, 2, 3, … through all files.
        time: wall-clock time, UTC, ISO 8601 with milliseconds.
        event: a value of `Event`, as text: another version of this program may know more.
        fields: what belongs to the event, as JSON values.
        previous: SHA-256 of the line before it, hexadecimal; `ORIGIN` in the first record.
    """

    sequence: int
    time: str
    event: str
    fields: Mapping[str, Any]
    previous: str

    @property
    def line(self) -> str:
        """The record as canonical JSON, without the end of the line."""
        return canonical(vars(self))

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read a line, without the end of the line.

        Raises:
            InvalidRecord: it is no record, or not as `line` writes it.
        """
        try:
            values = json.loads(line)
        except ValueError:
            raise InvalidRecord("it is not JSON") from None
        if not isinstance(values, dict) or values.keys() != _TYPES.keys():
            raise InvalidRecord(f"it has other keys than {', '.join(sorted(_TYPES))}")
        if any(type(values[name]) is not kind for name, kind in _TYPES.items()):
            raise InvalidRecord("a value is of another type than in a record")
        record = cls(**values)
        if record.line != line:
            raise InvalidRecord("it is not written as canonical JSON")
        return record


def canonical(values: object) -> str:
    """Return JSON values as text that is the same for the same values.

    Raises:
        TypeError, ValueError: a value is not one of JSON, or a number is not finite.
    """
    return json.dumps(
        values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def digest(line: str) -> str:
    """Return the SHA-256 of a line, as the next record holds it."""
    return hashlib.sha256(line.encode("ascii")).hexdigest()


@dataclass(frozen=True)
class Line:
    """One line of a file: ``number`` counts from 1, ``text`` is without its end."""

    file: Path
    number: int
    text: str
    torn: bool = False


@dataclass(frozen=True)
class End:
    """Where the files end: sequence and hash of the last record, its file, and that file's size."""

    sequence: int = 0
    hash: str = ORIGIN
    file: str = ""
    file_bytes: int = 0


def file_name(sequence: int, time: str) -> str:
    """Return the name of a file whose first record has this sequence and time."""
    return f"trail-{sequence:012d}-{time[:7]}.jsonl"


def files_in(folder: Path) -> list[Path]:
    """Return the files of a trail in the order of their records; none if there is no folder."""
    return sorted(folder.glob("trail-*.jsonl"))


def lines_of(file: Path) -> Iterator[Line]:
    """Yield the lines of a file; only the last can be torn, where it has no end.

    Raises:
        OSError: the file cannot be read.
    """
    with file.open("rb") as stream:
        for number, data in enumerate(stream, 1):
            text = data.removesuffix(b"\n").decode("ascii", "backslashreplace")
            yield Line(file, number, text, torn=not data.endswith(b"\n"))


def records_in(file: Path) -> Iterator[TrailRecord]:
    """Yield the records of a file; a torn line and lines that are no record are left out.

    Raises:
        OSError: the file cannot be read.
    """
    for line in lines_of(file):
        if not line.torn:
            with suppress(InvalidRecord):  # `verify` names it
                yield TrailRecord.parse(line.text)


def records_after(folder: Path, sequence: int) -> Iterator[TrailRecord]:
    """Yield the records beyond this sequence; errors and what is left out as `records_in`."""
    files = files_in(folder)
    starts = [int(file.name.split("-")[1]) for file in files]
    for file, next_start in zip(files, [*starts[1:], sequence + 2], strict=False):
        if next_start > sequence + 1:
            yield from (one for one in records_in(file) if one.sequence > sequence)


def end_of(folder: Path) -> End:
    """Return where the files of a folder end; errors and what is left out as `records_in`."""
    for file in reversed(files_in(folder)):
        for last in deque(records_in(file), 1):
            return End(last.sequence, digest(last.line), file.name, file.stat().st_size)
    return End()


def repair(folder: Path) -> None:
    """Remove a torn last line of the last file.

    Raises:
        OSError: the file cannot be read or written.
    """
    for file in files_in(folder)[-1:]:
        data = file.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            log.warning("torn line of the trail removed", file=file.name, bytes=len(data) - whole)
            with file.open("r+b") as stream:
                stream.truncate(whole)
                os.fsync(stream.fileno())


def append(folder: Path, lines: Sequence[tuple[str, str]]) -> None:
    """Append lines, each with the name of its file; they are on the disk once this returns.

    Raises:
        OSError: a file cannot be written; a part of the lines may be in it.
    """
    make_folder(folder)
    names = dict.fromkeys(name for name, _ in lines)
    for name in names:
        data = "".join(f"{line}\n" for file, line in lines if file == name)
        is_new = not (folder / name).exists()
        with open(folder / name, "ab", opener=partial(os.open, mode=0o600)) as stream:
            stream.write(data.encode("ascii"))
            stream.flush()
            os.fsync(stream.fileno())
        if is_new:
            sync_folder(folder)
