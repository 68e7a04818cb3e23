"""Adopt studies that lie in the agent's folders and that its database does not know.

After a damaged or lost database the files say what remains to be done. A study in ``work`` is
claimed again under its own key, and a report of it that is out counts as usual. A study in ``done``
or ``quarantine`` gets its row back. Pending reads are lost with the database: a provisional report
is given up in a last version, because no verdict will come.
"""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import structlog

from edge.agent.claim import free_report_names, resume_claim, staging_folder
from edge.agent.folders import AgentFolders
from edge.agent.inbox import VOLUME_SUFFIXES, data_file
from edge.report.folder import owner_of
from edge.report.write import give_up_report
from edge.store.studies import Record, Step, StudyStore

LOST = "the request for it was lost with the database of the agent"
"""Why the second reading of an adopted study does not come."""

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


def reports_by_study(outbox: Path) -> dict[str, str]:
    """Return the folder of each report by the key of its study."""
    return {owner_of(path): path.name for path in outbox.iterdir() if path.is_dir()}


def adopt(
    key: str, step: Step, reports: Mapping[str, str], folders: AgentFolders, store: StudyStore
) -> None:
    """Give the study its row, and finish its claim; it may be repeated after a crash.

    ``reports`` are those of `reports_by_study`.

    Raises:
        OSError, sqlite3.OperationalError: nothing can be written now; call again later.
    """
    # before the row: a study that has one is not adopted again
    if key in reports and give_up_report(folders.outbox / reports[key], key, LOST):
        log.warning("pending read lost, report given up", study_key=key)
    record = _insert(key, step, reports, folders, store)
    if record is None:
        return
    log.warning("study adopted", study_key=key, step=step.value)
    if step is Step.CLAIMING:
        resume_claim(record, folders, store)


def _keys(folder: Path, prefix: str = "") -> set[str]:
    """Return the study keys after which entries of the folder are named."""
    matches = (
        re.fullmatch(f"{re.escape(prefix)}([0-9a-f]{{32}})", p.name) for p in folder.iterdir()
    )
    return {match[1] for match in matches if match}


def _insert(
    key: str, step: Step, reports: Mapping[str, str], folders: AgentFolders, store: StudyStore
) -> Record | None:
    """Insert the row; return None where the folders are empty, or cannot be adopted yet."""
    reason: Mapping[str, str] = {}
    if step is Step.CLAIMING:
        members = _members(folders.work / key, folders.inbox / staging_folder(key), folders.inbox)
    elif step is Step.DONE:
        members = _members(folders.done / key)
    else:
        members = _members(folders.quarantine / key / "study")
        reason = _reason(folders.quarantine / key / "reason.json")
    if not members:
        return None
    own = [reports[key]] if key in reports else []
    names = chain(own, free_report_names(members[0], folders.outbox))
    return store.adopt(key, step, members, names, reason)


def _members(*places: Path) -> tuple[str, ...]:
    """Return the names of a study and of what belongs to it, the study itself first.

    The last of three places is the inbox, where the data file of a header may still lie.
    """
    own, inbox = places[:2], places[2:]
    paths = {path.name: path for place in own if place.is_dir() for path in _whole(place)}
    first = sorted(paths, key=lambda name: (not name.lower().endswith(VOLUME_SUFFIXES), name))
    data = [data_file(paths[name]) for name in first[:1]]
    return tuple(
        first + [n for n in data if n not in paths and any((i / n).exists() for i in inbox)]
    )


def _whole(place: Path) -> Iterator[Path]:
    """Yield what lies there, without copies that were interrupted."""
    return (p for p in place.iterdir() if not (p.name.startswith(".") and p.name.endswith(".part")))


def _reason(path: Path) -> dict[str, str]:
    try:
        values = json.loads(path.read_bytes())
        return {name: str(values[name]) for name in ("kind", "reason", "file")}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return {}
