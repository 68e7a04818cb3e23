"""The files of the audit trail: one for each month and `MAX_FILE_BYTES`, the chain going on.

A file is named for the sequence of its first record, so that names sort as records do whatever a
clock does. Files only grow. A last line that a power cut has torn is removed before the next line
is written: its record is still in the database.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from edge.access import make_folder
from edge.atomic_files import sync_folder
from edge.trail.records import ORIGIN, InvalidRecord, TrailRecord, digest

MAX_FILE_BYTES = 5_000_000
"""Beyond this size the next record begins a file: some 10,000 records, which take 0.2 s to read."""

log = structlog.get_logger()


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


def records_after(folder: Path, sequence: int) -> Iterator[TrailRecord]:
    """Yield the records beyond this sequence; lines that are no record are left out.

    Raises:
        OSError: a file cannot be read.
    """
    files = files_in(folder)
    first = [int(file.name.split("-")[1]) for file in files]
    for number, file in enumerate(files):
        if number + 1 < len(files) and first[number + 1] <= sequence + 1:
            continue
        for line in lines_of(file):
            if line.torn:
                continue
            try:
                record = TrailRecord.parse(line.text)
            except InvalidRecord:
                continue
            if record.sequence > sequence:
                yield record


def end_of(folder: Path) -> End:
    """Return where the files of a folder end; a torn line does not count.

    Raises:
        OSError: a file cannot be read.
    """
    for file in reversed(files_in(folder)):
        found = None
        for line in lines_of(file):
            if not line.torn:
                try:
                    found = TrailRecord.parse(line.text)
                except InvalidRecord:
                    continue  # `verify` names it
        if found is not None:
            return End(found.sequence, digest(found.line), file.name, file.stat().st_size)
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
