"""Results as tables for people; the same figures go to machines as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from evaluation.accuracy.bootstrap import Figures, Interval
from evaluation.accuracy.froc import RATES, TARGETS
from evaluation.accuracy.reports import OperatingPoint
from models.markdown import number, percents

SHOWN: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Of `RATES`, those that the tables show; the JSON has them all."""

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


def froc_table(figures: Figures, title: str) -> Table:
    """Sensitivity at the seven rates, and the CPM."""
    table = Table("false positives a scan", "sensitivity", "95 % interval", title=title)
    for rate, value in zip(RATES, figures.sensitivity, strict=True):
        table.add_row(rate_name(rate), *_percent(value))
    table.add_section()
    table.add_row("CPM (their mean)", f"{figures.cpm.value:.4f}", _span(figures.cpm, "{:.3f}"))
    return table


def cost_table(figures: Figures) -> Table:
    """False positives a scan at the sensitivities of `TARGETS`."""
    table = Table("sensitivity", "false positives a scan", "95 % interval")
    for target, value in zip(TARGETS, figures.false_positives, strict=True):
        table.add_row(f"{100 * target:g} %", _number(value.value, "{:.2f}"), _span(value, "{:.2f}"))
    return table


def counts_table(counts: Mapping[str, int]) -> Table:
    """Counts side by side, each under its name."""
    table = Table(*counts)
    table.add_row(*(str(count) for count in counts.values()))
    return table


def scans_table(scans: Sequence[Mapping[str, Any]]) -> Table:
    """Each scan with its false positives at the seven rates and the score of its lesion."""
    table = Table(title="False positives of each scan at the operating points")
    table.add_column("scan", no_wrap=True)
    for rate in RATES:
        table.add_column(rate_name(rate))
    table.add_column("lesion's score")
    table.add_column("false above it")
    for scan in scans:
        above = [x["false_positives_above"] for x in scan["lesions"]]
        table.add_row(
            scan["scan"],
            *(str(n) for n in scan["false_positives"].values()),
            _list([x["score"] for x in scan["lesions"]], "{:.3f}"),
            _list(above, "{}"),
        )
    return table


def rates_table(point: OperatingPoint) -> Table:
    """The operating point of the final reports."""
    title = f"{point.found} of {point.lesions} lesions found in {point.studies} studies"
    table = Table("final reports", "value", "95 % interval", title=title)
    if point.sensitivity is not None:
        table.add_row("sensitivity", *_percent(point.sensitivity))
    value = _number(point.false_per_scan.value, "{:.2f}")
    table.add_row("false positives a scan", value, _span(point.false_per_scan, "{:.2f}"))
    return table


def studies_table(studies: Sequence[Mapping[str, Any]]) -> Table:
    """Each study with its findings and small nodules; hits and false positives among both."""
    heads = ("study", "findings", "small", "found", "false", "second reading", "s")
    table = Table(*heads, title="Studies")
    for one in studies:
        known = one["lesions"] is not None
        table.add_row(
            one["study"],
            one["refused"] or str(one["findings"]),
            str(one["small_nodules"]),
            f"{one['found']} of {one['lesions']}" if known else "unknown",
            str(one["false_positives"]) if known else "unknown",
            one["second_reading"],
            f"{one['total_s']:.2f}",
        )
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


def kinds_table(result: Mapping[str, Any]) -> Table:
    """What the second reader says of nodules, each figure with its interval."""
    title = f"{result['nodules']} nodules of {result['patients']} patients"
    table = Table("", "value", "95 % interval", "taken from", title=title)
    textures = ", ".join(f"{n} {name}" for name, n in result["textures"].items())
    rows = {
        "malignancy_auc": ("malignancy, AUC", f"{result['suspicious']} of {result['rated']} rated"),
        "texture_recall": ("texture, mean recall", textures),
        "dice_median": ("outline, median Dice", f"{result['outlined']} nodules"),
        "diameter_error_mm": ("diameter, mean error, mm", "all"),
        "diameter_bias_mm": ("diameter, mean bias, mm", "all"),
    }
    for name, (words, source) in rows.items():
        found = [number(result[name][key]) for key in ("value", "low", "high")]
        table.add_row(words, found[0], f"{found[1]} to {found[2]}", source)
    return table


def bands_table(bands: Mapping[str, Any], title: str) -> Table:
    """One line a band: nodules, and sensitivity in % at some false positives a scan."""
    heads = (f"at {rate_name(rate)}" for rate in SHOWN)
    shown = Table("by", "band", "nodules", *heads, title=title)
    for by, band, cells in _lines(bands):
        shown.add_row(by, band, *cells)
    return shown


def share(point: Mapping[str, float | None]) -> str:
    """A share with its interval, in %; a dash where any of it is unknown."""
    unknown = any(point[key] is None for key in ("value", "low", "high"))
    return "-" if unknown else percents(point)


def _percent(value: Interval) -> tuple[str, str]:
    shown = Interval(100 * value.value, 100 * value.low, 100 * value.high)
    return _number(shown.value, "{:.1f} %"), _span(shown, "{:.1f}")


def _span(value: Interval, form: str) -> str:
    return f"{_number(value.low, form)} to {_number(value.high, form)}"


def _number(value: float, form: str) -> str:
    return "not reached" if abs(value) == float("inf") else form.format(value)


def _list(values: Sequence[float | None], form: str) -> str:
    return (
        ", ".join("not proposed" if v is None else form.format(v) for v in values) or "none known"
    )


def _lines(bands: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    places = [RATES.index(rate) for rate in SHOWN]
    for by, found in bands.items():
        for band, result in found.items():
            count = f"{result['nodules']} ({result['patients']})"
            yield by, band, [count, *(share(result["sensitivity"][i]) for i in places)]
