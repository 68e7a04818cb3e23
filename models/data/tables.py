"""Tables of training, calibration and evaluation: a CSV read as named columns, and checked.

An error names the file and the line. A value that was misspelt would else be a nodule the less.
"""

import csv
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    Names of columns are in lower case, and given in any: a spreadsheet may change them. A method
    raises `BadTable` for the first value that is not what it returns.
    """

    path: Path
    header: Sequence[str]
    rows: list[dict[str, str]]
    lines: list[int]

    def text(self, column: str) -> list[str]:
        """Return a column as text ``(n,)``, none empty."""
        values = [row[column.lower()].strip() for row in self.rows]
        self._check(values, bool, lambda _: f"column {column!r} is empty")
        return values

    def one_of(self, column: str, allowed: Collection[str]) -> list[str]:
        """Return a column of ``allowed`` words as lower-case text ``(n,)``."""
        values = [row[column.lower()].strip().lower() for row in self.rows]
        expected = ", ".join(one or "nothing" for one in allowed)
        self._check(
            values,
            lambda value: value in allowed,
            lambda value: f"{column} {value!r}, expected one of {expected}",
        )
        return values

    def numbers(self, column: str, *, blank: float | None = None) -> FloatArray:
        """Return finite numbers, float64 ``(n,)``; an empty value becomes ``blank``, if given."""
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
        """Return whole numbers from 0 to a million ``(n,)``."""
        values = self.numbers(column)
        self._check(
            values,
            lambda value: 0 <= value <= 1e6 and value == np.rint(value),
            lambda value: f"{column} = {value:g}, expected 0, 1, 2 ...",
        )
        return values.astype(np.int64)

    def diameters(self, column: str = "diameter_mm") -> FloatArray:
        """Return diameters in mm ``(n,)``; -1 where one is not known: empty, or -1."""
        return self.within(column, *SIZES_MM, blank=UNKNOWN_MM)

    def within(
        self, column: str, least: float, most: float, *, blank: float | None = None
    ) -> FloatArray:
        """Return numbers from ``least`` to ``most`` ``(n,)``, or ``blank``, also for empty ones."""
        values = self.numbers(column, blank=blank)
        known = "; -1 if it is not known" if blank == UNKNOWN_MM else ""
        self._check(
            values,
            lambda value: least <= value <= most or value == blank or np.isnan(value),
            lambda value: f"{column} = {value:g}, expected {least:g} to {most:g}{known}",
        )
        return values

    def _check(
        self, values: Iterable[Any], fits: Callable[[Any], bool], reason: Callable[[Any], str]
    ) -> None:
        for value, line in zip(values, self.lines, strict=True):
            if not fits(value):
                raise BadTable(self.path, reason(value), line)


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
