"""A CSV file as named columns, with a typed error that gives the line of whatever is wrong."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.errors import BadTable
from imaging.volume import FloatArray


@dataclass(frozen=True)
class Table:
    """The rows of one CSV file; `lines` are their line numbers in it, for messages."""

    path: Path
    rows: list[dict[str, str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, column: str) -> list[str]:
        """The column as text ``(n,)``.

        Raises:
            BadTable: a value is empty.
        """
        values = [row[column].strip() for row in self.rows]
        for value, line in zip(values, self.lines, strict=True):
            if not value:
                raise BadTable(self.path, f"column {column!r} is empty", line)
        return values

    def numbers(self, column: str, *, blank: float | None = None) -> FloatArray:
        """The column as float64 ``(n,)``; an empty value becomes `blank` where one is given.

        Raises:
            BadTable: a value is not a finite number.
        """
        pairs = zip(self.rows, self.lines, strict=True)
        return np.array([self._number(row, column, line, blank) for row, line in pairs])

    def _number(self, row: dict[str, str], column: str, line: int, blank: float | None) -> float:
        text = row[column].strip()
        if not text and blank is not None:
            return blank
        try:
            value = float(text)
        except ValueError:
            raise BadTable(self.path, f"{column} = {text!r} is not a number", line) from None
        if not np.isfinite(value):
            raise BadTable(self.path, f"{column} = {text!r} is not finite", line)
        return value


def read_table(path: Path, required: tuple[str, ...]) -> Table:
    """The CSV at `path`, whose header must name every column of `required`.

    Raises:
        BadTable: no such file, not text, a column is missing, or a row is too short or too long.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restkey="", restval=None)
            header = reader.fieldnames or []
            rows, lines = _rows(path, reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadTable(path, f"cannot be read as CSV ({error})") from error
    missing = [name for name in required if name not in header]
    if missing:
        raise BadTable(path, f"lacks the columns {missing}; it has {list(header)}", 1)
    return Table(path, rows, lines)


def _rows(path: Path, reader: csv.DictReader[str]) -> tuple[list[dict[str, str]], list[int]]:
    rows, lines = [], []
    for row in reader:
        if "" in row or None in row.values():
            raise BadTable(path, "has another number of values than the header", reader.line_num)
        rows.append(row)
        lines.append(reader.line_num)
    return rows, lines
