"""How figures are shown: one declaration of a table serves the terminal and the pages.

A result is what a command prints as JSON: figures by name, rows as lists of mappings, a figure with
an interval as ``value``, ``low`` and ``high``. A `Table` names the rows and how each column is
written, a `Bar` holds one figure to what is required of it. Both are made from the result, so a
page can be written from a result that is years old.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from imaging.volume import FloatArray
from models.markdown import Rows, number, percent, percents

Result = Mapping[str, Any]
"""The figures of one run, as its JSON has them."""

Columns = Mapping[str, str | tuple[str, str]]
"""By key in the row: the head of the column, and the form of its values; ``{}`` if omitted.

A key may lead further down: ``median.value``, ``sensitivity.3``. For forms see `text`.
"""

SHARE, POINTS = "%", "100"
"""Forms of a share: in per cent, and as a number of per cent for a head that says so."""


def text(value: Any, form: str = "{}") -> str:
    """Return a value as people read it: a dash for None, yes or no for a truth value.

    Args:
        value: a number or a text; or a mapping of ``value``, ``low`` and ``high``.
        form: `SHARE`, `POINTS`, or a format such as ``{:.1f} ms``, used for each of the three.
    """
    if isinstance(value, Mapping):
        if form in (SHARE, POINTS):
            return percents(value) + (" %" if form == SHARE else "")
        middle, low, high = (text(value[key], form) for key in ("value", "low", "high"))
        return f"{middle} ({low}-{high})"
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if form == SHARE:
        return percent(value)
    return number(100 * value, 1) if form == POINTS else form.format(value)


@dataclass(frozen=True)
class Table:
    """A table of a result: its rows and columns, and a title into which figures are put.

    ``rows`` is the key of a list in the result, by default the ``name``, or makes rows of it. A
    result without that key has no such rows. ``columns`` may be made of the result too.
    """

    name: str
    columns: Columns | Callable[[Result], Columns]
    rows: str | Callable[[Result], Iterable[Mapping[str, Any]]] = ""
    title: str = ""

    def of(self, result: Result) -> Rows:
        """Return the heads and cells.

        Raises:
            KeyError: a row lacks the figure of a column.
        """
        columns = self.columns(result) if callable(self.columns) else self.columns
        key = self.rows or self.name
        rows = key(result) if callable(key) else result.get(key, ())
        pairs = [(head, "{}") if isinstance(head, str) else head for head in columns.values()]
        cells = [
            [text(_at(row, key), form) for key, (_, form) in zip(columns, pairs, strict=True)]
            for row in rows
        ]
        title = self.title.format_map(result) if cells else ""
        return Rows([head for head, _ in pairs], cells, title or None)


def _at(row: Any, key: str) -> Any:
    """Follow a dotted key down mappings and lists; what is below None is None."""
    for part in key.split("."):
        if row is None:
            return None
        row = row[part] if isinstance(row, Mapping) else row[int(part)]
    return row


@dataclass(frozen=True)
class Bar:
    """One figure, and what is required of it: at most ``bar``, or at least that if ``least``.

    ``form`` is that of both, see `text`. ``shown`` is what was measured in other words, such as
    ``0 of 610``. A ``value`` of None was not measured, and does not meet its bar.
    """

    what: str
    value: float | None
    bar: float
    form: str = "{:g}"
    least: bool = False
    shown: str = ""

    @property
    def met(self) -> bool:
        """Return whether the figure is as required."""
        if self.value is None:
            return False
        return bool(self.value >= self.bar if self.least else self.value <= self.bar)

    @property
    def required(self) -> str:
        """Return the bar in words; of at most 0 the number alone."""
        bar = text(self.bar, self.form)
        return (
            bar if not (self.bar or self.least) else f"at {'least' if self.least else 'most'} {bar}"
        )

    @property
    def measured(self) -> str:
        """Return the figure in words."""
        return self.shown or text(self.value, self.form)

    def as_dict(self) -> dict[str, Any]:
        """Return the bar for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "form"} | {
            "met": self.met
        }


BARS = Table(
    "bars",
    {"met": "met", "what": "what", "required": "required", "measured": "measured"},
    lambda result: [
        {"what": one.what, "required": one.required, "measured": one.measured, "met": one.met}
        for one in result["bars"]
    ],
)
"""The table of bars; its result has them under ``bars``."""


def percentiles_ms(times_s: Sequence[float] | FloatArray) -> dict[str, float]:
    """Return percentiles of times in seconds, by key (``p50_ms``, ...) in milliseconds."""
    return {f"p{q}_ms": 1000 * float(np.percentile(times_s, q)) for q in (50, 95, 99)}
