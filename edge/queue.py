"""What waits, is read, is pending or was refused, as the command line shows it; and the way back.

Nothing here changes a study in the database. A study goes back by moving its files into the inbox,
which is safe while the agent runs: it is then a new study, with a new key and a report of its own.
The audit trail says who did it.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edge.agent.claim import missing_room
from edge.agent.inbox import InboxEntry, inspect_entry, is_study, obstacle_to, reason_of
from edge.atomic_files import copy_whole, move, remove, sync_folder
from edge.audit import Event, Person
from edge.errors import EdgeError
from edge.folders import AgentFolders
from edge.report.model import Status
from edge.report.serialize import own_report
from edge.site import Site
from edge.store.pending import PendingStep
from edge.store.record import Record, Step
from edge.store.studies import StudyStore

STATES = {
    Step.CLAIMING: "moving in",
    Step.CLAIMED: "waiting",
    Step.JOINING: "joining",
    Step.READING: "reading",
    Step.REPORTED: "reported",
    Step.QUARANTINING: "refused",
    Step.QUARANTINED: "refused",
    Step.DONE: "done",
}

BLOCKED = "blocked"
"""State of a study in the inbox that the agent's user may not move or read."""


class NoSuchStudy(EdgeError):
    """No study of this name or key can be read again."""


@dataclass(frozen=True)
class Queued:
    """One study of the agent, or one that arrives.

    Attributes:
        name: of its folder or file in the inbox.
        study_key: empty while it lies in the inbox.
        state: ``arriving``, `BLOCKED`, ``pending`` or one of `STATES`.
        attempts: started readings; for a pending read, retries since the last verdict.
        age_s: since it last changed; for a pending read, the time that agents ran since.
        reason: why it is in this state; may be empty.
        report: its folder in the outbox; empty while it lies in the inbox.
    """

    name: str
    study_key: str
    state: str
    attempts: int
    age_s: float
    reason: str
    report: str


def queued(site: Site, *, everything: bool = False) -> list[Queued]:
    """Return all studies that are not done, and the pending reads; with ``everything`` all.

    Raises:
        InvalidDatabase: the database cannot be opened, or is damaged.
        OSError: the inbox cannot be listed.
    """
    folders = site.folders
    found = [*arriving(folders.inbox, site.settings.quiet_s)]
    if not site.database.is_file():
        return found
    with site.opened() as store:
        records = {record.id: record for record in store.at(*Step)}
        pending = [
            Queued(
                records[read.study_key].name,
                read.study_key,
                "pending",
                read.attempts,
                read.age_s,
                read.reason,
                records[read.study_key].report_name,
            )
            for read in store.pending.at(PendingStep.PENDING, PendingStep.AMENDING)
            if read.study_key in records
        ]
    for record in records.values():
        if everything or (record.step is not Step.DONE and is_here(record, folders)):
            found.append(_of(record, folders))
    return [*found, *pending]


def requeue(wanted: str | None, site: Site, by: Person | None = None) -> list[str]:
    """Move studies back into the inbox; return their names.

    ``wanted`` is the name or the key of one that is refused or done; None stands for all that are
    refused. ``by`` is who wants it, by default this user. It may be repeated after a crash at any
    point.

    Raises:
        NoSuchStudy: there is none, or several; or the inbox has another of this name.
        InvalidDatabase: the database cannot be opened, or is damaged.
        OSError: files cannot be moved.
    """
    folders, path = site.folders, site.database
    if not path.is_file():  # opening would make one, which may belong to another user
        raise NoSuchStudy(f"{path} is missing: start the agent, which makes it from the folders")
    with site.opened() as store:
        records = [r for r in store.at(Step.QUARANTINED, Step.DONE) if is_here(r, folders)]
        others = store.parts.keys() - {wanted}  # a later part may have the name of its study
        chosen = _chosen(wanted, [r for r in records if wanted is None or r.id not in others])
        for record in chosen:
            _bring_back(record, folders, store, by or Person.here())
    return [record.name for record in chosen]


def _chosen(wanted: str | None, records: list[Record]) -> list[Record]:
    """Return the studies that are meant, of those whose files are here."""
    if wanted is None:
        return [record for record in records if record.step is Step.QUARANTINED]
    chosen = [record for record in records if wanted in (record.id, record.name)]
    chosen = chosen or [record for record in records if wanted == record.report_name]
    if len(chosen) > 1:
        keys = ", ".join(record.id for record in chosen)
        raise NoSuchStudy(f"{wanted}: there are several, choose one by its key: {keys}")
    if not chosen:
        raise NoSuchStudy(f"{wanted}: no study of this name or key is refused or done")
    return chosen


def _bring_back(record: Record, folders: AgentFolders, store: StudyStore, by: Person) -> None:
    """Move a study into the inbox: what belongs to a header first, so that it is never alone."""
    source = _place(record, folders)
    present = [member for member in record.members if os.path.lexists(source / member)]
    for member in reversed(present):
        if os.path.lexists(folders.inbox / member):
            raise NoSuchStudy(f"{member}: the inbox has another of this name, wait for its report")
    store.trail.record(Event.REQUEUED, study_key=record.id, name=record.name, **by.fields)
    for member in reversed(present):
        try:
            move(source / member, folders.inbox / member)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            copy_whole(source / member, folders.inbox / member)
            remove(source / member)
    remove(source.parent if record.step is Step.QUARANTINED else source)
    sync_folder(source.parent.parent if record.step is Step.QUARANTINED else source.parent)


def _place(record: Record, folders: AgentFolders) -> Path:
    if record.step is Step.QUARANTINED:
        return folders.quarantine / record.id / "study"
    return (folders.done if record.step is Step.DONE else folders.work) / record.id


def is_here(record: Record, folders: AgentFolders) -> bool:
    """Return whether the files of a study that came to its end are still in their folder."""
    ended = record.step in (Step.QUARANTINED, Step.DONE)
    return not ended or os.path.lexists(_place(record, folders) / record.name)


def arriving(inbox: Path, quiet_s: float) -> Iterator[Queued]:
    """Yield the studies in the inbox; whether one is blocked depends on the user who runs this.

    Raises:
        OSError: the inbox cannot be listed.
    """
    names = set(os.listdir(inbox)) if inbox.is_dir() else set[str]()
    for name in sorted(names):
        try:
            if is_study(inbox / name):
                entry = inspect_entry(inbox, name, names)
                age_s = max(0.0, time.time() - entry.changed)
                blocked = obstacle_to(inbox, entry.members)
                state, reason = BLOCKED if blocked else "arriving", _why_it_waits(entry, quiet_s)
                yield Queued(name, "", state, 0, age_s, blocked or reason, "")
        except FileNotFoundError:  # the agent has taken it meanwhile
            continue
        except OSError as error:
            yield Queued(name, "", BLOCKED, 0, 0.0, reason_of(error, inbox / name), "")


def is_provisional(record: Record, folders: AgentFolders) -> bool:
    """Return whether a study's report says that it may change."""
    report = own_report(folders.outbox / record.report_name / "report.json", record.id)
    return report is not None and report.status is Status.PROVISIONAL


def _why_it_waits(entry: InboxEntry, quiet_s: float) -> str:
    if entry.marked:
        return "complete"
    if entry.lacks_data:
        return "its data file is missing"
    if entry.unfinished:
        return "its transfer has not finished"
    if not entry.fingerprint:
        return "empty"
    return f"complete when nothing changes for {quiet_s:g} s"


def _of(record: Record, folders: AgentFolders) -> Queued:
    updated = datetime.fromisoformat(record.updated)
    age_s = max(0.0, (datetime.now(UTC) - updated).total_seconds())
    reason = f"{record.kind}: {record.reason.splitlines()[0]}" if record.reason else record.kind
    reason = room_wanted(record, folders) or reason
    state = STATES[record.step]
    return Queued(record.name, record.id, state, record.attempts, age_s, reason, record.report_name)


def room_wanted(record: Record, folders: AgentFolders) -> str:
    """Return for how much room a study waits that is moving in; empty if it does not."""
    with suppress(OSError):  # it was copied meanwhile, or this user may not look
        return missing_room(record, folders) if record.step is Step.CLAIMING else ""
    return ""
