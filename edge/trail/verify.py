"""Check the chain of an audit trail, and name the first record that is broken.

The database says where the trail ends. Without it, such as for a copy elsewhere, records that were
cut from the end cannot be missed.
"""

import itertools
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edge.audit import Event
from edge.errors import EdgeError
from edge.trail.records import ORIGIN, InvalidRecord, Line, TrailRecord, digest, files_in, lines_of


class NoTrail(EdgeError):
    """The folder has no audit trail, or its database cannot be read."""


@dataclass(frozen=True)
class Broken:
    """The first record that is broken: its file, its line counted from 1, and what is wrong."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class Verified:
    """The result of a check.

    Attributes:
        records: that are sound, those in the database that are not in the files yet included.
        sequence, hash: of the last sound record.
        waiting: sound records that are only in the database.
        end_checked: whether the database confirmed that nothing was cut from the end.
        broken: None if the trail is sound.
    """

    files: int
    records: int
    sequence: int
    hash: str
    waiting: int
    end_checked: bool
    broken: Broken | None

    @property
    def text(self) -> str:
        """The result in a sentence."""
        sound = f"{self.records} records in {self.files} files are sound"
        if self.broken is not None:
            one = self.broken
            return f"BROKEN at {one.file}, line {one.line}: {one.reason}; before it, {sound}"
        end = "" if self.end_checked else ", but nobody knows whether more followed"
        return f"{sound}{end}; the last is {self.sequence}, with hash {self.hash}"


@dataclass(frozen=True)
class _Expected:
    """What the database knows: the last record, and those that may not be in the files yet."""

    sequence: int
    hash: str
    lines: tuple[tuple[int, str], ...]


class _Chain:
    """The chain so far."""

    def __init__(self) -> None:
        self.sequence, self.hash, self.records, self.waiting = 0, ORIGIN, 0, 0
        self.at_expected = ORIGIN

    def add(self, text: str, expected: int) -> str:
        """Add the next record; return what is wrong with it, empty if nothing is."""
        try:
            record = TrailRecord.parse(text)
        except InvalidRecord as error:
            return str(error)
        if record.sequence != self.sequence + 1:
            found = f"record {record.sequence} follows record {self.sequence}"
            if record.sequence > self.sequence:
                return f"{found}: those between them are missing"
            return f"{found}: it is not in its place"
        if record.previous != self.hash:
            return f"record {record.sequence} does not hold the hash of the line before it"
        self.sequence, self.hash, self.records = record.sequence, digest(text), self.records + 1
        if self.sequence == expected:
            self.at_expected = self.hash
        return ""


def verify(folder: Path, database: Path | None = None) -> Verified:
    """Check all files of a trail, and with its database also where it ends.

    It may run beside the agent.

    Raises:
        NoTrail: there is nothing to check, or the database cannot be read.
        OSError: a file cannot be read.
    """
    # the database first: the files may grow meanwhile, and may then be longer than it says
    expected = None if database is None else _read(database)
    files = files_in(folder)
    if not files and (expected is None or not expected.sequence):
        raise NoTrail(f"{folder} has no file of an audit trail")
    chain, last, broken = _Chain(), Line(folder / "no file", 0, ""), None
    for last in itertools.chain.from_iterable(map(lines_of, files)):
        broken = _check(chain, last, expected)
        if broken:
            break
    if expected is not None and not broken:
        broken = _check_end(chain, last, expected)
    return Verified(
        len(files),
        chain.records,
        chain.sequence,
        chain.hash,
        chain.waiting,
        expected is not None,
        broken,
    )


def _check(chain: _Chain, line: Line, expected: _Expected | None) -> Broken | None:
    if line.torn and expected is not None:
        return None  # its record is in the database, or `_check_end` misses it
    reason = "the line is torn: it has no end" if line.torn else ""
    reason = reason or chain.add(line.text, expected.sequence if expected else 0)
    if not reason and line.number == 1 and TrailRecord.parse(line.text).event != Event.FILE:
        reason = "the file does not begin with the record of a file"
    return Broken(line.file.name, line.number, reason) if reason else None


def _check_end(chain: _Chain, last: Line, expected: _Expected) -> Broken | None:
    """Check the records that are only in the database, and that the last one is the expected."""
    for sequence, text in expected.lines:
        if sequence > chain.sequence:
            if reason := chain.add(text, expected.sequence):
                return Broken(last.file.name, last.number + 1, f"in the database: {reason}")
            chain.waiting += 1
    if chain.sequence < expected.sequence:
        first, number = chain.sequence + 1, last.number + (not last.torn)
        reason = f"records {first} to {expected.sequence} are missing at the end"
        return Broken(last.file.name, number, reason)
    if chain.at_expected != expected.hash:
        reason = f"record {expected.sequence} is not the one that the database expects"
        return Broken(last.file.name, last.number, reason)
    return None


def _read(database: Path) -> _Expected:
    try:
        uri = f"{database.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as opened:
            opened.execute("BEGIN")
            head = opened.execute("SELECT sequence, hash FROM trail_head").fetchone()
            rows = opened.execute(
                "SELECT sequence, line FROM trail_records ORDER BY sequence"
            ).fetchall()
    except sqlite3.Error as error:
        raise NoTrail(f"{database}: {error}") from error
    sequence, last = head or (0, ORIGIN)
    return _Expected(sequence, last, tuple(rows))
