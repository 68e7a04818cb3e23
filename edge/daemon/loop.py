"""The turns of the daemon: claim what is complete, carry the oldest study to its end, then amend.

It keeps nothing in memory that matters. Every turn begins with what the spool says is unfinished,
so that starting after a crash and going on after a full disk are the ordinary turn.

Since when the budget of each unfinished study runs, on the agent's clock.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import structlog

from edge.amend.amender import Amender
from edge.atomic_files import passes
from edge.daemon.claim import claim, resume_claim
from edge.daemon.inbox import Inbox
from edge.daemon.study import UNFINISHED, Carry, Places
from edge.settings import EdgeSettings
from edge.store.studies import Record, Spool, Step
from edge.telemetry import Meters, Standing


class Begun:
    """The moments by study key; it lives with the process.

    Args:
        start_s: of the agent: then the budget begins of what an earlier one had claimed, whose
            clock tells nothing here.
    """

    def __init__(self, start_s: float) -> None:
        self._start_s = start_s
        self._since_s: dict[str, float] = {}

    def at(self, key: str, since_s: float) -> None:
        """The budget of this study runs since then."""
        self._since_s[key] = since_s

    def since_s(self, key: str) -> float:
        """When the budget of this study began."""
        return self._since_s.get(key, self._start_s)

    def over(self, key: str) -> None:
        """The study has come to its end."""
        self._since_s.pop(key, None)


PAUSE_POLLS = 10
"""Polls that a pause lasts while nothing can be written."""
AMEND_EVERY = 10
"""Studies in a row after which what is owed gets a turn although more studies wait."""

log = structlog.get_logger()


class Turns:
    """The turns of the daemon, and the studies it has set aside until the next start.

    Args:
        places: its folders.
        spool: what it must not forget.
        inbox: says what is complete.
        begun: remembers since when the budget of each study runs.
        bring: carries a study to its end.
        amender: does what is owed.
        meters: are told how things stand.
        settings: of this process.
        stop: ends the work when it is set.
    """

    def __init__(
        self,
        places: Places,
        spool: Spool,
        inbox: Inbox,
        begun: Begun,
        bring: Carry,
        amender: Amender,
        meters: Meters,
        settings: EdgeSettings,
        stop: threading.Event,
    ) -> None:
        self._places = places
        self._spool = spool
        self._inbox = inbox
        self._begun = begun
        self._carry = bring
        self._amender = amender
        self._meters = meters
        self._settings = settings
        self._stop = stop
        self._aside: set[str] = set()
        self._blameless: set[str] = set()
        self._at_hand: Record | None = None
        self._held_up = False
        self._in_a_row = 0

    def work(self) -> None:
        """Turn after turn, until the stop is set; waits where there is nothing to do."""
        log.info("watching", quiet_s=self._settings.quiet_s, deadline_s=self._settings.deadline_s)
        while not self._stop.is_set():
            try:
                busy = self.turn()
            except (OSError, sqlite3.OperationalError) as error:
                if not passes(error):
                    raise
                self._pause(error)
                continue
            if not busy:
                self._stop.wait(self._settings.poll_s)

    def turn(self) -> bool:
        """Claim what is complete, and carry the oldest unfinished study to its end.

        Where there is none, and now and then where there are many, what is owed has its turn.
        Returns whether there was anything to do.

        Raises:
            OSError, sqlite3.OperationalError: nothing can be written now, nothing is lost: turn
                again.
        """
        self._take_attempts_back()
        self._claim()
        waiting = [r for r in self._spool.at(*UNFINISHED) if r.id not in self._aside]
        self._tell(len(waiting))
        for record in waiting[:1]:
            self._at_hand = record
            if self._attempt(record.id, partial(self._carry, record)):
                self._begun.over(record.id)
        self._in_a_row = self._in_a_row + 1 if waiting else 0
        due = self._in_a_row % AMEND_EVERY == 0 or self._amender.overfull
        amends = due and self._amender.turn()
        return bool(waiting) or amends

    def _claim(self) -> None:
        """What is complete in the inbox, and what was being claimed when it was interrupted."""
        places, spool = self._places, self._spool
        for record in spool.at(Step.CLAIMING):
            resume = partial(resume_claim, record, places.inbox, places.work, spool)
            self._attempt(record.id, resume)
        for arrival in self._inbox.complete():
            where = (places.inbox, places.work, spool)
            take = partial(claim, arrival, *where, self._is_taken, self._begun.at)
            self._attempt(arrival.fingerprint, take)

    def _attempt(self, key: str, action: Callable[[], object]) -> bool:
        """Do it; if files cannot be written or moved, set it aside, so that the others go on.

        Returns whether it was done.
        """
        if key in self._aside:
            return False
        try:
            action()
        except OSError as error:
            if passes(error):
                raise
            log.exception("set aside until the next start", study_key=key)
            self._aside.add(key)
            self._blameless |= {key} & self._being_read()
            self._take_attempts_back()
            return False
        return True

    def _tell(self, waiting: int) -> None:
        owed, oldest_s = self._spool.owed.standing()
        aside = len(self._aside) + self._amender.set_aside
        self._meters.stands(Standing(waiting, aside, owed, oldest_s))

    def _is_taken(self, name: str) -> bool:
        return (self._places.outbox / name).exists()

    def _pause(self, error: Exception) -> None:
        """Wait until it passes; no attempt that met it is held against its study."""
        pause_s = PAUSE_POLLS * self._settings.poll_s
        log.error("nothing can be written now, pausing", error=str(error), pause_s=pause_s)
        self._held_up = True
        with suppress(sqlite3.OperationalError):  # the next turn tries again
            self._take_attempts_back()
        self._stop.wait(pause_s)

    def _being_read(self) -> set[str]:
        """The study at hand, if this turn began to read it: what an earlier life began died."""
        before = self._at_hand
        if before is None:
            return set()
        now = self._spool.get(before.id)
        return {now.id} if now.step is Step.READING and now.attempts > before.attempts else set()

    def _take_attempts_back(self) -> None:
        """Of the studies that are not to blame; the database itself may not be written now.

        Nothing is being read between turns but what a pause has held up.
        """
        if self._held_up:
            self._blameless |= self._being_read()
            self._held_up = False
        for key in sorted(self._blameless):
            self._spool.advance(key, Step.CLAIMED)
            self._blameless.discard(key)
