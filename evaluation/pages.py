"""Renders the pages `docs/models.md` and `docs/budget.md` from their templates and `docs/results`.

The prose stands in ``NAME.md.j2`` beside the page ``NAME.md``. A template has each result under the
name of its file, and adds no figure of its own.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation.accuracy.subgroups import share
from models import markdown
from models.distillation.compare import distil_tables
from models.pruning.compare import prune_table
from models.runtime.artifacts import every
from models.training.learning_curve import learning_table

WIDTH = 100
_AS_IT_IS = ("#", "|", "    ", "```", "![")
"""How headings, tables, code and pictures begin; their lines are not wrapped."""

_fill = partial(textwrap.fill, break_long_words=False, break_on_hyphens=False)


def write_pages(docs: Path) -> list[Path]:
    """Renders every template of the folder ``docs``; returns the pages that it wrote."""
    pages = []
    for template in sorted(docs.glob("*.md.j2")):
        page = template.with_suffix("")
        page.write_text(render(template, docs / "results"))
        pages.append(page)
    return pages


def render(template: Path, results: Path) -> str:
    """The page in Markdown, prose wrapped at `WIDTH`; ``results`` has the JSON files.

    Raises:
        jinja2.UndefinedError: a result lacks a figure that the template states.
    """
    machines = [path for path in sorted(results.glob("machines/*")) if path.is_dir()]
    found = read_results(results)
    values = {
        **found,
        "results": found,
        "machines": {path.name: read_results(path) for path in machines},
        "artifacts": list(every().values()),
        "licences": sorted({f"{one.licence}. {one.attribution}" for one in every().values()}),
    }
    text = environment(template.parent).get_template(template.name).render(values)
    return "\n\n".join(_wrapped(block) for block in re.split(r"\n{2,}", text.strip("\n"))) + "\n"


def read_results(folder: Path) -> dict[str, Any]:
    """The JSON files of one folder by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


@cache
def environment(templates: Path) -> Environment:
    """What templates may use: the number formats, and the tables that commands print too."""
    made = Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown, not HTML
    )
    made.filters.update(
        number=markdown.number, percent=markdown.percent, percents=markdown.percents,
        interval=markdown.interval, points=markdown.points, share=share, command=command,
        prune_table=prune_table, distil_tables=distil_tables, learning_table=learning_table,
    )  # fmt: skip
    made.globals.update(lost=_lost, worst_layers=_worst_layers)
    return made


def command(result: Mapping[str, Any]) -> str:
    """The command that measured a result, as a block of code of several lines where it is long."""
    filled = _fill(
        result["command"], WIDTH - 2, initial_indent="    ", subsequent_indent="        "
    )
    return filled.replace("\n", " \\\n")


def _lost(whole: Mapping[str, Any], small: Mapping[str, Any]) -> list[float]:
    """Points of sensitivity that ``small`` lost against ``whole`` at each rate."""
    pairs = zip(whole["sensitivity"], small["sensitivity"], strict=True)
    return [100 * (a["value"] - b["value"]) for a, b in pairs]


def _worst_layers(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The three layers that lose most from INT8 to INT4."""
    return sorted(result["layers"], key=lambda row: float(row["int8"] - row["int4"]))[:3]


def _wrapped(block: str) -> str:
    """One paragraph or list at `WIDTH`."""
    if block.startswith(_AS_IT_IS):
        return block
    items = re.split(r"\n(?=- )", block)
    indents = ["  " if item.startswith("- ") else "" for item in items]
    return "\n".join(
        _fill(" ".join(item.split()), WIDTH, subsequent_indent=indent)
        for item, indent in zip(items, indents, strict=True)
    )
