"""Tables and number formats of results, and the result of a command on stdout."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Rows:
    """A table: the heads of its columns, and the cells of each row.

    rich prints it on a terminal, `markdown` renders it for a page.
    """

    heads: Sequence[str]
    cells: Sequence[Sequence[object]]
    title: str | None = None

    def __rich__(self) -> Table:
        """Return the table for a terminal; its first column is never wrapped, no figure cut off."""
        shown = Table(title=self.title)
        for number, head in enumerate(self.heads):
            shown.add_column(head, no_wrap=number == 0, overflow="fold")
        for row in self.cells:
            shown.add_row(*map(str, row))
        return shown

    def markdown(self) -> str:
        """Return the table for a page, without its title."""
        lines = [self.heads, ["---"] * len(self.heads), *self.cells]
        return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def number(value: float | None, digits: int = 3) -> str:
    """Format a number; None is a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share in per cent; None is a dash."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def interval(point: Mapping[str, float | None], digits: int = 3) -> str:
    """Format ``value (low-high)``; None is a dash."""
    value, low, high = (number(point[key], digits) for key in ("value", "low", "high"))
    return f"{value} ({low}-{high})"


def percents(point: Mapping[str, float | None]) -> str:
    """Format ``value (low-high)`` in per cent."""
    shares = (point[key] for key in ("value", "low", "high"))
    value, low, high = (None if share is None else 100 * share for share in shares)
    return f"{number(value, 1)} ({number(low, 0)}-{number(high, 0)})"


def points(point: Mapping[str, float], key: str = "value") -> str:
    """Format points with sign and interval; ``key`` names the value."""
    return f"{point[key]:+.1f} ({point['low']:+.1f} to {point['high']:+.1f})"


def show_section(result: dict[str, Any], as_json: bool, section: str) -> None:
    """Print the result as JSON, or its section in Markdown."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        Console().print(section, markup=False, soft_wrap=True)
