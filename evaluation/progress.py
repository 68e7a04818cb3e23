"""Progress on stderr while something takes its time; stdout stays for the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from evaluation.bootstrap import OnStep

Item = TypeVar("Item")


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def each(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items one by one, with a bar that says `what` is being done."""
    with _bar() as bar:
        yield from bar.track(items, description=what)


@contextmanager
def counting(what: str) -> Iterator[OnStep]:
    """A function to be called with (done, all) after each step, drawn as a bar."""
    with _bar() as bar:
        task = bar.add_task(what, total=None)

        def step(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        yield step
