"""The commands of ``overread-eval``: from options to JSON or tables, and to an exit status.

A command is a function that measures and returns its figures. `command` adds what all share:
``--json``, the machine and the seed in the result, and how people see it. The result goes to
stdout; remarks and progress go to stderr.
"""

import inspect
import json
import logging
import platform
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cloud.errors import CloudError
from edge.errors import EdgeError
from evaluation.errors import EvaluationError
from evaluation.result import BARS, Bar, Result, Table
from imaging.errors import StudyError
from models.markdown import Rows
from models.runtime import hardware
from models.runtime.errors import ModelError
from process.extras import how_to_install
from process.text import Printable, printable

Model = Annotated[str | None, typer.Option(help="Screening model; the edge's default if omitted.")]
CloudModel = Annotated[
    str | None, typer.Option(help="Second reader; the cloud's default if omitted.")
]
Deadline = Annotated[float | None, typer.Option(metavar="SECONDS", help="Budget of each study.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all that is random.")]
_Json = Annotated[bool, typer.Option("--json", help="Output as JSON.")]

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
        for one in self.shown:
            if isinstance(one, Table):
                if (table := one.of(result)).cells:
                    yield table
            elif isinstance(one, str):
                yield one.format_map(result)
            else:
                yield from one(result)
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
                Console().print(Printable(*self.parts(result)))
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
