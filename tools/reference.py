"""Write `docs/reference.md` from the code: settings, metrics, log events and errors.

``python -m tools.reference`` writes the page. Nothing of it is written by hand: the docstring of a
class explains its settings, a help text its metric, and a docstring its error. It also writes the
tables of `docs/conformance.md` that follow a comment; its prose is written by hand.
"""

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from inspect import getdoc
from pathlib import Path
from threading import Event
from typing import Any, Literal, get_args, get_origin

from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydicom.uid import UID

from cloud.settings import CloudSettings
from cloud.telemetry import CloudTelemetry
from edge.dicom_in.incoming import SOP_CLASSES
from edge.part import Agent
from edge.run import parts_of, site_of
from edge.settings.core import EdgeSettings
from edge.telemetry import EdgeTelemetry
from imaging.dicom.pixels import TRANSFER_SYNTAXES

ROOT = Path(__file__).resolve().parents[1]
PAGE, CONFORMANCE = (ROOT / "docs" / f"{name}.md" for name in ("reference", "conformance"))
HEAD = """# Reference

All settings, metrics, log events and errors. `python -m tools.reference` makes this page from the
code. What to do with them is in [install.md](install.md), [connect.md](connect.md),
[operate.md](operate.md) and [monitor.md](monitor.md). Metrics that begin with `process` or `python`
are of both programs. A table of files of TLS is shown once."""
ROOTS = {
    "imaging": {"StudyError"},
    "edge": {"EdgeError", "StudyError"},
    "cloud": {"CloudError"},
    "protos": {"OverreadError"},
    "models/runtime": {"ModelError"},
}
"""The errors of each package from which its others are derived."""


def page() -> str:
    """Return the whole page."""
    blocks = [HEAD]
    seen = set[str]()
    blocks += settings("edge.toml", EdgeSettings, seen)
    blocks += settings("cloud.toml", CloudSettings, seen)
    blocks += ["## Metrics of the edge", metrics("edge", edge_registry())]
    blocks += ["## Metrics of the cloud", metrics("cloud", CloudTelemetry().registry)]
    blocks += ["## Log events of the edge", events("edge")]
    blocks += ["## Log events of the cloud", events("cloud")]
    blocks += ["## Log events of both", events("process"), "## Errors", errors()]
    return "\n\n".join(blocks) + "\n"


def edge_registry() -> CollectorRegistry:
    """Return the metrics of the edge, those of all its parts too; nothing is opened."""
    telemetry = EdgeTelemetry()

    def nothing(*_: object) -> Any:
        raise LookupError("the agent does not run")

    parts_of(
        Agent(
            site_of(EdgeSettings()), telemetry, Event(), nothing, nothing,
            wake=nothing, problem=nothing,
        )
    )  # fmt: skip
    return telemetry.registry


def settings(title: str, kind: type[BaseModel], seen: set[str]) -> Iterator[str]:
    """Yield heading and table of one TOML table, then those of the tables in it.

    ``seen`` are the rows that have a table already: it is not repeated.
    """
    file, _, table = title.partition(" ")
    said, rows = descriptions(kind), []
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, field in kind.model_fields.items():
        default, values = as_toml(field), expected_of(field)
        if models := list(tables_of(field.annotation)):
            path = f"{table.partition(']')[0].strip('[')}.{name}".lstrip(".")
            path = f"[[{path}]]" if isinstance(field.default, tuple) else f"[{path}]"
            inner += [(f"{file} {path}{_kind(one)}", one) for one in models]
            default, values = "", f"table `{path}`"
        rows.append((f"`{name}`", default, values, said.get(name, "")))
    if str(rows) not in seen:
        seen.add(str(rows))
        yield f"##{'#' if table else ''} {title}"
        yield _table(("setting", "default", "values", "meaning"), rows)
    for path, one in inner:
        yield from settings(path, one, seen)


def tables_of(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the class of a table, or of each kind of table in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for one in get_args(annotation):
        yield from tables_of(one)


def expected_of(field: FieldInfo) -> str:
    """Say which values a setting may have: its description, else its type and its bounds."""
    if field.description:
        return field.description
    kind = field.annotation
    choices = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) is Literal:
        return " or ".join(f'"{one}"' for one in choices)
    if get_origin(kind) is tuple and get_origin(choices[0]) is Literal:
        words = ", ".join(f'"{one}"' for one in get_args(choices[0]))
        return f"a list of some of {words}"
    names: dict[Any, str] = {
        int: "a whole number", float: "a number", bool: "true or false", Path: "a path",
    }  # fmt: skip
    words = names.get(choices[0] if choices else kind, "text")
    phrases = {"gt": "greater than", "ge": "of at least", "lt": "less than", "le": "of at most"}
    bounds = [
        f"{phrase} {value:.10g}"
        for limit in field.metadata
        for attribute, phrase in phrases.items()
        if (value := getattr(limit, attribute, None)) is not None
    ]
    return f"{words} {' and '.join(bounds)}".rstrip()


def _kind(table: type[BaseModel]) -> str:
    """Return the words for the kind of a table of which there are several."""
    kind = table.model_fields.get("kind")
    return f", kind = {get_args(kind.annotation)[0]!r}" if kind else ""


def descriptions(kind: type[BaseModel]) -> dict[str, str]:
    """Return what the sections ``Attributes`` of a class and of its bases say of each field."""
    found = {}
    for base in reversed(kind.__mro__):
        section = (getdoc(base) or "").partition("Attributes:\n")[2] if base.__doc__ else ""
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
            words = " ".join(text.split()).replace("None for ", "None: ").removesuffix(".")
            found[name] = re.sub(r"\bNone\b", "not set", words)
    return found


def as_toml(field: FieldInfo) -> str:
    """Return a default as TOML writes it."""
    if field.is_required():
        return "required"
    return "not set" if field.default is None else f"`{json.dumps(field.default, default=str)}`"


def metrics(program: str, registry: CollectorRegistry) -> str:
    """Return the table of one program's metrics, with those that it adds when it serves."""
    collectors = {n: one for one, names in registry._collector_to_names.items() for n in names}
    rows = []
    for metric in registry.collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = getattr(collectors.get(metric.name), "_labelnames", ())
        if metric.name.startswith("overread") or program == "edge":  # the others are of both
            rows.append((f"`{name}`", metric.type, _code(labels), metric.documentation))
    for node in (one for _, tree in _modules(program) for one in ast.walk(tree)):
        match node:
            case ast.Call(ast.Name("add"), [ast.Constant(str(name)), ast.Constant(str(text)), _]):
                rows.append((f"`overread_{program}_{name}`", "gauge", "", text))
    return _table(("metric", "type", "labels", "meaning"), sorted(rows))


def events(package: str) -> str:
    """Return the table of the events that one package logs, by folder or module and level."""
    found = defaultdict[tuple[str, str], set[str]](set)
    for path, tree in _modules(package):
        for node in ast.walk(tree):
            match node:
                case ast.Call(ast.Attribute(ast.Name("log" | "_log"), level), [event, *_]):
                    room = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
                    found[room, level.replace("exception", "error")] |= _texts(event, tree)
    rows = [(f"`{package}/{room}`", level, _code(sorted(e))) for (room, level), e in found.items()]
    return _table(("where", "level", "events"), sorted(rows))


def _texts(event: ast.AST, tree: ast.AST) -> set[str]:
    """Return the words of an event: its own, or those that its variable has in the module."""
    values, variable, takers = [event], getattr(event, "id", None), set[str]()
    for node in ast.walk(tree):
        match node:
            case ast.Assign([ast.Name(name)], value) if name == variable:
                values.append(value)
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name):
                takers |= {name for one in node.args.args if one.arg == variable}
            case ast.Call(ast.Attribute(_, name) | ast.Name(name), given) if name in takers:
                values += [one for one in given if " " in str(getattr(one, "value", ""))]
    inside = [one for value in values for one in ast.walk(value)]
    return {str(one.value) for one in inside if isinstance(one, ast.Constant)}


def errors() -> str:
    """Return the table of the errors of all packages."""
    rows = []
    for package, roots in ROOTS.items():
        trees, family = [tree for _, tree in _modules(package)], roots
        classes = [one for t in trees for one in ast.walk(t) if isinstance(one, ast.ClassDef)]
        for _ in range(3):  # an error of an error of an error
            family = family | {
                one.name for one in classes for base in one.bases if ast.unparse(base) in family
            }
        for error in classes:
            if error.name in family - roots:
                said = (ast.get_docstring(error) or "").partition("\n\n")[0]
                rows.append((f"`{error.name}`", package.partition("/")[0], " ".join(said.split())))
    return _table(("error", "package", "meaning"), sorted(rows))


def conformance() -> str:
    """Return the DICOM Conformance Statement, with its tables as the code says."""
    parts = CONFORMANCE.read_text(encoding="utf-8").split("\n\n")
    for what, found in (("SOP class", SOP_CLASSES), ("transfer syntax", TRANSFER_SYNTAXES)):
        rows = [(one.name, f"`{one}`") for one in sorted(map(UID, found))]
        parts[parts.index(f"<!-- {what} -->") + 1] = _table((what, "UID"), rows)
    return "\n\n".join(parts)


def _modules(package: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines).replace("``", "`")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    CONFORMANCE.write_text(conformance(), encoding="utf-8")
