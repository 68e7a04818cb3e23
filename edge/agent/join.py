"""Join images that arrived after their study was reported with that study, to read it again.

A sender may pause for longer than `quiet_s`: then the first part of a series is claimed and
reported alone. The part that follows has the same SeriesInstanceUID and other images. Its files are
moved to those of the first part, and the report of both is the next version of the first one.

Every move can be repeated after a crash at any point; until the last step is durable the study
keeps its report, and afterwards it is read again.

A study that was refused and is received again unchanged is not read again: its refusal stands.
"""

import filecmp
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from edge.agent.folders import RECEIVED, AgentFolders
from edge.atomic_files import move, remove, sync_folder
from edge.dicom_in.received import RESENT_S
from edge.report.folder import release_folder
from edge.report.model import Rejection
from edge.report.write import version_in
from edge.store.parts import LaterPart
from edge.store.studies import Record, Step, StudyStore
from imaging.dicom.arrival import arrived, files_of, look

_SAMPLE = 16
"""Files whose headers tell to which series a study belongs: 2 ms each."""

log = structlog.get_logger()


def earlier_part(record: Record, folders: AgentFolders, store: StudyStore) -> Record | None:
    """Return the study of which the claimed one is a later part; None if it is none.

    It has a series of that study and patient, and an image that the study lacks. A study that is
    sent again has none, and is read as a study of its own. So is one that brings all images of a
    study that was refused: the file for which that was refused would have both refused.
    """
    folder = folders.work / record.id / record.name
    files = files_of(folder)
    sample = filter(None, map(look, files[:: max(1, len(files) // _SAMPLE)]))
    series = {f"{image.series_uid} {image.patient_id}" for image in sample}
    owner = store.parts.owner(series)
    if owner is not None and owner != record.id:
        earlier = store.get(owner)
        source = _files(earlier, folders)
        if source is not None:
            known, new = ({i.image_uid for i in arrived(place)} for place in (source, folder))
            replaces = earlier.step is Step.QUARANTINED and known <= new
            if new - known and not replaces:
                return earlier
    store.parts.add_series(record.id, series)
    return None


def standing_refusal(record: Record, folders: AgentFolders, store: StudyStore) -> Rejection | None:
    """Return the refusal that stands for the claimed study; None if it is to be read.

    It was received over the network at most `RESENT_S` after that refusal, and each of its images
    is the same file as one of the refused study. A fault of the program is no refusal that stands.
    """
    folder = folders.work / record.id / record.name
    if not (folder / RECEIVED).is_file():
        return None
    files = files_of(folder)
    first = next(filter(None, map(look, files[:_SAMPLE])), None)
    owner = None if first is None else store.parts.owner({f"{first.series_uid} {first.patient_id}"})
    if owner is None or owner == record.id:
        return None
    earlier = store.get(owner)
    source = _files(earlier, folders)
    age = datetime.now(UTC) - datetime.fromisoformat(earlier.updated)
    recent = timedelta(0) <= age <= timedelta(seconds=RESENT_S)
    if earlier.step is not Step.QUARANTINED or source is None or not recent:
        return None
    known = {image.image_uid: image.file for image in arrived(source)}
    came = [look(file) for file in files]
    for image in came:
        before = None if image is None else known.get(image.image_uid)
        if image is None or before is None or not filecmp.cmp(image.file, before, shallow=False):
            return None
    try:
        report = json.loads((folders.outbox / earlier.report_name / "report.json").read_bytes())
        refusal = Rejection(**report["rejection"])
    except (OSError, ValueError, KeyError, TypeError):  # a person removed it
        return None
    if refusal.internal:
        return None
    log.warning(
        "study received again unchanged, its refusal stands",
        study_key=record.id,
        refused=earlier.id,
        kind=refusal.kind,
    )
    return refusal


def join(record: Record, folders: AgentFolders, store: StudyStore) -> Record:
    """Move a later part to its study; return the study, which is to be read again.

    Images that the study has already stay apart, in ``done``.

    Raises:
        OSError: files cannot be moved; call again.
    """
    study = store.get(store.parts.study_of(record.id))
    home, own = folders.work / study.id, folders.work / record.id
    # the study comes back from where it was put away
    for source in (folders.done / study.id, folders.quarantine / study.id / "study"):
        if source.exists():
            move(source, home)
    # its new images get a folder of their own in it, under the names that they came with
    target = home / study.name / f"part-{record.id}"
    target.mkdir(exist_ok=True)
    sync_folder(target.parent)
    known = {i.image_uid for i in arrived(home / study.name) if target not in i.file.parents}
    came = own / record.name
    for file in files_of(came):
        image = look(file)
        if image is None or image.image_uid not in known:
            place = target / file.relative_to(came)
            place.parent.mkdir(parents=True, exist_ok=True)
            move(file, place)
    sidecar = came / RECEIVED
    if sidecar.is_file():
        move(sidecar, target / RECEIVED)
    if any(path.is_file() for path in own.rglob("*")):
        move(own, folders.done / record.id)
    remove(own)
    remove(folders.quarantine / study.id)
    release_folder(folders.outbox / record.report_name, record.id)
    version = max(1, version_in(folders.outbox / study.report_name, study.id)) + 1
    images = sum(1 for _ in arrived(target))
    log.info("more images of a study arrived", study_key=study.id, part=record.id, images=images)
    return store.finish_join(record.id, LaterPart(version, images))


def _files(record: Record, folders: AgentFolders) -> Path | None:
    """Return the folder with the files of a study that has ended; None if it is gone."""
    at = {
        Step.DONE: folders.done / record.id / record.name,
        Step.QUARANTINED: folders.quarantine / record.id / "study" / record.name,
    }
    folder = at.get(record.step)
    return folder if folder is not None and folder.is_dir() else None
