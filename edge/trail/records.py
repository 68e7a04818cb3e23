"""The records of the audit trail, and how they are chained.

A record is one line of canonical JSON: keys in order, no spaces, ASCII. It holds the SHA-256 of the
line before it. So nobody can change, remove or insert a record without changing all records after
it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

ORIGIN = "0" * 64
"""What the first record of a trail holds as the hash of the record before it."""

_KEYS = {"sequence", "time", "event", "fields", "previous"}


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
        values = {
            "sequence": self.sequence,
            "time": self.time,
            "event": self.event,
            "fields": self.fields,
            "previous": self.previous,
        }
        return canonical(values)

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
        if not isinstance(values, dict) or values.keys() != _KEYS:
            raise InvalidRecord(f"it has other keys than {', '.join(sorted(_KEYS))}")
        texts = (values["time"], values["event"], values["previous"])
        if not (
            type(values["sequence"]) is int
            and isinstance(values["fields"], dict)
            and all(isinstance(text, str) for text in texts)
        ):
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
