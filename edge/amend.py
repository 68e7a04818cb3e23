"""Asks again for what is owed when the link is back, and writes the amended report.

Called between studies, one piece of work a turn. It keeps nothing in memory that matters: verdicts
are durable before a version is written from them, so that a version begun is finished by the next
start, with the same verdicts and the same number.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import structlog

from edge.amendment import amended
from edge.backoff import Backoff
from edge.debt import Debt, OwedStep
from edge.durable import no_room
from edge.estimate import LinkEstimate
from edge.exchange import Escalated
from edge.outcome import Report
from edge.redraw import picture_note, redrawn
from edge.spool import Spool
from edge.versions import version_in, write_version
from protos.deadline import Deadline
from protos.messages import Roi

DAY_S = 86_400.0
AGE_STEP_S = 60.0
"""Debts age in steps of this: a start loses no more of it."""

log = structlog.get_logger()


class Asked(Protocol):
    """Who is asked again: what `edge.escalate.SecondReader` gives, apart from the line."""

    def estimate(self) -> LinkEstimate:
        """What to expect of the link now."""

    def ask(self, rois: Sequence[Roi], deadline: Deadline, study_key: str) -> Escalated:
        """The verdicts on ``rois`` that came by ``deadline``; nothing is raised."""


@dataclass(frozen=True)
class Persistence:
    """How long and how often one asks.

    Attributes:
        budget_s: for one asking.
        max_rois: regions of one asking at most.
        pause_s: after the first asking in vain; it doubles, as `edge.backoff` has it.
        keep_days: days of an agent's life after which a debt is given up.
    """

    budget_s: float
    max_rois: int
    pause_s: float
    keep_days: float


def _now() -> datetime:
    return datetime.now(UTC)


def _unheard(_report: Report) -> None:
    """No one wants to know of amendments."""


class Amender:
    """The debts of one spool, their asking and their amendments.

    Args:
        spool: that holds them.
        outbox: where the reports are.
        second: who is asked.
        persistence: how long and how often.
        tell: is told of every new version.
        clock: monotonic; all time spans are its own.
        now: wall-clock time, which only stands in the reports.
        jitter: uniform between two bounds.
    """

    def __init__(
        self,
        spool: Spool,
        outbox: Path,
        second: Asked,
        persistence: Persistence,
        *,
        tell: Callable[[Report], None] = _unheard,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _now,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._spool, self._owed, self._outbox = spool, spool.owed, outbox
        self._second, self._persistence = second, persistence
        self._tell, self._clock, self._now = tell, clock, now
        self._backoff = Backoff(persistence.pause_s, clock, jitter)
        self._aged_s, self._lost = clock(), False
        self._aside: set[str] = set()

    def turn(self) -> bool:
        """One piece of work, the most urgent first; returns whether there was any.

        A version that was begun is finished, a debt too old is given up, one that is due is
        asked for while the link is there, and regions that were stored in haste are compressed.

        Raises:
            OSError, sqlite3.OperationalError: the disk is full; nothing is lost, turn again.
        """
        self._pass_time()
        there = self._is_there()
        if (debt := self._first(OwedStep.AMENDING)) is not None:
            return self._attempt(debt, self._write)
        if (debt := self._first(OwedStep.OWED, self._too_old)) is not None:
            return self._attempt(debt, self._give_up)
        if there and (debt := self._first(OwedStep.OWED, self._due)):
            return self._attempt(debt, self._ask)
        return self._owed.squeeze()

    def heard(self) -> None:
        """The cloud has answered a study: the link is no reason to wait any more."""
        self._backoff.heard()

    def _is_there(self) -> bool:
        """Whether the link can be asked; one that was lost and is found makes no one wait."""
        link = self._second.estimate()
        found = link.available and not link.probing
        if found and self._lost:
            self._backoff.heard()
        self._lost = not found
        return link.available

    def _first(
        self, step: OwedStep, wanted: Callable[[Debt], bool] = lambda _debt: True
    ) -> Debt | None:
        debts = (d for d in self._owed.at(step) if d.study_key not in self._aside and wanted(d))
        return next(debts, None)

    def _due(self, debt: Debt) -> bool:
        return self._backoff.due(debt.study_key)

    def _too_old(self, debt: Debt) -> bool:
        return debt.age_s > self._persistence.keep_days * DAY_S

    def _ask(self, debt: Debt) -> None:
        key, persistence = debt.study_key, self._persistence
        debt = self._owed.asked(debt)
        most = 1 if self._second.estimate().probing else persistence.max_rois
        rois = self._owed.regions(key)[:most]
        answers = self._second.ask(rois, Deadline.after(persistence.budget_s, self._clock), key)
        if answers.verdicts:
            self._backoff.heard()
            self._write(self._owed.answered(debt, answers))
        else:
            if answers.refused:
                self._backoff.refused(key, debt.attempts)
            else:
                self._backoff.unheard()
            log.info("asked in vain", study_key=key, attempts=debt.attempts, why=answers.reason)

    def _give_up(self, debt: Debt) -> None:
        days = self._persistence.keep_days
        reason = f"no answer within {days:g} days, and nobody is asked any more"
        self._write(self._owed.give_up(debt, reason))

    def _write(self, debt: Debt) -> None:
        """The next version of the report of a debt in AMENDING, unless it is out already."""
        key, owed = debt.study_key, self._owed
        grounds, out = owed.grounds(key), self._outbox / self._spool.get(key).report_name
        report = amended(
            grounds,
            owed.answers(key, debt.version),
            owed.answers(key, debt.version + 1),
            created=self._now().isoformat(timespec="seconds"),
            open_places=len(owed.open_places(debt)),
            gives_up_after_days=self._persistence.keep_days if debt.gives_up else None,
        )
        if version_in(out, key) != report.version:
            pictures = redrawn(report, grounds.plan, lambda place: owed.region(key, place), out)
            report = replace(report, picture_note=picture_note(report, pictures))
            write_version(report, pictures, out)
        if owed.amended(debt, replace(grounds, report=report)) is OwedStep.SETTLED:
            self._backoff.over(key)
        self._tell(report)
        log.info(
            "report amended", study_key=key, version=report.version, status=report.status.value
        )

    def _attempt(self, debt: Debt, action: Callable[[Debt], None]) -> bool:
        """Do it; what fails for another reason than a full disk must not stop the others."""
        try:
            action(debt)
        except Exception as error:  # whatever one debt does, the others are still owed
            if no_room(error) or isinstance(error, sqlite3.OperationalError):
                raise
            log.exception("set aside until the next start", study_key=debt.study_key)
            self._aside.add(debt.study_key)
        return True

    def _pass_time(self) -> None:
        if (passed_s := self._clock() - self._aged_s) >= AGE_STEP_S:
            self._owed.pass_time(passed_s)
            self._aged_s += passed_s
