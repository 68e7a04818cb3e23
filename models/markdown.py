"""Markdown for the pages that commands write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with these column heads, a line for each row."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def commands(found: Mapping[str, Any], *names: str) -> str:
    """The commands that measured those results, a code block; results that are missing are not."""
    lines = [f"    {found[name]['command']}\n" for name in names if name in found]
    return "\n" + "".join(lines) if lines else ""


def interval(point: Mapping[str, float | None], digits: int = 3) -> str:
    """``value (low-high)``; what is unknown is a dash."""
    values = [point[key] for key in ("value", "low", "high")]
    told = ["-" if v is None else f"{v:.{digits}f}" for v in values]
    return f"{told[0]} ({told[1]}-{told[2]})"


def percents(point: Mapping[str, float | None]) -> str:
    """The same in per cent."""
    scaled = {key: None if v is None else 100 * v for key, v in point.items() if key in _KEYS}
    value, *ends = ("-" if scaled[key] is None else f"{scaled[key]:.0f}" for key in _KEYS)
    exact = scaled["value"]
    return f"{value if exact is None else f'{exact:.1f}'} ({'-'.join(ends)})"


_KEYS = ("value", "low", "high")
