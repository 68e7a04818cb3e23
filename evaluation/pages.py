"""Render README and the pages below `docs` that have a template, such as models and budget.

The prose is in ``NAME.md.j2`` beside the page ``NAME.md``. A template has each result of
`docs/results` under the name of its file, and adds no figure of its own. It has the commands under
``programs``, as they describe themselves.
"""

import importlib
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import Any

import typer
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cloud.__main__ import app as cloud
from edge.cli.main import app as edge
from evaluation.__main__ import MEASURED
from evaluation.__main__ import app as evaluation
from evaluation.run import Command
from models import markdown
from models.__main__ import app as models
from models.runtime.artifacts import every

PROGRAMS = {
    "overread-edge": edge,
    "overread-cloud": cloud,
    "overread-models": models,
    "overread-eval": evaluation,
}

TABLES = {
    "prune_table": "models.pruning.compare",
    "distil_tables": "models.distillation.compare",
    "curve_table": "models.training.curve",
}
"""Tables that commands print too, with their modules, which need torch."""

WIDTH = 100
_AS_IT_IS = ("#", "|", ">", "    ", "```", "![")
"""Starts of headings, tables, quotes, code and pictures; their lines are not wrapped."""

_BLOCK = re.compile(r"(?ms)^```.*?^```$|(?:^[^\n]+\n?)+")
"""Code between fences, with its empty lines, or lines that stand together."""

_fill = partial(textwrap.fill, break_long_words=False, break_on_hyphens=False)


def write_pages(docs: Path) -> list[Path]:
    """Render every template of the folder ``docs``, and README's; return the pages written."""
    pages = []
    for template in templates(docs):
        page = template.with_suffix("")
        page.write_text(render(template, docs / "results"))
        pages.append(page)
    return pages


def templates(docs: Path) -> list[Path]:
    """Return the templates of the pages, README's first."""
    return [docs.parent / "README.md.j2", *sorted(docs.glob("*.md.j2"))]


def render(template: Path, results: Path) -> str:
    """Return the page in Markdown, prose wrapped at `WIDTH`; ``results`` has the JSON files."""
    found = read_results(results)
    values = {
        **found,
        "results": found,
        "programs": programs(),
        "artifacts": list(every().values()),
        "licences": sorted({f"{one.licence}. {one.attribution}" for one in every().values()}),
    }
    text = environment(template.parent).get_template(template.name).render(values)
    return "\n\n".join(_wrapped(block.strip("\n")) for block in _BLOCK.findall(text)) + "\n"


def read_results(folder: Path) -> dict[str, Any]:
    """Read the JSON files of one folder by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


@cache
def environment(templates: Path) -> Environment:
    """Return the template environment: number formats, and tables that commands print too."""
    made = Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown, not HTML
    )
    made.filters.update(
        probed=_probed,
        number=markdown.number, percent=markdown.percent, percents=markdown.percents,
        interval=markdown.interval, points=markdown.points, command=command, table=table, bars=bars,
        **{name: partial(_table, name, module) for name, module in TABLES.items()},
    )  # fmt: skip
    made.globals.update(lost=_lost, worst_layers=_worst_layers)
    return made


def _table(name: str, module: str, result: Mapping[str, Any]) -> str:
    """Return the table that the function of that name makes; its module is imported here."""
    return str(getattr(importlib.import_module(module), name)(result))


def _probed(result: Mapping[str, Any]) -> str:
    """Return the tables that ``overread-models probe`` prints of a result."""
    parts = importlib.import_module("models.probe.table").shown(result)
    return "\n\n".join(one.markdown() for one in parts if not isinstance(one, str) and one.cells)


def measured_by(result: Mapping[str, Any]) -> Command:
    """Return the command of ``overread-eval`` that measured a result."""
    words = result["command"].split()
    name = words[words.index("overread-eval") + 1]
    return next(one for one in MEASURED if one.name == name)


def table(result: Mapping[str, Any], name: str, **only: Any) -> str:
    """Return one of the tables that the command prints, ``only`` of rows with one of these values.

    For example ``only`` is ``scans=["val", "all"]``.
    """
    made = measured_by(result).table(name)
    if only:
        key = made.rows if isinstance(made.rows, str) and made.rows else name
        rows = [row for row in result[key] if all(row[k] in kept for k, kept in only.items())]
        result = {**result, key: rows}
    return made.of(result).markdown()


def bars(result: Mapping[str, Any]) -> str:
    """Return a row for each bar of a result: what, required, measured, met, command."""
    by = measured_by(result)
    return "".join(
        f"| {one.what} | {one.required} | {one.measured} | {'yes' if one.met else 'no'} |"
        f" `overread-eval {by.name}` |\n"
        for one in by.bars(result)
    )


def command(result: Mapping[str, Any]) -> str:
    """Return the command that measured a result as a block of code, wrapped if it is long."""
    filled = _fill(
        result["command"], WIDTH - 2, initial_indent="    ", subsequent_indent="        "
    )
    return filled.replace("\n", " \\\n")


@cache
def programs() -> list[dict[str, Any]]:
    """Return the four programs with their commands, as their own help describes them."""
    groups = {name: typer.main.get_command(app) for name, app in PROGRAMS.items()}
    return [
        {
            "name": name,
            "help": _prose(group.help),
            "commands": [_described(*one) for one in leaves(group, name)],
        }
        for name, group in groups.items()
    ]


def leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the commands below a group with their full names; typer does not export a type."""
    if (below := getattr(command, "commands", None)) is None:
        yield path, command
        return
    for name, one in below.items():
        yield from leaves(one, f"{path} {name}")


def _described(path: str, command: Any) -> dict[str, Any]:
    context = command.make_context(path, [], resilient_parsing=True)
    options = [
        {"name": _name(one, record[0]), "default": _default(one), "help": _cell(one.help)}
        for one in command.params
        if (record := one.get_help_record(context)) is not None  # a hidden one
    ]
    return {
        "path": path,
        "help": _prose(command.help),
        "options": options,
        "epilog": _prose(command.epilog),
    }


def _name(option: Any, shown: str) -> str:
    """Return the name of an option or an argument, with the type of its value."""
    if option.metavar and not shown.startswith("-"):
        return str(option.metavar)
    several = re.sub(r"<list\[(\w+)\]>", lambda kind: f"<{kind[1].lower()}>...", shown)
    return _cell(several.replace(" range>", ">").replace("<str>", "<text>"))


def _default(option: Any) -> str:
    """Return the default of an option as it is typed, or an empty text."""
    value = option.default.value if isinstance(option.default, Enum) else option.default
    if option.required:
        return "required"
    if value is None or callable(value) or value is False or value == "":
        return ""
    given = value if isinstance(value, list | tuple) else [value]
    return " ".join(f"`{one:g}`" if isinstance(one, float) else f"`{one}`" for one in given)


def _prose(text: str | None) -> str:
    return (text or "").replace("``", "`").strip()


def _cell(text: str | None) -> str:
    return " ".join(_prose(text).split()).replace("|", "\\|")


def _lost(whole: Mapping[str, Any], small: Mapping[str, Any]) -> list[float]:
    """Return the points of sensitivity that ``small`` lost against ``whole`` at each rate."""
    pairs = zip(whole["sensitivity"], small["sensitivity"], strict=True)
    return [100 * (a["value"] - b["value"]) for a, b in pairs]


def _worst_layers(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the three layers that lose most from INT8 to INT4."""
    return sorted(result["layers"], key=lambda row: float(row["int8"] - row["int4"]))[:3]


def _wrapped(block: str) -> str:
    """Wrap one paragraph or list at `WIDTH`."""
    if block.startswith(_AS_IT_IS):
        return block
    items = re.split(r"\n(?=- )", block)
    indents = ["  " if item.startswith("- ") else "" for item in items]
    return "\n".join(
        _fill(" ".join(item.split()), WIDTH, subsequent_indent=indent)
        for item, indent in zip(items, indents, strict=True)
    )
