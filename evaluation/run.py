"""The commands of ``overread-eval``: from options to JSON or tables, and to an exit status.

A command is a function that measures and returns its figures. `command` adds what all share:
``--json``, the machine and the seed in the result, and how people see it. The result goes to
stdout; remarks and progress go to stderr.

A result is what a command prints as JSON: figures by name, rows as lists of mappings, a figure with
an interval as ``value``, ``low`` and ``high``. A `Table` names the rows and how each column is
written, a `Bar` holds one figure to what is required of it. Both are made from the result and serve
the terminal and the pages, so a page can be written from a result that is years old.
"""

import inspect
import json
import logging
import platform
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, NoReturn, TypeVar

import numpy as np
import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cloud.settings import CloudError
from edge.errors import EdgeError
from evaluation.errors import EvaluationError
from evaluation.markdown import Rows, number, percent, percents
from imaging.errors import StudyError
from imaging.volume import FloatArray
from models.runtime import hardware
from models.runtime.errors import ModelError
from process.command_line import how_to_install
from process.text import Printable, printable

Model = Annotated[str | None, typer.Option(help="Screening model; the edge's default if omitted.")]
CloudModel = Annotated[
    str | None, typer.Option(help="Second reader; the cloud's default if omitted.")
]
Deadline = Annotated[float | None, typer.Option(metavar="SECONDS", help="Budget of each study.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all that is random.")]
_Json = Annotated[bool, typer.Option("--json", help="Output as JSON.")]

FILE_WIDTH = 200
"""Letters in a line of a result that goes to a file or a pipe."""

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
    result without that key has no such rows.
    """

    name: str
    columns: Columns
    rows: str | Callable[[Result], Iterable[Mapping[str, Any]]] = ""
    title: str = ""

    def of(self, result: Result) -> Rows:
        """Return the heads and cells.

        Raises:
            KeyError: a row lacks the figure of a column.
        """
        columns = self.columns
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


Shown = Table | str | Callable[[Result], Iterable[Rows | str]]
"""A part of the output: a table, a text into which figures are put, or a function that makes it."""

OnStep = Callable[[int, int], None]
"""Called with (done, all) after each step."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Command:
    """A command: the function that measures, and how its result is shown and what it must reach.

    A ``strict`` one ends with exit status 1 where a bar is not met.
    """

    measure: Callable[..., dict[str, Any]]
    shown: tuple[Shown, ...]
    bars: Callable[[Result], Iterable[Bar]]
    strict: bool = False

    @property
    def name(self) -> str:
        """Return the name that is typed."""
        return self.measure.__name__.replace("_", "-")

    def table(self, name: str) -> Table:
        """Return the table of that name."""
        return next(one for one in self.shown if isinstance(one, Table) and one.name == name)

    def parts(self, result: Result) -> Iterator[Rows | str]:
        """Yield the tables that have a row, and the remarks on a result, the bars last."""
        for part in self.shown:
            if isinstance(part, Table):
                if (table := part.of(result)).cells:
                    yield table
            elif isinstance(part, str):
                yield part.format_map(result)
            else:
                yield from part(result)
        if bars := list(self.bars(result)):
            yield BARS.of({"bars": bars})

    def typed(self) -> Callable[..., None]:
        """Return the function with its options for typer."""

        def run(as_json: bool = False, **options: Any) -> None:
            figures = self.measure(**options)
            given = {"seed": options["seed"]} if "seed" in options else {}
            result = {**this_machine(), **given, **figures}
            if as_json:
                bars = [one.as_dict() for one in self.bars(result)]
                typer.echo(json.dumps(result | {"bars": bars}, indent=2, allow_nan=False))
            else:
                # a file has no width: figures would be cut off at 80 letters
                width = None if sys.stdout.isatty() else FILE_WIDTH
                Console(width=width).print(Printable(*self.parts(result)))
            if self.strict and not all(one.met for one in self.bars(result)):
                raise typer.Exit(1)

        signature = inspect.signature(self.measure)
        flag = inspect.Parameter(
            "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Json
        )
        run.__name__, run.__doc__ = self.measure.__name__, self.measure.__doc__
        run.__annotations__ = {**self.measure.__annotations__, "as_json": _Json, "return": None}
        run.__signature__ = signature.replace(  # type: ignore[attr-defined] # functions have one
            parameters=[*signature.parameters.values(), flag]
        )
        return run


def command(
    *shown: Shown, bars: Callable[[Result], Iterable[Bar]] = lambda _: (), strict: bool = False
) -> Callable[[Callable[..., dict[str, Any]]], Command]:
    """Make a command of a function whose name is that of the command; see `Command`."""
    return lambda measure: Command(measure, shown, bars, strict)


def this_machine() -> dict[str, Any]:
    """Return the CPU, the cores that this process may use, and the operating system."""
    return {"cpu": hardware.cpu_name(), "cores": hardware.cores(), "system": platform.platform()}


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def each(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, with a progress bar; ``total`` is the number of those of an iterator."""
    with _bar() as bar:
        yield from bar.track(items, total, description=what)


@contextmanager
def counting(what: str) -> Iterator[OnStep]:
    """Yield a function to be called with (done, all) after each step, drawn as a bar."""
    with _bar() as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def remark(line: object) -> None:
    """Print a line for people, beside the result."""
    typer.echo(printable(line), err=True)


def register(app: typer.Typer, commands: Sequence[Command]) -> None:
    """Add the commands to the program, under their names."""
    for one in commands:
        app.command(one.name)(one.typed())


def run_program(app: typer.Typer) -> None:
    """Run the program; an error ends it with one line on standard error and exit status 1."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    try:
        app()
    except (EvaluationError, StudyError, EdgeError, CloudError, ModelError, OSError) as error:
        _end(f"{type(error).__name__}: {error}", error)
    except ModuleNotFoundError as error:
        if (line := how_to_install(error)) is None:
            raise
        _end(line, error)


def _end(line: str, cause: Exception) -> NoReturn:
    # A loop that was left by the error still holds its progress bar: close it before the line.
    traceback.clear_frames(cause.__traceback__)
    remark(line)
    raise SystemExit(1) from cause
