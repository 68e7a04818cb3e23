"""Semi-synthetic scans as tables: for people on the screen, and for the page in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from evaluation.bands_text import bands_markdown, bands_table, share
from evaluation.froc import RATES
from evaluation.tables import rate_name
from models import markdown

TITLE = "Semi-synthetic whole scans"
GROUPS = {"patients": "scans of patients", "phantoms": "phantoms", "all": "both together"}
STAGES = {"edge": "edge", "both": "edge and cloud"}


def tables(result: Mapping[str, Any]) -> list[RenderableType]:
    """Every table of one result, and what must be said of it."""
    shown: list[RenderableType] = []
    for name, group in result["groups"].items():
        title = f"{TITLE}: {GROUPS[name]}, {STAGES[result['stage']]}"
        table = Table("", *_heads(), title=title)
        for row in _rows(group):
            table.add_row(*row)
        shown += [table, bands_table(group["bands"], f"{title}, in % by band")]
    left = result["no_room"]
    remark = [f"No room was found for: {', '.join(left)}."] if left else []
    return [*shown, result["semi_synthetic"], result["false_positives"], *remark]


def scans_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The section of the page: one result for each reader, as the command gives them."""
    if not results:
        return ""
    said = results[0]
    parts = [f"## {TITLE}", said["semi_synthetic"], said["false_positives"]]
    for result in results:
        for name, group in result["groups"].items():
            scans = ", ".join(f"`{scan['scan']}`" for scan in group["scans"])
            head = f"{STAGES[result['stage']]}, {GROUPS[name]} (semi-synthetic)"
            parts.append(f"### {head[0].upper()}{head[1:]}")
            parts.append(_of(result, group, scans))
            parts.append(markdown.table(["", *_heads()], _rows(group)).rstrip())
            if name == "patients":
                parts.append("By band (semi-synthetic), in %:")
                parts.append(bands_markdown(group["bands"]).rstrip())
        parts.append(f"    {result['command']}")
    return "\n\n".join(parts) + "\n"


def _of(result: Mapping[str, Any], group: Mapping[str, Any], scans: str) -> str:
    """In words: what the figures are taken from, and the masses."""
    text = f"{group['nodules']} nodules of {group['patients']} patients ({result['split']}) in"
    text += f" {group['copies']} copies of {scans}."
    text += f" Beside the implants {group['brought_per_copy_at_2']:.2f} new marks a copy at the"
    text += " threshold of two false positives a scan."
    masses = group["masses"]
    if masses is None:
        return text
    sizes = ", ".join(
        f"{one['missed']} of {one['masses']} of {size}" for size, one in masses["by_size"].items()
    )
    return f"{text} Masses missed at that threshold: {sizes}."


def _heads() -> list[str]:
    return ["nodules (patients)", *(f"at {rate_name(rate)}" for rate in RATES), "CPM"]


def _rows(group: Mapping[str, Any]) -> list[list[str]]:
    lines = {"all nodules": group, "5 mm and more": group["from_5_mm"],
             "masses of 30 to 60 mm": group["masses"]}  # fmt: skip
    return [
        [name, f"{one['nodules']} ({one['patients']})",
         *(share(point) for point in one["sensitivity"]), f"{one['cpm']['value']:.3f}"]
        for name, one in lines.items()
        if one is not None
    ]  # fmt: skip
