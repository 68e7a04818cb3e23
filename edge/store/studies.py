"""What the daemon must not forget: one row a study, and the step that it has reached.

Every step is durable before the next begins (sqlite in WAL mode, ``synchronous=FULL``), so that
after a crash at any moment the row and the files together tell what remains to be done. What is
done between two steps is the business of `edge.daemon.claim` and `edge.daemon.agent`.

    CLAIMING -> CLAIMED -> READING -> REPORTED -> DONE
        |           ^         |
     forgotten      +---------+----> QUARANTINING -> QUARANTINED

What a report owes lies in the same database (`edge.store.pending`), and begins to count in the same
transaction as REPORTED.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from edge.errors import EdgeError
from edge.job import new_study_key
from edge.store.database import WrongStep, open_database, transaction
from edge.store.pending import Owed, OwedStep


class Step(Enum):
    """A durable step of a study."""

    CLAIMING = "claiming"  # the row is there; the files may still lie in the inbox
    CLAIMED = "claimed"  # the files are in work/
    READING = "reading"  # an attempt has begun
    REPORTED = "reported"  # the report is whole in the outbox
    DONE = "done"  # the files are in done/
    QUARANTINING = "quarantining"  # why is known; the files may still lie in work/
    QUARANTINED = "quarantined"  # files and reason are in quarantine/


_BEFORE: dict[Step, tuple[Step, ...]] = {
    Step.CLAIMED: (Step.CLAIMING, Step.READING),
    Step.READING: (Step.CLAIMED, Step.READING),
    Step.REPORTED: (Step.READING,),
    Step.DONE: (Step.REPORTED,),
    Step.QUARANTINING: (Step.CLAIMED, Step.READING),
    Step.QUARANTINED: (Step.QUARANTINING,),
}

StepHook = Callable[[Step | OwedStep, bool], None]
"""Called with each step twice: just before it is made durable (False) and just after (True)."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (
    id TEXT PRIMARY KEY,
    members TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    report_name TEXT NOT NULL UNIQUE,
    step TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    kind TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    file TEXT NOT NULL DEFAULT '',
    created TEXT NOT NULL,
    updated TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS one_claim ON studies (members) WHERE step = 'claiming';
CREATE INDEX IF NOT EXISTS by_step ON studies (step);
"""


class AlreadyRunning(EdgeError):
    """Another agent works on this inbox or state folder: stop it, or give this one its own."""


class DamagedSpool(EdgeError):
    """The database of the state folder cannot be opened, or is none."""


@dataclass(frozen=True)
class Record:
    """One study as the spool knows it.

    Attributes:
        id: the study key, random; names its folder in ``work``, ``done`` or ``quarantine``.
        members: names in the inbox of all that belongs to it, the study itself first.
        fingerprint: of names, sizes and times of its files when it was complete.
        report_name: its folder in the outbox; no other study ever gets the same.
        attempts: how often its reading has begun without coming to an end, this time included.
        kind, reason, file: why it was quarantined, else empty.
        created, updated: wall-clock time of the claim and of the last step, ISO 8601.
    """

    id: str
    members: tuple[str, ...]
    fingerprint: str
    report_name: str
    step: Step
    attempts: int
    kind: str
    reason: str
    file: str
    created: str
    updated: str

    @property
    def name(self) -> str:
        """The name of the folder, or of the volume's file, as it lay in the inbox."""
        return self.members[0]


class Spool:
    """The table of studies, and beside it what is ``owed``.

    Use it as a context manager; two processes may hold it at once.

    Raises:
        DamagedSpool: ``path`` cannot be opened, or is no database.
    """

    def __init__(self, path: Path, on_step: StepHook | None = None) -> None:
        self._on_step = on_step or _unwatched
        with ExitStack() as opened:
            try:
                self._database = open_database(path)
                opened.callback(self._database.close)
                self._database.executescript(_SCHEMA)
                self.owed = Owed(self._database, self._on_step)
            except sqlite3.Error as error:
                raise DamagedSpool(f"{path}: {error}") from error
            opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()

    def open_claim(
        self, members: tuple[str, ...], fingerprint: str, report_names: Iterator[str]
    ) -> Record | None:
        """A new study in step CLAIMING, or None if another process is claiming the same name.

        Args:
            members: names in the inbox, that of the study first.
            fingerprint: of its files.
            report_names: wishes for its folder in the outbox; the first that is free is taken.
        """
        key, now = new_study_key(), _now()
        row = (key, json.dumps(members), fingerprint)
        self._on_step(Step.CLAIMING, False)
        try:
            with transaction(self._database):
                name = next(name for name in report_names if not self._has_report(name))
                self._database.execute(
                    "INSERT INTO studies (id, members, fingerprint, report_name, step,"
                    " created, updated) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (*row, name, Step.CLAIMING.value, now, now),
                )
        except sqlite3.IntegrityError:
            return None
        self._on_step(Step.CLAIMING, True)
        return self.get(key)

    def advance(self, key: str, step: Step) -> Record:
        """Make a step durable and return the record after it.

        READING counts an attempt; CLAIMED after READING takes the attempt back. With REPORTED
        what the report owes begins to count.

        Raises:
            WrongStep: the study is not where this step begins.
        """
        counted = {Step.READING: "attempts + 1", Step.CLAIMED: "max(attempts - 1, 0)"}
        return self._update(key, step, f"attempts = {counted.get(step, 'attempts')}", ())

    def condemn(self, key: str, kind: str, reason: str, file: str) -> Record:
        """Make QUARANTINING durable, with the reason.

        Raises:
            WrongStep: the study is not being read.
        """
        words = tuple(word.encode("utf-8", "replace").decode() for word in (kind, reason, file))
        return self._update(key, Step.QUARANTINING, "kind = ?, reason = ?, file = ?", words)

    def forget(self, key: str) -> None:
        """Drop a claim of which no file has been moved; the study is seen in the inbox again."""
        self._database.execute(
            "DELETE FROM studies WHERE id = ? AND step = ?", (key, Step.CLAIMING.value)
        )

    def get(self, key: str) -> Record:
        """The record of one study.

        Raises:
            KeyError: there is none.
        """
        row = self._database.execute("SELECT * FROM studies WHERE id = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(f"the spool knows no study {key}")
        return _record(row)

    def at(self, *steps: Step) -> list[Record]:
        """The studies at these steps, oldest claim first."""
        marks = ", ".join("?" * len(steps))
        rows = self._database.execute(
            f"SELECT * FROM studies WHERE step IN ({marks}) ORDER BY rowid",
            [step.value for step in steps],
        )
        return [_record(row) for row in rows]

    def _update(self, key: str, step: Step, change: str, values: tuple[str, ...]) -> Record:
        before = [state.value for state in _BEFORE[step]]
        self._on_step(step, False)
        with transaction(self._database):
            changed = self._database.execute(
                f"UPDATE studies SET step = ?, updated = ?, {change} WHERE id = ?"
                f" AND step IN ({', '.join('?' * len(before))})",
                (step.value, _now(), *values, key, *before),
            ).rowcount
            if changed != 1:
                raise WrongStep(f"study {key} is at {self.get(key).step.value}, not at {before}")
            if step is Step.REPORTED:
                self.owed.publish(key)
            if step is Step.QUARANTINING:
                self.owed.forget(key)
        self._on_step(step, True)
        return self.get(key)

    def _has_report(self, name: str) -> bool:
        query = "SELECT 1 FROM studies WHERE report_name = ?"
        return self._database.execute(query, (name,)).fetchone() is not None


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``; the kernel lets it go when the process dies, however it dies.

    Raises:
        AlreadyRunning: another process holds it.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(f"{path.parent}: another agent works on this folder") from error
        yield


def _unwatched(_step: Step | OwedStep, _durable: bool) -> None:
    """No one wants to know of the steps."""


def _record(row: sqlite3.Row) -> Record:
    values = dict(row)
    members = tuple(json.loads(values.pop("members")))
    return Record(**values | {"members": members, "step": Step(values["step"])})


def _now() -> str:
    return datetime.now(UTC).isoformat()
