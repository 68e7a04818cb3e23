"""Join images that arrived after their study was reported with that study, to read it again.

A sender may pause for longer than `quiet_s`: then the first part of a study is claimed and reported
alone. The part that follows has the same SeriesInstanceUID and other images; where both were
received over the network, the same StudyInstanceUID is enough. Its files are moved to those of the
first part, and the report of both is the next version of the first one.

Every move can be repeated after a crash at any point; until the last step is durable the study
keeps its report, and afterwards it is read again.

A study that is received again unchanged, because its sender missed an acknowledgement, is not read
again: its report or its refusal stands. So does a report where the study cannot be read with a
later part, which is set apart: its images go to quarantine, and the report names them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from edge.access import close_files, make_folder
from edge.agent.claim import free_report_names, received, sampled
from edge.amend.persist import follow
from edge.atomic_files import move, remove, sync_folder
from edge.folders import RECEIVED, AgentFolders
from edge.report.folder import release_folder
from edge.report.model import ChangeKind, Rejection
from edge.report.serialize import own_report, read_report
from edge.report.write import refer_to, version_in
from edge.store.later_parts import LaterPart, uid_line
from edge.store.record import Record, Step
from edge.store.studies import Change, StudyStore
from imaging.dicom.arrival import Arrived, arrived, files_of, is_same_image, look

RESENT_S = 600.0
"""So long after its report a whole study that is received again unchanged is not read again.

A sender that missed the acknowledgement sends it again, maybe after its folder was claimed.
"""

log = structlog.get_logger()


def earlier_study(
    record: Record, folders: AgentFolders, store: StudyStore
) -> LaterPart | Rejection | None:
    """Return what the claimed study is to one that was reported; None if it is read by itself.

    It belongs to a study if it has a series of it and of its patient; where both were received over
    the network, maybe another series. It is a later part if it has an image that the study lacks;
    but not if it brings all images of a study that was refused: the file for which that was refused
    would have both refused.

    It is a repetition if it was received over the network and each of its images is the same file
    as one of the study: some of them at any time, all of them within `RESENT_S` of the report. Then
    it is a part without new images, or the refusal of the study stands for it too. A copy in the
    inbox is read again, because a person has put it there.
    """
    folder = folders.work / record.id / record.name
    files = files_of(folder)
    images = list(sampled(files))
    series = {f"{image.series_uid} {image.patient_id}" for image in images}
    if received(folder):
        series |= {f"study {image.study_uid} {image.patient_id}" for image in images}
    owner = store.parts.owner(series)
    if owner is not None and owner != record.id:
        study = store.get(owner)
        source = _files(study, folders)
        if source is not None:
            known = {image.image_uid: image.file for image in arrived(source)}
            if _is_repeated(folder, known, study):
                if study.step is Step.DONE:
                    return LaterPart(study.id, 0)
                if (refusal := _refusal(study, folders)) is not None:
                    said = {"study_key": record.id, "refused": study.id, "kind": refusal.kind}
                    log.warning("study received again unchanged, its refusal stands", **said)
                    return refusal
            came = {image.image_uid: image.file for image in arrived(folder)}
            new = came.keys() - known.keys()
            joins = bool(new) and not (study.step is Step.QUARANTINED and not known.keys() - came)
            both = came.keys() & known.keys()
            changed = sum(not is_same_image(came[i], known[i]) for i in both)
            if changed:
                _note_changed(record, study, changed, joins, folders, store)
            if joins:
                return LaterPart(study.id, len(new))
    _note_other_patients(record, images, folders, store)
    lines = {uid_line(image.study_uid, image.patient_id, record.id) for image in images}
    store.parts.add_series(record.id, series | lines)
    return None


def _note_other_patients(
    record: Record, images: Iterable[Arrived], folders: AgentFolders, store: StudyStore
) -> None:
    """Let the reports of one study with two identifiers of a patient name each other.

    A sender has corrected one of them: each study is read by itself.
    """
    for uid, patient in {(image.study_uid, image.patient_id) for image in images}:
        for key, other in store.parts.of_study(uid).items() if uid else ():
            if key != record.id and other != patient:
                study, said = store.get(key), "same study UID, other patient ID: report"
                note = f"{said} {record.report_name} (study {record.id})"
                store.parts.add_note(key, note)
                store.parts.add_note(record.id, f"{said} {study.report_name} (study {key})")
                out = folders.outbox / study.report_name
                refer(key, out, note, ChangeKind.OTHER_PATIENT, store)
                log.warning("study of another patient ID", study_key=record.id, other=key)


def _note_changed(
    record: Record,
    study: Record,
    images: int,
    joins: bool,
    folders: AgentFolders,
    store: StudyStore,
) -> None:
    """Say that images came which a reported study has with other content: it is not read with them.

    The later study, where it does not join, is read by itself: the two reports name each other.
    """
    said = f"changed images, not read here: {images} of its images came again with other content"
    where = f"kept as {record.id}" if joins else f"report {record.report_name}"
    notes = {study.id: f"{said}, {where}"}
    if not joins:
        first = f"report {study.report_name} (study {study.id})"
        notes[record.id] = f"changed images: {first} has {images} of these with other content"
        out = folders.outbox / study.report_name
        refer(study.id, out, notes[study.id], ChangeKind.CHANGED_IMAGES, store)
    store.add_changed(record.id, study.id, images, notes)
    log.warning("changed images received", study_key=study.id, part=record.id, images=images)


def _is_repeated(folder: Path, known: Mapping[str, Path], study: Record) -> bool:
    """Return whether a folder was received with files of the study, and soon enough after it."""
    try:
        began = datetime.fromisoformat(received(folder)["first"])
    except (KeyError, TypeError, ValueError):
        return False
    images = [look(file) for file in files_of(folder)]
    late = began - datetime.fromisoformat(study.updated) > timedelta(seconds=RESENT_S)
    if late and (study.step is not Step.DONE or len(images) >= len(known)):
        return False
    for image in images:
        before = None if image is None else known.get(image.image_uid)
        if image is None or before is None or not is_same_image(image.file, before):
            return False
    return bool(images)


def _refusal(study: Record, folders: AgentFolders) -> Rejection | None:
    """Return why a study was refused; None if a person removed it, or for a program fault."""
    report = own_report(folders.outbox / study.report_name / "report.json", study.id)
    refusal = report.rejection if report else None
    return None if refusal is None or refusal.internal else refusal


def columns_of(refusal: Rejection) -> dict[str, str]:
    """Return the columns of a study that say why it was refused."""
    return {"kind": refusal.kind, "reason": refusal.reason, "file": refusal.file}


def join(record: Record, folders: AgentFolders, store: StudyStore) -> LaterPart:
    """Move a later part to its study; return it with the version that will have its images.

    Images that the study has already stay apart, in ``done``. If it has all of them, its report
    stands.

    Raises:
        OSError: files cannot be moved; call again.
    """
    part = store.parts.part(record.id)
    study = store.get(part.study_key)
    home, own = folders.work / study.id, folders.work / record.id
    close_files(own)
    if not part.images:
        if own.exists():
            move(own, folders.done / record.id)
        release_folder(folders.outbox / record.report_name, record.id)
        log.warning("study received again unchanged", study_key=record.id, study=study.id)
        return part
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
    for sidecar in came.rglob(RECEIVED):
        if (place := target / sidecar.relative_to(came)).parent.is_dir():
            move(sidecar, place)
    if any(path.is_file() for path in own.rglob("*")):
        move(own, folders.done / record.id)
    remove(own)
    remove(folders.quarantine / study.id)
    release_folder(folders.outbox / record.report_name, record.id)
    version = max(1, version_in(folders.outbox / study.report_name, study.id)) + 1
    images = sum(1 for _ in arrived(target))
    log.info("more images of a study arrived", study_key=study.id, part=record.id, images=images)
    return replace(part, version=version, images=images)


def refer(key: str, out: Path, text: str, kind: ChangeKind, store: StudyStore) -> None:
    """Name images that are not read in the report that is out, and in what may amend it."""
    refer_to(out, key, text, kind)
    if store.pending.has(key):
        follow(store.pending, key, read_report(out / "report.json"))


def set_apart(record: Record, why: Rejection, folders: AgentFolders, store: StudyStore) -> None:
    """Set those parts of a study apart that came after its report, and with which it is not read.

    Each is set apart by itself: after a crash the study is read with the others.
    """
    version = version_in(folders.outbox / record.report_name, record.id)
    for key, part in store.parts.later_parts(record.id).items():
        if part.version <= version:
            continue
        if not store.has(key):  # the row of a part may go before that of its study
            names = free_report_names(record.name, folders.outbox)
            store.adopt(key, Step.DONE, (record.name,), names)
        note = (
            f"later images, not read here: with {part.images} that came later the study cannot be"
            f" read ({why.kind}, {Path(why.file).name}: {why.reason})"
        )
        reason = f"later images of {record.name} ({record.id}), whose report stands: {why.reason}"
        columns = columns_of(replace(why, reason=reason))
        part = replace(part, version=0, note=note)
        change = Change(columns, {"kind": why.kind}, part=part)
        store.advance(key, Step.QUARANTINING, change)
        log.warning("later images set apart", study_key=record.id, part=key, kind=why.kind)


def put_apart(record: Record, folders: AgentFolders, store: StudyStore) -> None:
    """Move the images of the parts that are set apart from their study to quarantine."""
    for images in sorted((folders.work / record.id / record.name).glob("part-*")):
        key = images.name.removeprefix("part-")
        if not store.has(key) or (part := store.get(key)).step is Step.DONE:
            continue
        place, known = folders.quarantine / key / "study", folders.done / key
        make_folder(place.parent)
        if known.exists():  # what the study has already
            move(known, place)
        make_folder(place / part.name)
        move(images, place / part.name / images.name)


def _files(record: Record, folders: AgentFolders) -> Path | None:
    """Return the folder with the files of a study that has ended; None if it is gone."""
    at = {
        Step.DONE: folders.done / record.id / record.name,
        Step.QUARANTINED: folders.quarantine / record.id / "study" / record.name,
    }
    folder = at.get(record.step)
    return folder if folder is not None and folder.is_dir() else None
