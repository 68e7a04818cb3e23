"""Results as tables for people; the same figures go to machines as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

_FRACTIONS = {0.125: "1/8", 0.25: "1/4", 0.5: "1/2"}


def rate_name(rate: float) -> str:
    """A number of false positives a scan as people write it: 1/8, 1/4, 1/2, 1, 2, ..."""
    return _FRACTIONS.get(rate, f"{rate:g}")


def columns_table(
    columns: Mapping[str, tuple[str, str]], rows: Sequence[Mapping[str, Any]], title: str
) -> Table:
    """The rows' values under ``columns``: key to head and format; what is unknown is a dash."""
    table = Table(title=title, box=SIMPLE_HEAD)
    for place, (head, _) in enumerate(columns.values()):
        table.add_column(head, no_wrap=place == 0)
    for row in rows:
        cells = ((row[key], form) for key, (_, form) in columns.items())
        table.add_row(*("-" if value is None else form.format(value) for value, form in cells))
    return table


def counts_table(counts: Mapping[str, int]) -> Table:
    """Counts side by side, each under its name."""
    table = Table(*counts)
    table.add_row(*(str(count) for count in counts.values()))
    return table


def times_table(stages: Mapping[str, Mapping[str, float]], title: str = "Times") -> Table:
    """Median and 95th percentile of every stage, in milliseconds."""
    table = Table("stage", "median ms", "p95 ms", title=title)
    for name, times in stages.items():
        row = (f"{1000 * times[key]:.1f}" for key in ("median_s", "p95_s"))
        table.add_row(name, *row, style="bold" if name == "total" else "")
    return table


def passes_table(passes: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Times of one pass of each artifact on each engine, with the ratio to the first."""
    table = Table("artifact", "engine", "median ms", "p95 ms", "ratio", title=title)
    for one in passes:
        times = (f"{one[key]:.1f}" for key in ("median_ms", "p95_ms"))
        table.add_row(one["artifact"], one["engine"], *times, f"{one['ratio_to_first']:.2f}")
    return table
