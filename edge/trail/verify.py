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
class _Known:
    """What the database knows: the last record, and those that may not be in the files yet."""

    sequence: int
    hash: str
    lines: tuple[tuple[int, str], ...]


class _Chain:
    """The chain so far; ``known`` is None without a database."""

    def __init__(self, known: _Known | None) -> None:
        self.sequence, self.hash, self.records, self.waiting = 0, ORIGIN, 0, 0
        self._known, self._hash_at_known = known, ORIGIN

    def check_line(self, line: Line) -> str:
        """Add the next line of the files; return what is wrong with it, empty if nothing is."""
        if line.torn:
            # its record is in the database, or `check_end` misses it
            return "" if self._known else "the line is torn: it has no end"
        if reason := self._add(line.text):
            return reason
        begins = line.number > 1 or TrailRecord.parse(line.text).event == Event.FILE
        return "" if begins else "the file does not begin with the record of a file"

    def check_end(self, known: _Known, last: Line) -> Broken | None:
        """Add the records that are only in the database; the last one must be the expected."""
        for sequence, text in known.lines:
            if sequence > self.sequence:
                if reason := self._add(text):
                    return Broken(last.file.name, last.number + 1, f"in the database: {reason}")
                self.waiting += 1
        if self.sequence < known.sequence:
            reason = f"records {self.sequence + 1} to {known.sequence} are missing at the end"
            return Broken(last.file.name, last.number + (not last.torn), reason)
        if self._hash_at_known != known.hash:
            reason = f"record {known.sequence} is not the one that the database expects"
            return Broken(last.file.name, last.number, reason)
        return None

    def _add(self, text: str) -> str:
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
        if self._known and self.sequence == self._known.sequence:
            self._hash_at_known = self.hash
        return ""


def verify(folder: Path, database: Path | None = None) -> Verified:
    """Check all files of a trail, and with its database also where it ends.

    It may run beside the agent.

    Raises:
        NoTrail: there is nothing to check, or the database cannot be read.
        OSError: a file cannot be read.
    """
    # the database first: the files may grow meanwhile, and may then be longer than it says
    known = None if database is None else _read(database)
    files = files_in(folder)
    if not files and (known is None or not known.sequence):
        raise NoTrail(f"{folder} has no file of an audit trail")
    chain, last, broken = _Chain(known), Line(folder / "no file", 0, ""), None
    for last in itertools.chain.from_iterable(map(lines_of, files)):
        if reason := chain.check_line(last):
            broken = Broken(last.file.name, last.number, reason)
            break
    if known is not None and not broken:
        broken = chain.check_end(known, last)
    return Verified(
        len(files),
        chain.records,
        chain.sequence,
        chain.hash,
        chain.waiting,
        known is not None,
        broken,
    )


def _read(database: Path) -> _Known:
    try:
        uri = f"{database.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as opened:
            opened.execute("BEGIN")
            head = opened.execute("SELECT sequence, hash FROM trail_head").fetchone()
            rows = opened.execute("SELECT sequence, line FROM trail_records ORDER BY sequence")
            sequence, last = head or (0, ORIGIN)
            return _Known(sequence, last, tuple(rows))
    except sqlite3.Error as error:
        raise NoTrail(f"{database}: {error}") from error
