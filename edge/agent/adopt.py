"""Adopt studies that lie in the agent's folders and that its database does not know.

After a damaged or lost database the files say what remains to be done. A study in ``work`` is
claimed again under its own key, and a report of it that is out counts as usual. A study in ``done``
or ``quarantine`` gets its row back. Pending reads are lost with the database: a provisional report
is given up in a last version, because no verdict will come. What is to be sent to targets is found
out again from the reports.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import structlog

from edge.agent.claim import free_report_names, resume_claim, staging_folder
from edge.agent.inbox import data_file, is_study
from edge.agent.study import UNFINISHED
from edge.folders import AgentFolders
from edge.job import KEY_CHARACTERS
from edge.report.folder import OWNER, owner_of, release_folder
from edge.report.model import ChangeKind
from edge.report.serialize import own_report
from edge.report.write import exported_versions, give_up_report, version_in
from edge.store.later_parts import LaterPart
from edge.store.record import Step
from edge.store.studies import Change, StudyStore
from imaging.dicom.arrival import arrived
from imaging.files import VOLUME_SUFFIXES

log = structlog.get_logger()


def strays(folders: AgentFolders, store: StudyStore) -> list[tuple[str, Step]]:
    """Return the studies in the agent's folders that have no row, with the step of their row.

    Raises:
        OSError: a folder cannot be listed.
    """
    known = store.keys()
    found = {
        Step.CLAIMING: _keys(folders.work) | _keys(folders.inbox, staging_folder("")),
        Step.DONE: _keys(folders.done),
        Step.QUARANTINED: _keys(folders.quarantine),
    }
    return [(key, step) for step, keys in found.items() for key in sorted(keys - known)]


def settle(folders: AgentFolders, store: StudyStore) -> None:
    """Bring rows up to the files, where a database is older than these: an old backup, say.

    Raises:
        sqlite3.OperationalError: nothing can be written now; call again later.
    """
    for record in store.at(Step.CLAIMING, *UNFINISHED):
        # a later part of a study may have put away what the study had already
        if record.step is Step.JOINING or (folders.work / record.id).exists():
            continue
        if (folders.done / record.id).exists():
            out = folders.outbox / record.report_name
            if not store.pending.has(record.id):
                give_up_report(out, record.id)
            change = Change(versions=exported_versions(out, record.id))
            store.settle(record.id, Step.DONE, change)
        elif record.step is Step.QUARANTINING:
            continue  # its row has the reason, which may not be written yet
        elif (folders.quarantine / record.id / "study").exists():
            reason = _reason(folders.quarantine / record.id / "reason.json")
            versions = exported_versions(folders.outbox / record.report_name, record.id)
            store.settle(record.id, Step.QUARANTINED, Change(reason, versions=versions))


def reports_by_study(outbox: Path) -> dict[str, str]:
    """Return the folder of each report by the key of its study."""
    return {owner_of(path): path.name for path in outbox.iterdir() if path.is_dir()}


def release_unused(folders: AgentFolders, store: StudyStore) -> None:
    """Remove the folders that claims made for reports, and of which the database knows nothing.

    Such a study is still in the inbox, and its report shall have its name. Only empty ones go.
    """
    known = store.keys()
    for folder in [path for path in folders.outbox.iterdir() if path.is_dir()]:
        names = [path.name for path in folder.iterdir()]
        key = names[0].removeprefix(OWNER) if len(names) == 1 else ""
        if (
            re.fullmatch(f"[0-9a-f]{{{KEY_CHARACTERS}}}", key)
            and names[0] != key
            and key not in known
        ):
            release_folder(folder, key)


def adopt(
    key: str, step: Step, reports: Mapping[str, str], folders: AgentFolders, store: StudyStore
) -> None:
    """Give the study its row, and finish its claim; it may be repeated after a crash.

    ``reports`` are those of `reports_by_study`.

    Raises:
        OSError, sqlite3.OperationalError: nothing can be written now; call again later.
    """
    claims, known = step is Step.CLAIMING, [reports[key]] if key in reports else []
    refused = folders.quarantine / key
    own = {
        Step.CLAIMING: (folders.work / key, folders.inbox / staging_folder(key)),
        Step.DONE: (folders.done / key,),
        Step.QUARANTINED: (refused / "study",),
    }[step]
    if step is Step.DONE and known:
        # before the row: a study that has one is not adopted again
        give_up_report(folders.outbox / known[0], key)
    record, members = None, _members(own, folders.inbox if claims else None)
    if members:
        if claims and known:
            _adopt_later_parts(key, own[0] / members[0], folders.outbox / known[0], store)
        names = chain(known, free_report_names(members[0], folders.outbox))
        # those of a study that is claimed are exported once it is read
        exported = known if not claims and store.extensions else []
        versions = [v for name in exported for v in exported_versions(folders.outbox / name, key)]
        # one that left quarantine may have its reason there yet, after a crash
        reason = _reason(refused / "reason.json") if step is Step.QUARANTINED else {}
        record = store.adopt(key, step, members, names, Change(reason, versions=versions))
    if record is None:
        for empty in own if claims else ():
            with suppress(OSError):  # made for a study that was not moved
                empty.rmdir()
        return
    log.warning("study adopted", study_key=key, step=step.value)
    if claims:
        resume_claim(record, folders, store)


def _keys(folder: Path, prefix: str = "") -> set[str]:
    """Return the study keys after which entries of the folder are named."""
    matches = (
        re.fullmatch(f"{re.escape(prefix)}([0-9a-f]{{{KEY_CHARACTERS}}})", path.name)
        for path in folder.iterdir()
    )
    return {match[1] for match in matches if match}


def _members(own: Sequence[Path], inbox: Path | None = None) -> tuple[str, ...]:
    """Return the names of a study and of what belongs to it, the study itself first.

    The data file that a header names may still lie in the ``inbox``.
    """
    found = [path for folder in own if folder.is_dir() for path in folder.iterdir()]
    # hidden are copies that were interrupted, and a report that was being written
    paths = {path.name: path for path in found if not path.name.startswith(".")}
    names = sorted(paths, key=lambda name: (not name.lower().endswith(VOLUME_SUFFIXES), name))
    data = data_file(paths[names[0]]) if names else ""
    if data and data not in paths and inbox:
        waiting = inbox / data
        names += [data] if os.path.isfile(waiting) and not is_study(waiting) else []
    return tuple(names)


def _adopt_later_parts(key: str, study: Path, out: Path, store: StudyStore) -> None:
    """Note the images that joined the study and are not in its report: it is read again."""
    report = own_report(out / "report.json", key)
    reported = sum(one.kind is ChangeKind.MORE_IMAGES for one in report.changes) if report else 0
    parts = sorted(study.glob("part-*"), key=lambda path: path.stat().st_mtime)
    version = max(1, version_in(out, key)) + 1
    for part in parts[reported:]:
        images = sum(1 for _ in arrived(part))
        store.parts.put(part.name.removeprefix("part-"), LaterPart(key, images, version))


def _reason(path: Path) -> dict[str, str]:
    try:
        values = json.loads(path.read_bytes())
        return {name: str(values[name]) for name in ("kind", "reason", "file")}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return {}
