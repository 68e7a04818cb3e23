"""The durable store of received instances: a folder in the inbox for each study.

In it each series has a folder. An instance is written under a hidden name, synchronised, and
renamed into the folder of its series. Only then is it acknowledged. The inbox decides as always
when a folder is complete. The agent may claim a folder at any moment: what comes later begins a new
folder of the same name, and joins its study. An instance is stored already only while its file is
in the inbox. What comes again after that is stored again, and the agent decides whether to read it.
"""

import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

import structlog

from edge.access import make_folder
from edge.atomic_files import remove, sync_folder, write_atomically
from edge.database import StepHook
from edge.dicom_in.identity import Identity, Reason, Refused, data_set_digest, identify
from edge.dicom_in.incoming import (
    MAX_INSTANCES,
    SOP_CLASSES,
    Expected,
    Incoming,
    Sender,
    Source,
    refusing_faults,
)
from edge.folders import DONE, RECEIVED
from edge.settings.core import MB
from edge.settings.receive import ReceiveSettings
from edge.telemetry import EdgeTelemetry
from imaging.dicom.arrival import files_of

RECEIVING = ".receiving"
"""Hidden folder in the inbox with the instances that are not whole yet."""
_TRIES = 10

log = structlog.get_logger()


class ReceiveStep(Enum):
    """A durable step of an instance, or of its study."""

    WRITTEN = "written"  # its file is synchronised under a hidden name
    STORED = "stored"  # it lies in the folder of its series, which is synchronised
    ACKNOWLEDGED = "acknowledged"  # told before the acknowledgement only; nothing is written
    COMPLETED = "completed"  # the mark that its study is complete is synchronised


class ReceiveMetrics:
    """What is counted of instances and senders."""

    def __init__(self, telemetry: EdgeTelemetry) -> None:
        self.received = telemetry.counter("received_instances", "Instances received", "way")
        self.refused = telemetry.counter(
            "refused_instances", "Instances refused by reason", "way", "reason"
        )
        self.refused_associations = telemetry.counter(
            "refused_associations", "Associations and connections refused by reason", "reason"
        )
        self.associations = telemetry.gauge("open_associations", "DICOM associations open now")


@dataclass
class _Study:
    """What is remembered of one study while its folder is in the inbox.

    Attributes:
        instances: how many files are in its folder.
        sender: of all that is in the folder; None if several sent it, or it is not known.
        sources: who the `RECEIVED` of a series names, by its UID.
    """

    instances: int = 0
    sender: Sender | None = None
    sources: dict[str, Source] = field(default_factory=dict)


class ReceivedStore:
    """Put received instances into the inbox; several threads may do so at once.

    Args:
        free_bytes: returns the free space on the disk of a folder.
        on_step: is called with every durable step, by the thread that takes it.
        on_news: is called when a study begins to arrive, or was marked as complete.
    """

    def __init__(
        self,
        inbox: Path,
        settings: ReceiveSettings,
        metrics: ReceiveMetrics,
        *,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
        on_step: StepHook = lambda _step, _durable: None,
        on_news: Callable[[], None] = lambda: None,
    ) -> None:
        self._inbox, self._settings, self._metrics = inbox, settings, metrics
        self._free_bytes, self._on_step, self._on_news = free_bytes, on_step, on_news
        self._lock = threading.Lock()
        self._studies: dict[str, _Study] = {}
        self._stopping = False
        self._receiving = inbox / RECEIVING
        # what a crash left: the agent's lock on the inbox makes sure that nobody else receives
        remove(self._receiving)
        make_folder(self._receiving)
        for study in {one.parents[1] for one in inbox.glob(f"[!.]*/*/{RECEIVED}")}:
            if not files_of(study):
                remove(study)

    def stop(self) -> None:
        """Begin no instance any more; those that are whole may still be kept."""
        self._stopping = True

    def begin(self) -> Incoming:
        """Begin to receive an instance; it is refused if the agent stops, or the disk is full."""
        path = self._receiving / f"{secrets.token_hex(16)}.part"
        incoming = Incoming(path, self._settings.max_instance_mb, self._require_room)
        with incoming.refusing():
            if self._stopping:
                raise Refused(Reason.STOPPING, "the agent is being stopped")
            self._require_room()
            with refusing_faults():
                make_folder(self._receiving)
                incoming.open()
        return incoming

    def keep(self, incoming: Incoming | None, expected: Expected, sender: Sender) -> Identity:
        """Make an instance durable in the folder of its series; after that it may be acknowledged.

        One that is stored already, with the same data set, is success too. None stands for a
        request without a data set.

        Raises:
            Refused: it is not stored, and nothing of it is left; that is counted and in the log.
        """
        identity, source = None, sender.source
        try:
            if incoming is None:
                raise Refused(Reason.UNREADABLE, "the request has no data set")
            if incoming.refusal is not None:
                raise incoming.refusal
            with refusing_faults():
                self._on_step(ReceiveStep.WRITTEN, False)
            incoming.sync()
            self._on_step(ReceiveStep.WRITTEN, True)
            identity = identify(incoming.path)
            expected.require(identity)
            if identity.sop_class not in SOP_CLASSES:
                raise Refused(Reason.SOP_CLASS, "the SOP class is not one of CT")
            with refusing_faults():
                self._place(incoming, identity, sender)
            self._on_step(ReceiveStep.ACKNOWLEDGED, False)
        except Refused as refusal:
            if identity is not None:
                refusal.sop_class, refusal.instance = identity.sop_class, identity.instance
            sender.missed = True
            words = refusal.reason.words
            self._metrics.refused.labels(source.way, words).inc()
            log.warning("instance refused", **source.words, reason=words, why=str(refusal))
            raise
        finally:
            if incoming is not None:
                incoming.discard()  # where it was renamed, nothing is left to discard
        self._metrics.received.labels(source.way).inc()
        return identity

    def released(self, sender: Sender, *, complete: bool) -> None:
        """Forget a sender; with ``complete`` mark as complete what it alone has sent.

        The log says how many of its images were stored already.
        """
        with self._lock:
            for name in [name for name, one in self._studies.items() if one.sender is sender]:
                self._studies[name].sender = None
                if complete and not sender.missed:
                    with suppress(OSError):  # it was claimed: the quiet time was shorter
                        self._on_step(ReceiveStep.COMPLETED, False)
                        (self._inbox / name / DONE).touch(exist_ok=False)
                        sync_folder(self._inbox / name)
                        self._on_step(ReceiveStep.COMPLETED, True)
                        self._on_news()
        if images := sender.again:
            sender.again = 0
            said = sender.source.words
            log.info("images received again, stored already", images=images, **said)

    def _require_room(self) -> None:
        limit_mb = self._settings.min_free_mb
        if self._free_bytes(self._inbox) < limit_mb * MB:
            raise Refused(Reason.NO_ROOM, f"less than {limit_mb} MB are free for the inbox")

    def _place(self, incoming: Incoming, identity: Identity, sender: Sender) -> None:
        digest = incoming.digest(identity.offset)
        with self._lock:
            name = self._folder_of(identity)
            folder = self._inbox / name / identity.series
            target = folder / f"{identity.instance}.dcm"
            study = self._remembered(name)
            known = _digest_in(target)
            if known is not None and known != digest:
                text = "the SOP Instance UID is stored with another data set"
                raise Refused(Reason.CONFLICT, text)
            if known is not None:
                with suppress(FileNotFoundError):  # it left the inbox: it is stored again
                    sync_folder(folder)
                    sender.again += 1
                    return
            self._on_step(ReceiveStep.STORED, False)
            descriptor = self._rename(incoming, target, study, sender)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._on_step(ReceiveStep.STORED, True)

    def _folder_of(self, identity: Identity) -> str:
        """Return the name of the folder; one without PatientID is of the patient of its study.

        Some scanners leave it empty in single images.
        """
        own, nameless = identity.folder, replace(identity, patient="").folder
        if identity.patient:
            is_first_named = not (self._inbox / own).is_dir() and (self._inbox / nameless).is_dir()
            return nameless if is_first_named else own
        known = (name for name in self._studies if name.startswith(f"{identity.study}-"))
        return next((name for name in known if (self._inbox / name).is_dir()), nameless)

    def _rename(self, incoming: Incoming, target: Path, study: _Study, sender: Sender) -> int:
        """Rename the file into its folder; return the open folder, which is to be synchronised.

        The agent may move the folder of the study away between any two steps.
        """
        folder = target.parent
        for _ in range(_TRIES):
            try:
                if not folder.parent.is_dir():
                    make_folder(folder.parent)
                    sync_folder(self._inbox)
                    study.instances, study.sender, study.sources = 0, sender, {}
                    self._on_news()
                elif study.sender is not sender:
                    study.sender = None
                if study.instances >= MAX_INSTANCES:
                    text = f"the study has more than {MAX_INSTANCES} instances"
                    raise Refused(Reason.TOO_MANY, text)
                if study.sources.get(folder.name) != sender.source:
                    make_folder(folder, parents=False)
                    sync_folder(folder.parent)
                    _write_sidecar(folder, sender.source)
                    study.sources[folder.name] = sender.source
                return _rename_into(incoming.path, target, study)
            except FileNotFoundError:
                study.sources.clear()
        raise Refused(Reason.FAULT, "the folder of the study vanishes again and again")

    def _remembered(self, name: str) -> _Study:
        """Return what is known of a study; forget those whose folder has left the inbox."""
        if name not in self._studies:
            here = {o: one for o, one in self._studies.items() if (self._inbox / o).is_dir()}
            # left by an earlier process: who sent it all is not known
            found = len(list((self._inbox / name).glob("*/*.dcm")))
            self._studies = {**here, name: _Study(found)}
        return self._studies[name]


def _rename_into(file: Path, target: Path, study: _Study) -> int:
    """Rename the file, and return the open folder in which it lies now.

    Raises:
        FileNotFoundError: the folder was moved away before.
    """
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        file.rename(target)
    except OSError:
        os.close(folder)
        raise
    study.instances += 1
    if not _lies_in(target.name, folder):  # the folder was moved away, and made again by another
        os.close(folder)
        try:
            folder = os.open(target.parent, os.O_RDONLY)
        except FileNotFoundError as error:
            raise Refused(Reason.FAULT, "the folder of the study was moved away") from error
    return folder


def _digest_in(file: Path) -> bytes | None:
    """Return the digest of the data set in a stored file; None if there is none."""
    try:
        return data_set_digest(file, identify(file).offset)
    except FileNotFoundError:
        return None


def _lies_in(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def _write_sidecar(folder: Path, source: Source) -> None:
    """Write who sends the series, and since when."""
    titles = {"calling_ae": source.caller, "called_ae": source.called}
    values = {
        "way": source.way,
        **(titles if source.way == "dicom" else {"caller": source.caller}),
        "peer": source.peer,
        "first": _first_in(folder),
    }
    write_atomically(folder / RECEIVED, json.dumps(values, indent=2).encode())


def _first_in(folder: Path) -> str:
    """Return since when the series comes: now, if nothing is known of it."""
    try:
        return str(json.loads((folder / RECEIVED).read_bytes())["first"])
    except (OSError, ValueError, KeyError, TypeError):
        return datetime.now(UTC).isoformat(timespec="milliseconds")
