"""The phases of a demonstration as they go by: a bar for the present one, a line for each past."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_WIDTH = 44


class Phases:
    """Shows phases on a console, one after the other; where it is no terminal, lines alone."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock

    @contextmanager
    def phase(self, what: str) -> Iterator[Callable[[float], None]]:
        """One phase; what it yields may be told the part done, 0..1."""
        began = self._clock()
        with self._bar() as bar:
            task = bar.add_task(what.ljust(_WIDTH), total=None)
            yield lambda part: bar.update(task, total=1.0, completed=part)
        took_s = self._clock() - began
        self._console.print(f"[green]✓[/] {what.ljust(_WIDTH)} {took_s:6.1f} s", highlight=False)

    def _bar(self) -> Progress:
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
