"""Tables that more than one command prints; JSON has the same figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from models.markdown import Rows

_FRACTIONS = {0.125: "1/8", 0.25: "1/4", 0.5: "1/2"}


def rate_name(rate: float) -> str:
    """Return a number of false positives per scan as people write it: 1/8, 1/4, 1/2, 1, 2, ..."""
    return _FRACTIONS.get(rate, f"{rate:g}")


def columns_table(
    columns: Mapping[str, tuple[str, str]], rows: Sequence[Mapping[str, Any]], title: str
) -> Rows:
    """Return the values of ``rows`` under ``columns``: key to head and format; a dash for None."""
    cells = [
        ["-" if row[key] is None else form.format(row[key]) for key, (_, form) in columns.items()]
        for row in rows
    ]
    return Rows([head for head, _ in columns.values()], cells, title)


def times_table(stages: Mapping[str, Mapping[str, float]], title: str = "Times") -> Rows:
    """Return median and 95th percentile of every stage."""
    cells = [
        [name, *(f"{1000 * times[key]:.1f}" for key in ("median_s", "p95_s"))]
        for name, times in stages.items()
    ]
    return Rows(["stage", "median ms", "p95 ms"], cells, title)
