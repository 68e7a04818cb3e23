"""The time of one study: its deadline, and a ledger with the budget and the time of each stage.

This module knows nothing of the link or of what the stages do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from opentelemetry.trace import Span

from process import tracing
from protos.deadline import Deadline


@dataclass(frozen=True)
class LedgerEntry:
    """One stage: the seconds that were left for it when it began, and those that it took."""

    stage: str
    budget_s: float
    took_s: float


class Budget:
    """The time of one study, until the ``deadline`` of its report.

    ``on_stage`` gets the name of each stage as it begins.
    """

    def __init__(self, deadline: Deadline, on_stage: Callable[[str], None] | None = None) -> None:
        self.deadline = deadline
        self._on_stage = on_stage
        self._ledger: list[LedgerEntry] = []
        self._running: tuple[str, float, float] | None = None

    @property
    def ledger(self) -> tuple[LedgerEntry, ...]:
        """The stages that have ended, in their order; one that raised is among them."""
        return tuple(self._ledger)

    @property
    def ledger_so_far(self) -> tuple[LedgerEntry, ...]:
        """The ledger including the running stage so far, for a report that is being written."""
        if self._running is None:
            return self.ledger
        name, budget_s, start_s = self._running
        return (*self.ledger, LedgerEntry(name, budget_s, self.deadline.clock() - start_s))

    def backdate(self, since_s: float) -> None:
        """Enter the wait since ``since_s``, on the deadline's clock, as the first stage.

        The deadline becomes earlier by as much.
        """
        wait_s = max(0.0, self.deadline.clock() - since_s)
        self._ledger.append(LedgerEntry("wait", self.left_s(), wait_s))
        self.deadline = replace(self.deadline, at_s=self.deadline.at_s - wait_s)

    def left_s(self, reserve_s: float = 0.0) -> float:
        """Return the seconds left when ``reserve_s`` is kept for later stages; at least 0."""
        return max(0.0, self.deadline.remaining_s - reserve_s)

    @contextmanager
    def stage(self, name: str, reserve_s: float = 0.0) -> Iterator[Span]:
        """Run one stage, as a span, and enter its time in the ledger, also when it raises.

        Its budget is the time left less ``reserve_s``.
        """
        if self._on_stage is not None:
            self._on_stage(name)
        self._running = (name, self.left_s(reserve_s), self.deadline.clock())
        try:
            with tracing.span(name) as span:
                yield span
        finally:
            self._ledger.append(self.ledger_so_far[-1])
            self._running = None
