r"""Exports and deliveries: which versions of reports become objects, and which target has them.

They are rows in the database of `edge.store.studies`. An export begins in the transaction that
makes a version of a report durable: that of a study's step REPORTED, or that of an amendment. Where
no targets are set up there are no rows.

    MAKING -> MADE      and with MADE, a delivery for each target:    SENDING -> SENT
         \-> NONE, NOT_MADE                                                  \-> DEAD

When a delivery is due again after a failed attempt is not stored: at a start everything is due
once. The wall clock only says for how long a delivery has waited.
"""

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import partial

from pydicom.uid import UID

from edge.audit import AuditTrail, Event, Person
from edge.database import Migration, StepHook, durable, transaction


class ExportStep(Enum):
    """A durable step of an export."""

    MAKING = "making"  # the version is out; its objects may not be made yet
    MADE = "made"  # its objects are in the outbox, and its deliveries exist
    NONE = "none"  # there is nothing to make objects of; the reason is stored
    NOT_MADE = "not made"  # one cannot be made; the reason is stored, and the report stays


class DeliveryStep(Enum):
    """A durable step of a delivery."""

    SENDING = "sending"  # the target does not have all objects; set again by a resend
    TRYING = "trying"  # one more attempt is counted; the row stays SENDING
    SENT = "sent"  # the target has all objects that it shall get and takes
    DEAD = "dead"  # given up, with the reason; a person may resend it


@dataclass(frozen=True)
class Export:
    """One version of a report that is to become objects.

    ``attempts`` counts started attempts to make them, ``reason`` says why there are none.
    """

    study_key: str
    version: int
    step: ExportStep
    attempts: int
    reason: str


@dataclass(frozen=True)
class Delivery:
    """The objects of one version for one target.

    Attributes:
        attempts: that ended with a refusal or with the process, the current one included.
        resends: how often a person has made it due again.
        stored: names of the files that the target has accepted since.
        created: wall-clock time from which it has waited, ISO 8601.
    """

    study_key: str
    version: int
    target: str
    step: DeliveryStep
    attempts: int
    resends: int
    stored: tuple[str, ...]
    reason: str
    created: str


@dataclass(frozen=True)
class NotTaken:
    """A SOP class that a target refuses, since when, and how often it has."""

    sop_class: str
    name: str
    reason: str
    attempts: int
    since: str


@dataclass(frozen=True)
class Backlog:
    """What one target does not have: deliveries that wait, the age of the oldest, dead letters."""

    waiting: int = 0
    oldest_s: float = 0.0
    dead: int = 0


_TABLES = """
CREATE TABLE IF NOT EXISTS exports (
    study_key TEXT NOT NULL,
    version INTEGER NOT NULL,
    step TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (study_key, version)
);
CREATE INDEX IF NOT EXISTS exports_making ON exports (step) WHERE step = 'making';
CREATE TABLE IF NOT EXISTS deliveries (
    study_key TEXT NOT NULL,
    version INTEGER NOT NULL,
    target TEXT NOT NULL,
    step TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    resends INTEGER NOT NULL DEFAULT 0,
    stored TEXT NOT NULL DEFAULT '[]',
    reason TEXT NOT NULL DEFAULT '',
    created TEXT NOT NULL,
    PRIMARY KEY (study_key, version, target),
    FOREIGN KEY (study_key, version) REFERENCES exports ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS deliveries_open ON deliveries (target, step) WHERE step != 'sent';
CREATE TABLE IF NOT EXISTS not_taken (
    target TEXT NOT NULL, sop_class TEXT NOT NULL,
    reason TEXT NOT NULL, attempts INTEGER NOT NULL, since TEXT NOT NULL,
    PRIMARY KEY (target, sop_class)
);
"""

MIGRATIONS = (Migration(3, _TABLES),)

_WAITS = "study_key = ? AND version = ? AND target = ? AND resends = ? AND step = 'sending'"
"""A delivery that waits, unless a person has resent it meanwhile; for the values of `_key`."""


class ExportStore:
    """The exports and deliveries in an open database.

    ``targets`` are the names of all targets; ``on_step`` is called with every durable step.
    ``trail`` gets every delivery that ends.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        trail: AuditTrail,
        on_step: StepHook,
        targets: Collection[str],
    ) -> None:
        self._database, self._trail = database, trail
        self._durable = partial(durable, database, on_step)
        self.targets = tuple(targets)

    def reported(self, key: str, versions: Iterable[int]) -> None:
        """Begin the export of these versions; part of another's transaction.

        Nothing is done for a version that is known, or where no targets are set up.
        """
        if self.targets:
            self._database.executemany(
                "INSERT OR IGNORE INTO exports (study_key, version, step) VALUES (?, ?, ?)",
                [(key, version, ExportStep.MAKING.value) for version in sorted(versions)],
            )

    def adopt(self, key: str, versions: Iterable[int]) -> None:
        """Begin the export of versions that the database does not know."""
        with self._durable(ExportStep.MAKING):
            self.reported(key, versions)

    def known(self) -> dict[str, int]:
        """Return the number of versions of each study that has any here."""
        query = "SELECT study_key, count(*) FROM exports GROUP BY study_key"
        return {row[0]: row[1] for row in self._database.execute(query)}

    def making(self) -> list[Export]:
        """Return the exports whose objects are to be made: the oldest first, versions in order."""
        order = "min(rowid) OVER (PARTITION BY study_key), version"
        return self._found(f"step = 'making' ORDER BY {order}")

    def of(self, key: str) -> list[Export]:
        """Return the exports of one study, by version."""
        return self._found("study_key = ? ORDER BY version", key)

    def unmade(self, *, every: bool = False) -> list[Export]:
        """Return the exports whose objects cannot be made; ``every``: those without objects too."""
        steps = "'none', 'not made'" if every else "'not made'"
        return self._found(f"step IN ({steps}) ORDER BY step DESC, rowid")

    def count_attempt(self, export: Export, by: int = 1) -> None:
        """Count an attempt to make objects before it begins, or take it back with -1."""
        with transaction(self._database):
            self._database.execute(
                "UPDATE exports SET attempts = max(0, attempts + ?)"
                " WHERE study_key = ? AND version = ?",
                (by, export.study_key, export.version),
            )

    def made(self, export: Export, sent: Collection[str] = ()) -> None:
        """Note that the objects are made; begin a delivery to each target.

        The targets in ``sent`` have them already, as the files say.
        """
        key = (export.study_key, export.version)
        with self._durable(ExportStep.MADE):
            if not self._move(export, ExportStep.MADE, ""):
                return
            steps = {t: "sent" if t in sent else "sending" for t in self.targets}
            self._database.executemany(
                "INSERT OR IGNORE INTO deliveries (study_key, version, target, step, created)"
                " VALUES (?, ?, ?, ?, ?)",
                [(*key, target, step, _now()) for target, step in steps.items()],
            )

    def not_made(self, export: Export, reason: str, *, is_fault: bool) -> None:
        """Note why there are no objects, for a fault NOT_MADE, else NONE; drop what was due."""
        step = ExportStep.NOT_MADE if is_fault else ExportStep.NONE
        with self._durable(step):
            self._move(export, step, reason)
            self._database.execute(
                "DELETE FROM deliveries WHERE study_key = ? AND version = ?",
                (export.study_key, export.version),
            )

    def due(self, target: str) -> Iterator[Delivery]:
        """Yield what may be sent to a target now, the oldest first.

        A version waits while an older one of its study is not made, or not sent there.
        """
        rows = self._database.execute(
            "SELECT d.* FROM deliveries AS d JOIN exports AS e USING (study_key, version)"
            " WHERE d.target = ? AND d.step = 'sending' AND e.step = 'made'"
            " AND NOT EXISTS (SELECT 1 FROM deliveries AS b WHERE b.study_key = d.study_key"
            " AND b.target = d.target AND b.version < d.version AND b.step = 'sending')"
            " AND NOT EXISTS (SELECT 1 FROM exports AS b WHERE b.study_key = d.study_key"
            " AND b.version < d.version AND b.step = 'making')"
            " ORDER BY d.rowid",
            (target,),
        ).fetchall()
        return map(_delivery, rows)

    def resends(self, target: str) -> int:
        """Return how often persons have resent what waits for a target."""
        query = "SELECT coalesce(sum(resends), 0) FROM deliveries WHERE target = ? AND step = ?"
        row = self._database.execute(query, (target, DeliveryStep.SENDING.value)).fetchone()
        return int(row[0])

    def begin_attempt(self, delivery: Delivery) -> bool:
        """Count an attempt before it begins; return whether the delivery still waits."""
        with self._durable(DeliveryStep.TRYING):
            changed = self._database.execute(
                f"UPDATE deliveries SET attempts = attempts + 1 WHERE {_WAITS}", _key(delivery)
            )
        return changed.rowcount == 1

    def ended(
        self,
        delivery: Delivery,
        step: DeliveryStep,
        reason: str = "",
        stored: Iterable[str] = (),
        *,
        counts: bool = True,
    ) -> None:
        """Note how an attempt has ended, and which objects the target has accepted in it.

        SENT says that it has all that it takes, with a reason why it lacks others. DEAD makes a
        dead letter, and with SENDING it is tried again. An attempt for which the objects are not to
        blame does not count, and is taken back.
        """
        attempts = delivery.attempts + int(counts)
        objects, reason = sorted({*delivery.stored, *stored}), _storable(reason)
        values = (step.value, attempts, json.dumps(objects), reason)
        with self._durable(step):
            changed = self._database.execute(
                "UPDATE deliveries SET step = ?, attempts = ?, stored = ?, reason = ?"
                f" WHERE {_WAITS}",
                (*values, *_key(delivery)),
            )
            is_end = step is DeliveryStep.DEAD or (step is DeliveryStep.SENT and objects)
            if changed.rowcount == 1 and is_end:
                self._trail.record(
                    Event.DELIVERED,
                    study_key=delivery.study_key,
                    version=delivery.version,
                    target=delivery.target,
                    outcome="dead letter" if step is DeliveryStep.DEAD else "sent",
                    objects=objects,
                    **({"reason": reason} if reason else {}),
                )

    def not_taken(self, target: str) -> list[NotTaken]:
        """Return the classes that a target refuses."""
        query = "SELECT sop_class, reason, attempts, since FROM not_taken WHERE target = ?"
        rows = self._database.execute(query, (target,)).fetchall()
        return [NotTaken(name=UID(row["sop_class"]).name, **dict(row)) for row in rows]

    def note_answers(self, target: str, reasons: Mapping[str, str]) -> bool:
        """Note by SOP class why a target refuses it; with an empty reason, that it takes it.

        Return whether it takes one that it refused: what it lacks of older versions is then due.
        """
        with transaction(self._database):
            again = self._database.executemany(
                "DELETE FROM not_taken WHERE target = ? AND sop_class = ?",
                [(target, one) for one, why in reasons.items() if not why],
            )
            if again.rowcount > 0:
                self._database.execute(
                    "UPDATE deliveries SET step = 'sending', reason = '', attempts = 0, created = ?"
                    " WHERE target = ? AND step = 'sent' AND reason != ''",
                    (_now(), target),
                )
            self._database.executemany(
                "INSERT INTO not_taken VALUES (?, ?, ?, 1, ?) ON CONFLICT DO UPDATE SET"
                " reason = excluded.reason, attempts = attempts + 1",
                [(target, one, why, _now()) for one, why in reasons.items() if why],
            )
        return again.rowcount > 0

    def resend(
        self, key: str, versions: Sequence[int], targets: Sequence[str], by: Person | None = None
    ) -> None:
        """Make deliveries due again, whatever step they are at, and those that never were.

        Objects that cannot be made are tried again too. ``by`` is for the audit trail: who wants
        it, by default the user of this process.
        """
        places = [(key, version, target) for version in versions for target in targets]
        with self._durable(DeliveryStep.SENDING):
            who, what = by or Person.here(), {"versions": [*versions], "targets": [*targets]}
            self._trail.record(Event.RESENT, study_key=key, **what, **who.fields)
            self._database.executemany(
                "INSERT INTO exports (study_key, version, step) VALUES (?, ?, 'making')"
                " ON CONFLICT DO UPDATE SET step = 'making', attempts = 0, reason = ''"
                " WHERE step IN ('none', 'not made')",
                sorted({place[:2] for place in places}),
            )
            self._database.executemany(
                "INSERT INTO deliveries (study_key, version, target, step, resends, created)"
                " VALUES (?, ?, ?, 'sending', 1, ?)"
                " ON CONFLICT DO UPDATE SET step = 'sending', attempts = 0, stored = '[]',"
                " reason = '', resends = resends + 1, created = excluded.created",
                [(*place, _now()) for place in places],
            )

    def deliveries(self, *steps: DeliveryStep) -> list[Delivery]:
        """Return the deliveries at these steps, the oldest first."""
        marks = ", ".join("?" * len(steps))
        rows = self._database.execute(
            f"SELECT * FROM deliveries WHERE step IN ({marks}) ORDER BY rowid",
            [step.value for step in steps],
        )
        return [_delivery(row) for row in rows]

    def backlogs(self) -> dict[str, Backlog]:
        """Return the backlog of each target, also of one that is not set up any more."""
        rows = self._database.execute(
            "SELECT target, sum(step = 'sending'), sum(step = 'dead'),"
            " min(CASE step WHEN 'sending' THEN created END)"
            " FROM deliveries WHERE step != 'sent' GROUP BY target"
        )
        found = dict.fromkeys(self.targets, Backlog())
        now = datetime.now(UTC)
        for target, waiting, dead, oldest in rows:
            since = now if oldest is None else datetime.fromisoformat(oldest)
            found[target] = Backlog(waiting, max(0.0, (now - since).total_seconds()), dead)
        return found

    def held(self, *, studies: bool = False) -> set[str]:
        """Return the studies whose reports are needed: not all targets have all objects.

        A dead letter needs them until a person has dealt with it, and so do objects that cannot be
        made, with the images (``studies``). A target that is not set up any more needs nothing.
        """
        query, given = "SELECT study_key FROM exports WHERE step = 'not made'", list[str]()
        if not studies:
            marks, given = ", ".join("?" * len(self.targets)), [*self.targets]
            query += " OR step = 'making' UNION SELECT study_key FROM deliveries"
            query += f" WHERE step != 'sent' AND target IN ({marks})"
        rows = self._database.execute(query, given) if self.targets else ()
        return {row[0] for row in rows}

    def forget_report(self, key: str) -> None:
        """Delete the rows of a study whose report is gone; part of another's transaction."""
        self._database.execute("DELETE FROM exports WHERE study_key = ?", (key,))

    def _found(self, where: str, *values: str) -> list[Export]:
        rows = self._database.execute(f"SELECT * FROM exports WHERE {where}", values)
        return [Export(**dict(row) | {"step": ExportStep(row["step"])}) for row in rows]

    def _move(self, export: Export, step: ExportStep, reason: str) -> bool:
        changed = self._database.execute(
            "UPDATE exports SET step = ?, attempts = 0, reason = ?"
            " WHERE study_key = ? AND version = ? AND step = 'making'",
            (step.value, _storable(reason), export.study_key, export.version),
        )
        return changed.rowcount == 1


def _delivery(row: sqlite3.Row) -> Delivery:
    stored = tuple(json.loads(row["stored"]))
    return Delivery(**dict(row) | {"step": DeliveryStep(row["step"]), "stored": stored})


def _key(delivery: Delivery) -> tuple[str, int, str, int]:
    return delivery.study_key, delivery.version, delivery.target, delivery.resends


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _now() -> str:
    return datetime.now(UTC).isoformat()
