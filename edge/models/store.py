"""Which model is active, which was before, which is in shadow; and who may change it.

One row of the agent's database, and a record of the audit trail in the same transaction: nothing
is promoted without a record of who did it. Agent, commands and status page open it for each use,
while the agent runs or not; the agent sees a change between two studies. A lost database takes the
choice with it: then the model of the settings is active.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import structlog

from edge.audit import AuditTrail, Event
from edge.database import BUSY_S, Migration, require_current, transaction
from edge.folders import other_user
from edge.models.agreement import Agreement, Compared, agreement_of
from edge.models.folder import (
    ModelUpdateError,
    NotPromotable,
    UpdatesOff,
    folder_of,
    signed_package,
)
from edge.site import Site
from edge.store.studies import all_migrations
from models.runtime.errors import ModelError
from models.runtime.package import Package

SHIPPED = ""
"""Stands for the model of the setting ``screening_model`` in the package's own folder."""
AGENT = "agent"
"""Who acts, in the audit trail, where no person does."""
MAX_COMPARED = 1000
"""Studies of one model whose comparison is kept; the oldest are removed."""

_TABLES = """
CREATE TABLE IF NOT EXISTS model_choice (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    active TEXT NOT NULL,
    previous TEXT, -- NULL: there is none
    shadow TEXT, -- NULL: there is none
    changed TEXT NOT NULL,
    changed_by TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS model_packages (
    version TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    engine TEXT NOT NULL, -- that runs the model
    rejected INTEGER NOT NULL DEFAULT 0, -- it was rolled back
    fetched TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS model_compared (
    version TEXT NOT NULL,
    active TEXT NOT NULL, -- what it was compared with
    study_key TEXT NOT NULL,
    created TEXT NOT NULL,
    findings INTEGER NOT NULL,
    kept INTEGER NOT NULL,
    added INTEGER NOT NULL,
    regions_before INTEGER NOT NULL,
    regions_after INTEGER NOT NULL,
    pairs INTEGER NOT NULL,
    logit_median REAL,
    logit_p95 REAL,
    before_s REAL NOT NULL,
    after_s REAL NOT NULL,
    PRIMARY KEY (version, active, study_key)
);
"""

MIGRATIONS = (Migration(5, _TABLES),)

log = structlog.get_logger()


@dataclass(frozen=True)
class Choice:
    """The versions in use; `SHIPPED` is that of the settings, None is none."""

    active: str = SHIPPED
    previous: str | None = None
    shadow: str | None = None
    changed: str = ""
    changed_by: str = ""

    @property
    def versions(self) -> set[str]:
        """All versions that are needed, without the shipped one."""
        return {one for one in (self.active, self.previous, self.shadow) if one}


@dataclass(frozen=True)
class StoredPackage:
    """What is known of a package that was fetched: its model, and the engine that runs it."""

    version: str
    name: str
    engine: str
    rejected: bool = False
    fetched: str = ""


@dataclass(frozen=True)
class ShadowState:
    """The model in shadow: how far it agrees with the active one, and what speaks against it."""

    version: str
    name: str
    agreement: Agreement
    problems: tuple[str, ...]


@dataclass(frozen=True)
class ModelsState:
    """Which models there are, and what each is used for."""

    choice: Choice
    packages: tuple[StoredPackage, ...]
    shadow: ShadowState | None


class ModelStore:
    """Choice, packages and comparisons in an open database."""

    def __init__(self, database: sqlite3.Connection, trail: AuditTrail) -> None:
        self.database, self.trail = database, trail

    def choice(self) -> Choice:
        """Return which versions are in use."""
        query = "SELECT active, previous, shadow, changed, changed_by FROM model_choice"
        row = self.database.execute(query).fetchone()
        return Choice() if row is None else Choice(*row)

    def package(self, version: str | None) -> StoredPackage | None:
        """Return one package; None if it is not known."""
        return next((one for one in self.packages() if one.version == version), None)

    def packages(self) -> list[StoredPackage]:
        """Return all packages, the last one first."""
        rows = self.database.execute("SELECT * FROM model_packages ORDER BY rowid DESC")
        return [StoredPackage(**{**row, "rejected": bool(row["rejected"])}) for row in rows]

    def shadow(self, package: StoredPackage, **facts: Any) -> None:
        """Store a package that is here, and try it in shadow."""
        with transaction(self.database):
            before = self.choice()
            self.database.execute(
                "INSERT INTO model_packages (version, name, engine, rejected, fetched)"
                " VALUES (?, ?, ?, 0, ?) ON CONFLICT (version) DO UPDATE SET"
                " engine = excluded.engine, rejected = 0",
                (package.version, package.name, package.engine, _now()),
            )
            self.trail.record(Event.MODEL_FETCHED, version=package.version, **facts)
            if package.version not in (before.shadow, before.active):
                self.choose(replace(before, shadow=package.version), facts["user"])
                self.trail.record(Event.MODEL_SHADOWED, version=package.version, user=facts["user"])

    def leave(self, event: Event, to: str, by: str, **facts: Any) -> None:
        """Make another version the active one, in the transaction that is open.

        The one that was active is not tried by itself again. The way back to the shipped one stays.
        """
        before = self.choice()
        self.database.execute(
            "UPDATE model_packages SET rejected = 1 WHERE version = ?", (before.active,)
        )
        previous = None if to == SHIPPED else SHIPPED
        self.choose(replace(before, active=to, previous=previous), by)
        self.trail.record(event, version=before.active, to=to, **facts)

    def replace_active(self, version: str, reason: str) -> None:
        """Make another version the active one because it cannot be opened."""
        with transaction(self.database):
            self.leave(Event.MODEL_REPLACED, version, AGENT, reason=reason)

    def refuse(self, version: str, reason: str, user: str) -> None:
        """Record that what came was discarded; it is not in shadow any more."""
        with transaction(self.database):
            before = self.choice()
            if before.shadow == version:
                self.choose(replace(before, shadow=None), user)
            if version not in (before.active, before.previous):
                self._forget(version)
            self.trail.record(Event.MODEL_REFUSED, version=version, reason=reason, user=user)

    def forget(self, version: str) -> None:
        """Forget a package whose files were removed, with its comparisons."""
        with transaction(self.database):
            self._forget(version)

    def add_compared(self, version: str, active: str, study_key: str, compared: Compared) -> None:
        """Store the comparison of one study."""
        values = {"version": version, "active": active,
                  "study_key": study_key, "created": _now(), **asdict(compared)}  # fmt: skip
        marks = ", ".join(f":{name}" for name in values)
        with transaction(self.database):
            self.database.execute(
                f"INSERT OR REPLACE INTO model_compared ({', '.join(values)}) VALUES ({marks})",
                values,
            )
            self.database.execute(
                "DELETE FROM model_compared WHERE rowid IN (SELECT rowid FROM model_compared"
                " WHERE version = ? ORDER BY rowid DESC LIMIT -1 OFFSET ?)",
                (version, MAX_COMPARED),
            )

    def compared(self, version: str, active: str) -> list[Compared]:
        """Return the comparisons of a version with the active one, the first study first."""
        names = ", ".join(field.name for field in fields(Compared))
        rows = self.database.execute(
            f"SELECT {names} FROM model_compared WHERE version = ? AND active = ? ORDER BY rowid",
            (version, active),
        )
        return [Compared(*row) for row in rows]

    def choose(self, choice: Choice, user: str) -> None:
        """Store a choice, in the transaction that is open.

        When it changed and by whom is that of the active model.
        """
        before = self.choice()
        if before.active != choice.active:
            changed = _now(), user
        else:
            changed = before.changed, before.changed_by
        self.database.execute(
            "INSERT OR REPLACE INTO model_choice VALUES (1, ?, ?, ?, ?, ?)",
            (choice.active, choice.previous, choice.shadow, *changed),
        )

    def _forget(self, version: str) -> None:
        for table in ("model_packages", "model_compared"):
            self.database.execute(f"DELETE FROM {table} WHERE version = ?", (version,))


@contextmanager
def open_models(site: Site) -> Iterator[ModelStore]:
    """Open the store in the agent's database, which must exist.

    Raises:
        UpdatesOff: there is no database.
        OtherVersion: it is of another version of the program.
        sqlite3.Error: it is damaged, or does not answer.
    """
    path = site.database
    if not path.is_file():  # opening would make one, which may belong to another user
        raise UpdatesOff(f"{path} is missing: start the agent, which makes it")
    uri = f"{path.as_uri()}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_S)) as database:
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA synchronous = FULL")
        require_current(database, path, all_migrations(site.schema))
        yield ModelStore(database, site.schema.audit(database, lambda _step, _durable: None))


def models_state(site: Site) -> ModelsState:
    """Return the state of all models; errors as `open_models`."""
    with open_models(site) as store:
        choice, shadow = store.choice(), None
        if (package := store.package(choice.shadow)) is not None:
            agreement = agreement_of(store.compared(package.version, choice.active))
            problems = tuple(agreement.problems())
            shadow = ShadowState(package.version, package.name, agreement, problems)
        return ModelsState(choice, tuple(store.packages()), shadow)


def promote(site: Site, *, user: str, version: str | None = None, force: bool = False) -> str:
    """Make the model in shadow, or another ``version``, the active one; return its version.

    ``force`` does it although it agrees too little or was compared in too few studies.

    Raises:
        NotPromotable: there is none, it is damaged, or something speaks against it.
        UpdatesOff: this is not the agent's user, or there is no database.
    """
    require_owner(site)
    with open_models(site) as store, transaction(store.database):
        choice = store.choice()
        package = store.package(version or choice.shadow)
        if package is None:
            known = ", ".join(one.version for one in store.packages()) or "none"
            raise NotPromotable(f"no model {version or 'in shadow'}; there are: {known}")
        if package.version == choice.active:
            raise NotPromotable(f"{package.version} is active already")
        found = require_sound(package, site)
        agreement = agreement_of(store.compared(package.version, choice.active))
        problems = agreement.problems()
        if problems and not force:
            raise NotPromotable(f"{'; '.join(problems)}; --force promotes it even so")
        shadow = None if choice.shadow == package.version else choice.shadow
        store.choose(Choice(package.version, choice.active, shadow), user)
        store.trail.record(
            Event.MODEL_PROMOTED,
            version=package.version,
            previous=choice.active,
            user=user,
            model=found.model.name,
            sha256=found.model.sha256,
            signed_by=found.model.signed_by,
            studies=agreement.studies,
            kept=agreement.kept,
            findings=agreement.findings,
            forced=bool(problems),
            against=problems,
        )
    log.info("model promoted", version=package.version, by=user, forced=bool(problems))
    return package.version


def roll_back(site: Site, *, user: str) -> str:
    """Make the previous model the active one again; return its version, empty for the shipped one.

    Raises:
        NotPromotable: there is none, or it is damaged.
        UpdatesOff: this is not the agent's user, or there is no database.
    """
    require_owner(site)
    with open_models(site) as store, transaction(store.database):
        previous = store.choice().previous
        if previous is None:
            raise NotPromotable("there is no model to go back to: that of the settings is active")
        package = store.package(previous)
        if package is not None:
            require_sound(package, site)
        elif previous != SHIPPED:
            raise NotPromotable(f"the previous model {previous} is gone")
        store.leave(Event.MODEL_ROLLED_BACK, previous, user, user=user)
    log.info("model rolled back", to=previous or site.settings.screening_model, by=user)
    return previous


def require_owner(site: Site) -> None:
    """Raise `UpdatesOff` if this is another user than the agent's, who could not read the files."""
    if note := other_user(site.folders):
        raise UpdatesOff(note)


def require_sound(package: StoredPackage, site: Site) -> Package:
    """Return a package whose file is sound and signed.

    Raises:
        NotPromotable: it is not.
    """
    try:
        folder, keys = folder_of(site, package.version), site.settings.models.keys
        found = signed_package(package.name, folder, keys)
        found.model.stored()
    except (ModelError, ModelUpdateError) as error:
        raise NotPromotable(f"{package.version} cannot be used: {error}") from error
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
