"""Tables of training, calibration and evaluation: a CSV read as named columns, and checked.

An error names the file and the line. A value that was misspelt would else be a nodule the less.
"""

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray
from models.runtime.errors import BadTable


@dataclass(frozen=True)
class Table:
    """The rows of one CSV file; ``lines`` are their line numbers, for messages."""

    path: Path
    header: Sequence[str]
    rows: list[dict[str, str]]
    lines: list[int]

    def text(self, column: str) -> list[str]:
        """Return a column as text ``(n,)``.

        Raises:
            BadTable: a value is empty.
        """
        values = [row[column].strip() for row in self.rows]
        for value, line in zip(values, self.lines, strict=True):
            if not value:
                raise BadTable(self.path, f"column {column!r} is empty", line)
        return values

    def one_of(self, column: str, allowed: Collection[str]) -> list[str]:
        """Return a column as lower-case text ``(n,)``.

        Raises:
            BadTable: a value is not ``allowed``.
        """
        values = [row[column].strip().lower() for row in self.rows]
        for value, line in zip(values, self.lines, strict=True):
            if value not in allowed:
                expected = ", ".join(one or "nothing" for one in allowed)
                raise BadTable(self.path, f"{column} {value!r}, expected one of {expected}", line)
        return values

    def numbers(self, column: str, *, blank: float | None = None) -> FloatArray:
        """Return a column as float64 ``(n,)``; an empty value becomes ``blank``, if given.

        Raises:
            BadTable: a value is not a finite number.
        """
        values = np.empty(len(self.rows))
        for number, (row, line) in enumerate(zip(self.rows, self.lines, strict=True)):
            text = row[column].strip()
            try:
                values[number] = blank if blank is not None and not text else float(text)
            except ValueError:
                raise BadTable(self.path, f"{column} = {text!r} is not a number", line) from None
            if text and not np.isfinite(values[number]):
                raise BadTable(self.path, f"{column} = {text!r} is not finite", line)
        return values

    def whole(self, column: str) -> npt.NDArray[np.int64]:
        """Return a column of whole numbers of 0 and more ``(n,)``.

        Raises:
            BadTable: a value is none.
        """
        values = self.numbers(column)
        for value, line in zip(values, self.lines, strict=True):
            if value < 0 or value != np.rint(value):
                raise BadTable(self.path, f"{column} = {value:g}, expected 0, 1, 2 ...", line)
        return values.astype(np.int64)

    def diameters(self, column: str = "diameter_mm") -> FloatArray:
        """Return diameters in mm ``(n,)``; -1 where one is not known: empty, or -1.

        Raises:
            BadTable: another value is not above 0.
        """
        values = self.numbers(column, blank=-1.0)
        for value, line in zip(values, self.lines, strict=True):
            if not (value > 0 or value == -1):
                reason = f"{column} = {value:g}, expected above 0; -1 if the diameter is not known"
                raise BadTable(self.path, reason, line)
        return values


def read_table(path: Path, required: tuple[str, ...]) -> Table:
    """Read the CSV at ``path``, whose header must name the columns ``required``.

    Raises:
        BadTable: it is missing, not text, lacks a column, or has a row of another length.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="", restval=None)
            header, rows, lines = reader.fieldnames or [], list[dict[str, str]](), list[int]()
            for row in reader:
                if "" in row or None in row.values():
                    reason = "the row is shorter or longer than the header"
                    raise BadTable(path, reason, reader.line_num)
                rows.append(row)
                lines.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadTable(path, f"cannot be read as CSV ({error})") from error
    missing = [name for name in required if name not in header]
    if missing:
        raise BadTable(path, f"lacks the columns {missing}, has {list(header)}", 1)
    return Table(path, header, rows, lines)
