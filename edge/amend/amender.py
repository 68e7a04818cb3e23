"""Retry pending reads when the cloud can be reached, and write the amended reports.

The main loop calls `Amender.run_once` between studies. Nothing that matters is only in memory:
verdicts are durable before a version is written from them, so that the next start finishes an
interrupted version with the same verdicts and the same number. Verdicts of one study wait for those
that are still missing, for some minutes at most, and make one version.

All timing of retries is here: `RetryBudget` says how long a retry may take, `Backoff` says when the
next one is due. (Within one escalation, `edge.escalation.client` paces its attempts.)
"""

import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from math import inf
from pathlib import Path
from typing import Self

import structlog

from edge.amend.amendment import AmendmentContext
from edge.amend.persist import unpacked, verdict_rows
from edge.amend.version import STAGES, composed
from edge.atomic_files import is_transient
from edge.escalation.client import SecondReader
from edge.report.model import Report
from edge.report.serialize import report_facts
from edge.settings.core import MB, EdgeSettings
from edge.store.pending import CHARACTERIZATION, PendingRead, PendingStep
from edge.store.record import Step
from edge.store.studies import StudyStore
from process import tracing
from process.backoff import Jitter, doubled, pause_s
from protos.deadline import Deadline
from protos.messages import Priority

MAX_LINK_PAUSE_S = 300.0
MAX_REFUSAL_PAUSE_S = 3600.0

FIRST_RETRY_S, FIRST_RETRY_SHARE = 2.0, 0.2
"""Limit of a first retry: 2 s, or 20 % of the deadline if that is shorter. A study that arrives
during a retry waits for its end."""
MAX_RETRY_SHARE = 0.5
"""Limit of any retry as a share of the deadline: a new study keeps at least half of its time."""
QUIET_S, MAX_WAIT_S = 60.0, 300.0
"""A version is written though verdicts are missing when no verdict has come for ``QUIET_S``, and
``MAX_WAIT_S`` after its first one. Each version is a set of objects in the archive."""
DAY_S = 86_400.0


log = structlog.get_logger()


class Backoff:
    """Say when each pending read is due, on a monotonic clock.

    There are two kinds of pause. If the cloud did not respond at all, the link is down: nothing is
    retried for a while, because a retry keeps the agent from new studies. If the cloud refused a
    study, this study alone waits. The state is lost at a restart: then everything is due once.

    Args:
        first_s: the pause after the first failed retry; it doubles with each further one.
        jitter: uniform between two bounds.
    """

    def __init__(self, first_s: float, clock: Callable[[], float], jitter: Jitter) -> None:
        self._first_s, self._clock, self._jitter = first_s, clock, jitter
        self._refused_until: dict[str, float] = {}
        self._link_until, self._no_responses = float("-inf"), 0
        self.failed_in_a_row = 0
        """Consecutive retries without a verdict, of any study. Only a verdict resets it."""

    def due(self, key: str) -> bool:
        """Return whether this study may be retried now."""
        return self._clock() >= max(self._link_until, self._refused_until.get(key, float("-inf")))

    def no_response(self) -> None:
        """Pause all studies, for five minutes at most: the cloud did not respond."""
        self._no_responses += 1
        self.failed_in_a_row += 1
        self._link_until = self._clock() + self._pause_s(self._no_responses, MAX_LINK_PAUSE_S)

    def refused(self, key: str, attempts: int) -> None:
        """Pause this study, for an hour at most: the cloud refused its attempt ``attempts``."""
        self.responded()
        self.failed_in_a_row += 1
        self._refused_until[key] = self._clock() + self._pause_s(attempts, MAX_REFUSAL_PAUSE_S)

    def answered(self) -> None:
        """Note that a retry brought a verdict."""
        self.responded()
        self.failed_in_a_row = 0

    def responded(self) -> None:
        """End the pause of the link: the cloud responds."""
        self._link_until, self._no_responses = float("-inf"), 0

    def forget(self, key: str) -> None:
        """Forget a study that is not pending any more."""
        self._refused_until.pop(key, None)

    def _pause_s(self, count: int, longest_s: float) -> float:
        return pause_s(count, self._first_s, longest_s, self._jitter)


@dataclass(frozen=True)
class RetryBudget:
    """The limits of retrying.

    Attributes:
        first_s: limit of a retry after one that brought a verdict.
        longest_s: limit of any retry.
        max_rois: ROIs of one retry.
        pause_s: after the first failed retry; `Backoff` doubles it.
        max_days: running time after which a pending read is given up.
        max_bytes: of the database; beyond it the oldest pending read is given up.
    """

    first_s: float
    longest_s: float
    max_rois: int
    pause_s: float
    max_days: float
    max_bytes: float

    @classmethod
    def of(cls, settings: EdgeSettings, pause_s: float) -> Self:
        """Take the limits from the settings, and the pause after the first failed retry."""
        return cls(
            min(FIRST_RETRY_S, FIRST_RETRY_SHARE * settings.deadline_s),
            MAX_RETRY_SHARE * settings.deadline_s,
            settings.cloud.max_rois,
            pause_s,
            settings.pending.max_days,
            settings.pending.max_mb * MB,
        )

    def budget_s(self, failed_in_a_row: int) -> float:
        """Return the limit of the next retry, which doubles with every failed one.

        On a slow link a fixed limit might never suffice for even one ROI.
        """
        return doubled(self.first_s, self.longest_s, failed_in_a_row)


class Amender:
    """Retry the pending reads of one store, and amend their reports in the outbox.

    ``on_amended`` is called with every new version. ``clock``, in monotonic seconds, is for all
    time spans; ``now``, the wall clock, only for the date in a report.
    """

    def __init__(
        self,
        store: StudyStore,
        outbox: Path,
        second: SecondReader,
        budget: RetryBudget,
        *,
        on_amended: Callable[[Report], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Jitter = random.uniform,
    ) -> None:
        self._store, self._pending, self._outbox = store, store.pending, outbox
        self._second, self._budget = second, budget
        self._on_amended, self._clock, self._now = on_amended, clock, now
        self._backoff = Backoff(budget.pause_s, clock, jitter)
        self._aged_s, self._was_down = clock(), False
        self._suspended: set[str] = set()
        self._due_s: dict[str, tuple[float, float]] = {}  # of a version: when quiet, at the latest

    def run_once(self) -> bool:
        """Do the most urgent piece of work; return whether there was any.

        Raises:
            OSError, sqlite3.OperationalError: nothing can be written now; call again later.
        """
        # stored in steps of a minute: a restart loses no more of the age
        if (passed_s := self._clock() - self._aged_s) >= 60.0:
            self._pending.add_age(passed_s)
            self._aged_s += passed_s
        available = self._is_available()
        steps = (PendingStep.PENDING, PendingStep.AMENDING)
        # a report whose study is read again with more images is amended by that
        again = {record.id for record in self._store.at(Step.CLAIMED, Step.READING)}
        held = self._suspended | again
        reads = [r for r in self._pending.at(*steps) if r.study_key not in held]
        # 1. Write a version whose verdicts are stored, unless more may follow within seconds.
        if ready := [r for r in reads if self._is_ready(r)]:
            return self._attempt(ready[0], self._write)
        # 2. Give up a read that is too old, or the oldest when compressing makes no room.
        if too_old := [r for r in reads if r.age_s > self._budget.max_days * DAY_S]:
            reason = f"no answer within {self._budget.max_days:g} days"
            return self._attempt(too_old[0], partial(self._give_up, reason))
        if not self._has_room() and reads:
            # those that change no decision go first
            least = [r for r in reads if r.uncharacterized] or reads
            oldest = max(least, key=lambda read: read.age_s)
            if oldest.uncharacterized and oldest.undecided:
                return self._attempt(oldest, self._give_up_characterizations)
            reason = f"pending reads exceeded {self._budget.max_bytes / MB:g} MB"
            return self._attempt(oldest, partial(self._give_up, reason))
        # 3. Retry a read that is due, while the cloud can be reached. Its characterizations wait
        #    while another one has an uncertain candidate.
        if available and (due := [r for r in reads if self._backoff.due(r.study_key)]):
            hurry = sum(r.undecided for r in due) > 1
            return self._attempt(due[0], partial(self._retry, CHARACTERIZATION if hurry else inf))
        # 4. Nothing is urgent: compress an ROI that was stored fast.
        return self._pending.compress_one()

    @property
    def over_limit(self) -> bool:
        """Whether pending reads exceed their limit; `run_once` makes room."""
        return self._pending.used_bytes() > self._budget.max_bytes

    @property
    def suspended(self) -> int:
        """Pending reads that failed for a lasting reason, and wait for the next start."""
        return len(self._suspended)

    def responded(self) -> None:
        """Note that the cloud answered a study: the link is up."""
        self._backoff.responded()

    def _has_room(self) -> bool:
        """Return whether the reads fit, after compressing some ROIs if they do not."""
        for _ in range(20):  # 3 ms each at 48 voxels a side
            if not self.over_limit or not self._pending.compress_one():
                break
        return not self.over_limit

    def _is_available(self) -> bool:
        """Return whether the link admits a retry; end its pause when it comes up again."""
        link = self._second.estimate()
        up = link.available and not link.probing
        if up and self._was_down:
            self._backoff.responded()
        self._was_down = not up
        return link.available

    def _is_ready(self, read: PendingRead) -> bool:
        """Return whether the next version is to be written now.

        Verdicts that an earlier process stored do not wait.
        """
        if read.step is not PendingStep.AMENDING:
            return False
        is_due = self._clock() >= min(self._due_s.get(read.study_key, (-inf,)))
        return is_due or read.gives_up or not (read.undecided or read.uncharacterized)

    def _retry(self, below: float, read: PendingRead) -> PendingRead:
        """Send ROIs of one study again, those ``below``; -> AMENDING where verdicts come."""
        key, is_first = read.study_key, read.step is PendingStep.PENDING
        # counted before it begins, in case it kills the process
        read = self._pending.advance(read, PendingStep.RETRYING, attempts=read.attempts + 1)
        # While the breaker is half-open, one ROI is enough as a probe.
        max_rois = 1 if self._second.estimate().probing else self._budget.max_rois
        rois = [unpacked(data) for data in self._pending.rois(key, below)[:max_rois]]
        limit_s = self._budget.budget_s(self._backoff.failed_in_a_row)
        priority = Priority.ROUTINE
        if read.undecided:
            context = AmendmentContext.from_bytes(self._pending.context(key))
            priority = context.report.rule.priority
        deadline = Deadline.after(limit_s, self._clock)
        with tracing.study(key), tracing.span("amend", retry=read.attempts, rois=len(rois)) as span:
            answers = self._second.read_rois(rois, deadline, key, priority)
            span.set_attributes(tracing.attributes(**answers.counts))
        # The verdicts are made durable first, then the version is written from them. Without any,
        # the pause depends on who is to blame: this study, or the link.
        if answers.verdicts:
            self._backoff.answered()
            rows, reason = verdict_rows(answers), answers.reason
            read = self._pending.advance(
                read, PendingStep.AMENDING, verdicts=rows, reason=reason, attempts=0
            )
            now_s = self._clock()
            _, before_s = self._due_s.get(key, (now_s, now_s))
            latest_s = now_s + MAX_WAIT_S if is_first else before_s
            self._due_s[key] = now_s + QUIET_S, latest_s
            return read
        if answers.refused:
            self._backoff.refused(key, read.attempts)
        else:
            self._backoff.no_response()
        log.info("retry failed", study_key=key, attempts=read.attempts, reason=answers.reason)
        return read

    def _give_up(self, reason: str, read: PendingRead) -> PendingRead:
        """Stop retrying; -> AMENDING, whose last version gives the reason."""
        return self._pending.advance(read, PendingStep.AMENDING, reason=reason, gives_up=True)

    def _give_up_characterizations(self, read: PendingRead) -> PendingRead:
        """Delete the ROIs to characterize; -> AMENDING, at once, and the others stay pending."""
        self._due_s.pop(read.study_key, None)
        return self._pending.advance(read, PendingStep.AMENDING, below=CHARACTERIZATION)

    def _write(self, read: PendingRead) -> PendingRead:
        """Write the next version of the report of a read at AMENDING; -> PENDING, or CLOSED."""
        key = read.study_key
        out = self._outbox / self._store.get(key).report_name
        created = self._now().isoformat(timespec="seconds")
        version = composed(self._pending, read, out, created)
        for stage in STAGES:
            version = stage(version)
        self._due_s.pop(key, None)
        report, step = version.report, PendingStep.PENDING
        if version.is_last:
            self._backoff.forget(key)
            step = PendingStep.CLOSED
        context = replace(version.context, report=report).to_bytes()
        facts, exported = report_facts(report), report.version
        read = self._pending.advance(read, step, facts=facts, exported=exported, context=context)
        if self._on_amended is not None:
            self._on_amended(report)
        log.info(
            "report amended", study_key=key, version=report.version, status=report.status.value
        )
        return read

    def _attempt(self, read: PendingRead, action: Callable[[PendingRead], PendingRead]) -> bool:
        """Run the action, and write the version that is ready after it.

        If that fails for a lasting reason, the read is suspended, for the others' sake. A transient
        error is raised: it would hit the others as well.
        """
        try:
            read = action(read)
            if self._is_ready(read):
                self._write(read)
        except Exception as error:  # whatever it is, it must not stop the other reads
            if is_transient(error) or isinstance(error, sqlite3.OperationalError):
                raise
            log.exception("suspended until the next start", study_key=read.study_key)
            self._suspended.add(read.study_key)
        return True
