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

SIZES_MM = (0.1, 300.0)
"""No diameter is smaller or larger: a lung is not."""

UNKNOWN_MM = -1.0
"""A diameter that is not known."""


@dataclass(frozen=True)
class Table:
    """The rows of one CSV file; ``lines`` are their line numbers, for messages.

    Names of columns are in lower case, and given in any: a spreadsheet may change them.
    """

    path: Path
    header: Sequence[str]
    rows: list[dict[str, str]]
    lines: list[int]

    def text(self, column: str) -> list[str]:
        """Return a column as text ``(n,)``.

        Raises:
            BadTable: a value is empty.
        """
        values = [row[column.lower()].strip() for row in self.rows]
        for value, line in zip(values, self.lines, strict=True):
            if not value:
                raise BadTable(self.path, f"column {column!r} is empty", line)
        return values

    def one_of(self, column: str, allowed: Collection[str]) -> list[str]:
        """Return a column as lower-case text ``(n,)``.

        Raises:
            BadTable: a value is not ``allowed``.
        """
        values = [row[column.lower()].strip().lower() for row in self.rows]
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
            text = row[column.lower()].strip()
            try:
                values[number] = blank if blank is not None and not text else float(text)
            except ValueError:
                raise BadTable(self.path, f"{column} = {text!r} is not a number", line) from None
            if text and not np.isfinite(values[number]):
                raise BadTable(self.path, f"{column} = {text!r} is not finite", line)
        return values

    def whole(self, column: str) -> npt.NDArray[np.int64]:
        """Return a column of whole numbers from 0 to a million ``(n,)``.

        Raises:
            BadTable: a value is none.
        """
        values = self.numbers(column)
        for value, line in zip(values, self.lines, strict=True):
            if not 0 <= value <= 1e6 or value != np.rint(value):
                raise BadTable(self.path, f"{column} = {value:g}, expected 0, 1, 2 ...", line)
        return values.astype(np.int64)

    def diameters(self, column: str = "diameter_mm") -> FloatArray:
        """Return diameters in mm ``(n,)``; -1 where one is not known: empty, or -1.

        Raises:
            BadTable: another value is not one of `SIZES_MM`.
        """
        return self.within(column, *SIZES_MM, blank=UNKNOWN_MM)

    def within(
        self, column: str, least: float, most: float, *, blank: float | None = None
    ) -> FloatArray:
        """Return numbers from ``least`` to ``most`` ``(n,)``, or ``blank``, also where it is empty.

        Raises:
            BadTable: a value is none of these.
        """
        values = self.numbers(column, blank=blank)
        for value, line in zip(values, self.lines, strict=True):
            if not (least <= value <= most or value == blank or np.isnan(value)):
                known = "; -1 if it is not known" if blank == UNKNOWN_MM else ""
                reason = f"{column} = {value:g}, expected {least:g} to {most:g}{known}"
                raise BadTable(self.path, reason, line)
        return values


def read_table(path: Path, required: tuple[str, ...]) -> Table:
    """Read the CSV at ``path``, whose header must name the columns ``required``.

    A column without a name, as some programs add one, is left out.

    Raises:
        BadTable: it is missing, not text, lacks a column or names one twice, or has a row of
            another length.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            if missing := [name for name in required if name.lower() not in header]:
                raise BadTable(path, f"lacks the columns {missing}, has {header}", 1)
            if twice := {name for name in header if name and header.count(name) > 1}:
                raise BadTable(path, f"names columns twice: {sorted(twice)}", 1)
            rows, lines = list[dict[str, str]](), list[int]()
            for values in filter(None, reader):
                if len(values) != len(header):
                    reason = "the row is shorter or longer than the header"
                    raise BadTable(path, reason, reader.line_num)
                row = dict(zip(header, values, strict=True))
                row.pop("", None)
                rows.append(row)
                lines.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadTable(path, f"cannot be read as CSV ({error})") from error
    return Table(path, header, rows, lines)
