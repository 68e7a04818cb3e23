"""Asks again for what is owed when the link is back, and writes the amended report.

Called between studies, one piece of work a turn. It keeps nothing in memory that matters: verdicts
are durable before a version is written from them, so that a version begun is finished by the next
start, with the same verdicts and the same number.

How long one waits after an asking in vain: longer and longer.

Where nobody answered at all the link is down, and no debt is asked for until its pause is over:
an asking keeps the agent from the studies that arrive. Where the cloud refused a study, that
study alone waits. How many askings in a row were in vain, of whatever study, tells how long the
next may take. It lives with the process: a start asks for everything once.

How long and how often one asks for what is owed, and what room it may take meanwhile.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Self

import structlog

from edge.amend.changes import amended
from edge.atomic_files import passes
from edge.escalation.client import SecondReader
from edge.report.model import Report
from edge.report.pictures import picture_note, redraw
from edge.report.write import version_in, write_version
from edge.settings import EdgeSettings
from edge.store.pending import Debt, OwedStep
from edge.store.studies import Spool
from protos.deadline import Deadline

LONGEST_LINK_S = 300.0
LONGEST_REFUSED_S = 3600.0


class Backoff:
    """When each debt may be asked for again, on a monotonic clock.

    Args:
        first_s: the pause after the first asking in vain; it doubles with each one more.
        clock: monotonic seconds.
        jitter: uniform between two bounds.
    """

    def __init__(
        self, first_s: float, clock: Callable[[], float], jitter: Callable[[float, float], float]
    ) -> None:
        self._first_s, self._clock, self._jitter = first_s, clock, jitter
        self._refused_until: dict[str, float] = {}
        self._link_until, self._unheard = float("-inf"), 0
        self._in_vain = 0

    @property
    def in_vain(self) -> int:
        """Askings in a row that brought no verdict; that the link was found again ends no row."""
        return self._in_vain

    def due(self, key: str) -> bool:
        """Whether this debt may be asked for now."""
        return self._clock() >= max(self._link_until, self._refused_until.get(key, float("-inf")))

    def unheard(self) -> None:
        """Nobody answered: no debt is asked for during the pause, five minutes at most."""
        self._unheard += 1
        self._in_vain += 1
        self._link_until = self._clock() + self._pause_s(self._unheard, LONGEST_LINK_S)

    def refused(self, key: str, attempts: int) -> None:
        """The cloud would not answer asking number ``attempts``: it waits, an hour at most."""
        self.heard()
        self._in_vain += 1
        self._refused_until[key] = self._clock() + self._pause_s(attempts, LONGEST_REFUSED_S)

    def answered(self) -> None:
        """An asking brought a verdict."""
        self.heard()
        self._in_vain = 0

    def heard(self) -> None:
        """The cloud answers: the link is no reason to wait any more."""
        self._link_until, self._unheard = float("-inf"), 0

    def over(self, key: str) -> None:
        """Nothing is owed any more."""
        self._refused_until.pop(key, None)

    def _pause_s(self, count: int, longest_s: float) -> float:
        """From the upper half of what is allowed, so that agents do not come back together."""
        most_s = min(longest_s, self._first_s * 2.0 ** min(count - 1, 30))
        return self._jitter(most_s / 2, most_s)


ASKING_S, ASKING_SHARE = 2.0, 0.2
"""A first asking may take so long, or that share of the deadline if it is less: a study that
arrives meanwhile waits for its end."""
LONGEST_SHARE = 0.5
"""No asking takes more of the deadline: what arrives has half of its time left at least."""
DAY_S = 86_400.0
MB = 1_000_000


@dataclass(frozen=True)
class Persistence:
    """The limits of asking for what is owed.

    Attributes:
        asking_s: for an asking when the last one brought a verdict.
        longest_s: for any asking.
        max_rois: regions of one asking at most.
        pause_s: after the first asking in vain; it doubles, as `edge.amend.amender` has it.
        keep_days: days of an agent's life after which a debt is given up.
        most_bytes: of the database; beyond it the oldest debt is given up.
    """

    asking_s: float
    longest_s: float
    max_rois: int
    pause_s: float
    keep_days: float
    most_bytes: float

    @classmethod
    def of(cls, settings: EdgeSettings) -> Self:
        """That which the settings name."""
        return cls(
            min(ASKING_S, ASKING_SHARE * settings.deadline_s),
            LONGEST_SHARE * settings.deadline_s,
            settings.max_rois,
            settings.retry_pause_s,
            settings.pending_max_days,
            settings.pending_max_mb * MB,
        )

    def budget_s(self, in_vain: int) -> float:
        """For an asking after ``in_vain`` others in a row, of whatever study, brought no verdict.

        It doubles: a link that needs longer for a single region would never bring one.
        """
        return min(self.longest_s, self.asking_s * 2.0 ** min(in_vain, 30))

    @property
    def too_old(self) -> str:
        """Why a debt is given up that is older than it may be."""
        return f"no answer within {self.keep_days:g} days, and nobody is asked any more"

    @property
    def too_much(self) -> str:
        """Why a debt is given up for which there is no room."""
        return f"more than {self.most_bytes / MB:g} MB were owed, and nobody is asked any more"


SQUEEZED_AT_ONCE = 20
"""Regions that one turn compresses for want of room: 3 ms each of 48 voxels a side."""
AGE_STEP_S = 60.0
"""Debts age in steps of this: a start loses no more of it."""

log = structlog.get_logger()


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
        second: SecondReader,
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

        A version that was begun is finished, a debt too old is given up, and one for which there
        is no room though some more was compressed; one that is due is asked for while the link is
        there, and regions stored in haste are compressed.

        Raises:
            OSError, sqlite3.OperationalError: nothing can be written now, nothing is lost: turn
                again.
        """
        self._pass_time()
        there = self._is_there()
        if (debt := self._first(OwedStep.AMENDING)) is not None:
            return self._attempt(debt, self._write)
        if (debt := self._first(OwedStep.OWED, self._too_old)) is not None:
            return self._attempt(debt, partial(self._give_up, self._persistence.too_old))
        if not self._has_room() and (debt := self._oldest()) is not None:
            return self._attempt(debt, partial(self._give_up, self._persistence.too_much))
        if there and (debt := self._first(OwedStep.OWED, self._due)):
            return self._attempt(debt, self._ask)
        return self._owed.squeeze()

    @property
    def overfull(self) -> bool:
        """Whether what is owed takes more room than it may: another turn makes some."""
        return self._owed.used_bytes() > self._persistence.most_bytes

    @property
    def set_aside(self) -> int:
        """Debts that nothing is done about until the next start."""
        return len(self._aside)

    def heard(self) -> None:
        """The cloud has answered a study: the link is no reason to wait any more."""
        self._backoff.heard()

    def _has_room(self) -> bool:
        """Whether what is owed has room, once some of what was stored in haste is compressed."""
        for _ in range(SQUEEZED_AT_ONCE):
            if not self.overfull or not self._owed.squeeze():
                break
        return not self.overfull

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
        return next((debt for debt in self._at(step) if wanted(debt)), None)

    def _oldest(self) -> Debt | None:
        return max(self._at(OwedStep.OWED), key=lambda debt: debt.age_s, default=None)

    def _at(self, step: OwedStep) -> Iterator[Debt]:
        return (debt for debt in self._owed.at(step) if debt.study_key not in self._aside)

    def _due(self, debt: Debt) -> bool:
        return self._backoff.due(debt.study_key)

    def _too_old(self, debt: Debt) -> bool:
        return debt.age_s > self._persistence.keep_days * DAY_S

    def _ask(self, debt: Debt) -> None:
        key, persistence = debt.study_key, self._persistence
        debt = self._owed.asked(debt)
        most = 1 if self._second.estimate().probing else persistence.max_rois
        rois = self._owed.regions(key)[:most]
        budget_s = persistence.budget_s(self._backoff.in_vain)
        answers = self._second.read_rois(rois, Deadline.after(budget_s, self._clock), key)
        if answers.verdicts:
            self._backoff.answered()
            self._write(self._owed.answered(debt, answers))
        else:
            if answers.refused:
                self._backoff.refused(key, debt.attempts)
            else:
                self._backoff.unheard()
            log.info("asked in vain", study_key=key, attempts=debt.attempts, why=answers.reason)

    def _give_up(self, reason: str, debt: Debt) -> None:
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
            gives_up=debt.gives_up,
        )
        if version_in(out, key) != report.version:
            pictures = redraw(report, grounds.plan, lambda place: owed.region(key, place), out)
            report = replace(report, picture_note=picture_note(report, pictures))
            write_version(report, pictures, out)
        if owed.amended(debt, replace(grounds, report=report)) is OwedStep.SETTLED:
            self._backoff.over(key)
        self._tell(report)
        log.info(
            "report amended", study_key=key, version=report.version, status=report.status.value
        )

    def _attempt(self, debt: Debt, action: Callable[[Debt], None]) -> bool:
        """Do it; what fails for a reason that does not pass must not stop the others."""
        try:
            action(debt)
        except Exception as error:  # whatever one debt does, the others are still owed
            if passes(error) or isinstance(error, sqlite3.OperationalError):
                raise
            log.exception("set aside until the next start", study_key=debt.study_key)
            self._aside.add(debt.study_key)
        return True

    def _pass_time(self) -> None:
        if (passed_s := self._clock() - self._aged_s) >= AGE_STEP_S:
            self._owed.pass_time(passed_s)
            self._aged_s += passed_s
