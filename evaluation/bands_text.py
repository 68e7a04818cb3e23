"""Sensitivity by band as tables: for people on the screen, and for the page in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from evaluation.froc import RATES
from evaluation.tables import rate_name
from models.markdown import percents, table

SHOWN: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Of `RATES`, those that the tables show; the JSON has them all."""


def bands_table(bands: Mapping[str, Any], title: str) -> Table:
    """One line a band: nodules, and sensitivity in % at some false positives a scan."""
    heads = (f"at {rate_name(rate)}" for rate in SHOWN)
    shown = Table("by", "band", "nodules", *heads, title=title)
    for by, band, cells in _lines(bands):
        shown.add_row(by, band, *cells)
    return shown


def bands_markdown(bands: Mapping[str, Any]) -> str:
    """The same as a table in Markdown."""
    heads = ["by", "band", "nodules (patients)", *(f"at {rate_name(rate)}" for rate in SHOWN)]
    return table(heads, [[by, band, *cells] for by, band, cells in _lines(bands)])


def share(point: Mapping[str, float | None]) -> str:
    """A share with its interval, in %; a dash where any of it is unknown."""
    unknown = any(point[key] is None for key in ("value", "low", "high"))
    return "-" if unknown else percents(point)


def _lines(bands: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    places = [RATES.index(rate) for rate in SHOWN]
    for by, found in bands.items():
        for band, result in found.items():
            count = f"{result['nodules']} ({result['patients']})"
            yield by, band, [count, *(share(result["sensitivity"][i]) for i in places)]
