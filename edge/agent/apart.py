"""Set later parts apart with which their study cannot be read: the report that was read stands.

The images of such a part go to quarantine under the part's own key. The next version of the report
names them, and differs in nothing else. Every step can be repeated after a crash at any point.
"""

import json
from pathlib import Path

import structlog

from edge.access import make_folder
from edge.agent.claim import free_report_names
from edge.atomic_files import move, sync_folder, write_atomically
from edge.folders import AgentFolders
from edge.report.model import ChangeKind, Rejection
from edge.report.serialize import read_report
from edge.report.write import refer_to, version_in
from edge.store.record import Record
from edge.store.steps import Step
from edge.store.studies import StudyStore

log = structlog.get_logger()


def set_apart(
    record: Record, rejection: Rejection, folders: AgentFolders, store: StudyStore
) -> None:
    """Set those parts of a study apart that came after the report that is out.

    ``rejection`` says why the study cannot be read with them.
    """
    parts = store.parts.joined_after(
        record.id, version_in(folders.outbox / record.report_name, record.id)
    )
    for key in parts:
        if not store.has(key):  # the rows of a part go before those of its study
            names = free_report_names(record.name, folders.outbox)
            store.adopt(key, Step.DONE, (record.name,), names, {})
    count = sum(parts.values())
    they = ("1 image", "it") if count == 1 else (f"{count} images", "them")
    file = f"{Path(rejection.file).name}: " if rejection.file else ""
    told = f"{they[0]} came later, not read here: with {they[1]} the study cannot be read"
    note = f"{told} ({rejection.kind}, {file}{rejection.reason})"
    reason = f"later images of the study {record.id}, whose report stands: {rejection.reason}"
    why = {"kind": rejection.kind, "reason": reason, "file": rejection.file}
    store.set_apart(record.id, parts, why, note)
    log.warning("later images set apart", study_key=record.id, parts=[*parts], kind=rejection.kind)


def refer(key: str, out: Path, text: str, kind: ChangeKind, store: StudyStore) -> None:
    """Name images that are not read in the report that is out, and in what may amend it."""
    refer_to(out, key, text, kind)
    if store.pending.has(key):
        store.pending.follow(key, read_report(out / "report.json"))


def put_apart(record: Record, folders: AgentFolders, store: StudyStore) -> None:
    """Move the images of the parts that are set apart from their study to quarantine."""
    for home in sorted((folders.work / record.id / record.name).glob("part-*")):
        key = home.name.removeprefix("part-")
        if not (store.has(key) and (part := store.get(key)).step is Step.QUARANTINED):
            continue
        place, known = folders.quarantine / key, folders.done / key
        write_reason(part, folders, record.report_name)
        if known.exists():  # images of the part that the study has already
            move(known, place / "study")
        target = place / "study" / part.name
        make_folder(target.parent)
        move(home, target / home.name if target.exists() else target)


def write_reason(record: Record, folders: AgentFolders, report_name: str) -> None:
    """Write why a study is in quarantine beside its place there."""
    folder = folders.quarantine / record.id
    make_folder(folder)
    sync_folder(folders.quarantine)
    values = {
        "kind": record.kind,
        "file": record.file,
        "reason": record.reason,
        "study": record.name,
        "study_key": record.id,
        "report": str(folders.outbox / report_name / "report.html"),
        "attempts": record.attempts,
        "claimed": record.created,
        "refused": record.updated,
    }
    text = f"{json.dumps(values, indent=2, ensure_ascii=True)}\n"
    write_atomically(folder / "reason.json", text.encode())
