"""Spends: one study's deadline, and the ledger of what each stage of the line was given and took.

It knows nothing of the link nor of what the stages do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from protos.deadline import Deadline


@dataclass(frozen=True)
class LedgerEntry:
    """One stage of the line: the time it was given when it began and that it took, seconds."""

    stage: str
    budget_s: float
    took_s: float


class Budget:
    """The time of one study: from the moment it is taken up, or since when it has `waited`.

    ``watch`` is told the name of each stage as it begins, for progress on a screen.
    """

    def __init__(self, deadline: Deadline, watch: Callable[[str], None] | None = None) -> None:
        self._deadline = deadline
        self._watch = watch
        self._ledger: list[LedgerEntry] = []
        self._running: tuple[str, float, float] | None = None

    @property
    def deadline(self) -> Deadline:
        """The point in time by which the report should be there."""
        return self._deadline

    @property
    def ledger(self) -> tuple[LedgerEntry, ...]:
        """The stages that have ended, in their order; one that raised is among them."""
        return tuple(self._ledger)

    @property
    def ledger_so_far(self) -> tuple[LedgerEntry, ...]:
        """The ledger, and after it the stage that runs now with its time up to this moment.

        It is what a report can say of the stage that writes it.
        """
        if self._running is None:
            return self.ledger
        name, budget_s, began_s = self._running
        return (*self.ledger, LedgerEntry(name, budget_s, self._deadline.clock() - began_s))

    def backdate(self, since_s: float) -> None:
        """The study has waited since then, on the deadline's clock: its time has run meanwhile.

        The wait is entered as the first stage, and the deadline is so much earlier.
        """
        wait_s = max(0.0, self._deadline.clock() - since_s)
        self._ledger.append(LedgerEntry("wait", self.left_s(), wait_s))
        self._deadline = replace(self._deadline, at_s=self._deadline.at_s - wait_s)

    def left_s(self, reserve_s: float = 0.0) -> float:
        """Seconds that a stage may use when ``reserve_s`` is kept for those after it; >= 0."""
        return max(0.0, self._deadline.remaining_s - reserve_s)

    @contextmanager
    def stage(self, name: str, reserve_s: float = 0.0) -> Iterator[None]:
        """Runs one stage and enters its time in the ledger, also when it raises.

        It is given all that is left less ``reserve_s``, which is kept for those after it.
        """
        if self._watch is not None:
            self._watch(name)
        self._running = (name, self.left_s(reserve_s), self._deadline.clock())
        try:
            yield
        finally:
            self._ledger.append(self.ledger_so_far[-1])
            self._running = None
