"""Calibration as tables: for people on the screen, and for the page in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from models.markdown import interval, table

HEADS = ["reader", "split", "ECE before", "ECE after", "ECE before, as found",
         "ECE after, as found"]  # fmt: skip
METHOD_HEADS = ["reader", "method", "split", "ECE", "log loss", "Brier"]


def tables(result: Mapping[str, Any]) -> list[RenderableType]:
    """Both tables and what must be said of them."""
    first, second = Table(*HEADS, title="Calibration"), Table(*METHOD_HEADS, title="Methods")
    for row in _rows(result):
        first.add_row(*row)
    for row in _method_rows(result):
        second.add_row(*row)
    return [first, second, result["prior"], _methods_said(result)]


def calibration_markdown(result: Mapping[str, Any], picture: str) -> str:
    """The section of the page; ``picture`` is the path of the diagram as the page has it."""
    taken = "; ".join(
        f"{name}: {of['nodules']} nodules among {of['candidates']} candidates of {of['groups']}"
        " patients and scans"
        for name, of in result["splits"].items()
    )
    return "\n\n".join(
        [
            "## Calibration",
            f"{taken}. {result['prior']} ECE: {_bins(result)} bins of equal mass; intervals by"
            " bootstrap over patients and scans.",
            table(HEADS, _rows(result)).rstrip(),
            f"![Reliability of edge, cloud and both, before and after]({picture})",
            _methods_said(result),
            table(METHOD_HEADS, _method_rows(result)).rstrip(),
            f"    {result['command']}",
        ]
    ) + "\n"  # fmt: skip


def _methods_said(result: Mapping[str, Any]) -> str:
    split = result["fitted_on"]
    return (
        f"Methods at prior 0.5: on {split} cross-validated over patients, on the other splits"
        f" fitted on all of {split}. As shipped, {split} is judged on what it was fitted on. For"
        " merged a method is put on top of the shipped merger."
    )


def _bins(result: Mapping[str, Any]) -> int:
    of = next(iter(result["splits"].values()))
    return len(of["readers"]["edge"]["after"]["bins"]["score"])


def _rows(result: Mapping[str, Any]) -> list[list[str]]:
    keys = ("before", "after", "before_as_found", "after_as_found")
    return [
        [reader, split, *(interval(found[key]["ece"]) for key in keys)]
        for split, of in result["splits"].items()
        for reader, found in of["readers"].items()
    ]


def _method_rows(result: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for reader, methods in result["methods"].items():
        shipped = {split: of["readers"][reader]["after"] for split, of in result["splits"].items()}
        for method, by_split in {"as shipped": shipped, **methods}.items():
            rows += [
                [reader, method, split, interval(one["ece"]), f"{one['log_loss']:.3f}",
                 f"{one['brier']:.3f}"]
                for split, one in by_split.items()
            ]  # fmt: skip
    return rows
