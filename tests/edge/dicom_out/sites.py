"""Reports whose objects are delivered: made without a scan, on a clock by hand."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydicom.uid import (
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    generate_uid,
)

from edge.access import make_folder
from edge.atomic_files import move, remove
from edge.database import StepHook
from edge.dicom_out.deliver import ObjectMaker, Sender
from edge.dicom_out.exports import Delivery, DeliveryStep, ExportStore
from edge.errors import EdgeError
from edge.folders import AgentFolders
from edge.report.evidence import objects_folder
from edge.report.folder import owner_of, take_folder
from edge.report.model import Report, Status
from edge.report.write import write_report, write_version
from edge.settings.targets import DicomTarget, DicomWebTarget
from edge.store.record import Step
from edge.store.studies import Change, StudyStore
from evaluation.world import settings_in
from tests.dicom_peers import write_object
from tests.edge.builders import HandClock, nothing, open_claim, open_store

TargetOf = DicomTarget | DicomWebTarget
CLASSES: Mapping[str, str] = {
    "capture-overview": SecondaryCaptureImageStorage,
    "report": EncapsulatedPDFStorage,
}
EVERY_CLASS: Mapping[str, str] = {
    **CLASSES,
    "seg": SegmentationStorage,
    "sr": Comprehensive3DSRStorage,
}


def make_objects(out: Path, version: int, classes: Mapping[str, str] = CLASSES) -> list[Path]:
    """An object of each class for each version, whatever the report says; made once, as a whole."""
    folder = objects_folder(out, version)
    if not folder.is_dir():
        part = folder.with_name(f".{folder.name}.part")
        remove(part)
        make_folder(part)
        for name, sop_class in classes.items():
            write_object(part / f"{name}.dcm", owner_of(out), str(version), sop_class=sop_class)
        move(part, folder)
    return sorted(folder.glob("*.dcm"))


def uids(key: str, *versions: int, classes: Mapping[str, str] = CLASSES) -> list[str]:
    """The UIDs of these versions, in the order in which they are sent."""
    parts = [(key, str(v), str(sop_class)) for v in versions for sop_class in classes.values()]
    return [str(generate_uid(entropy_srcs=list(one))) for one in parts]


class NoObjects(EdgeError):
    """No object can be made."""


class Deliveries:
    """A store, its outbox, a maker and a sender for each target, on one clock by hand."""

    def __init__(self, root: Path, store: StudyStore, *targets: TargetOf) -> None:
        self.store, self.clock = store, HandClock()
        self.make = make_objects
        self.folders = AgentFolders.of(settings_in(root))
        self.folders.make()
        self.outbox = self.folders.outbox
        self.targets = targets
        self.stops = False
        self.start()

    def start(self) -> None:
        """A process that has just begun."""
        rules: Any = {"clock": self.clock, "jitter": lambda _low, high: high}
        self.maker = ObjectMaker(self.store, self.outbox, self._made, **rules)
        self.senders = {
            target.name: Sender(
                target, self.store, self.outbox, stopped=lambda: self.stops, **rules
            )
            for target in self.targets
        }

    @property
    def exports(self) -> ExportStore:
        return self.store.extension(ExportStore)

    def _made(self, out: Path, version: int) -> list[Path]:
        return self.make(out, version)

    def report(self, name: str) -> str:
        """A study whose report is out, by the steps of the agent; its key."""
        record = open_claim(self.store, name)
        self.store.advance(record.id, Step.CLAIMED)
        self.store.advance(record.id, Step.READING)
        out = self.outbox / name
        assert take_folder(out, record.id)
        write_report(report_of(record.id), {}, out)
        self.store.advance(record.id, Step.REPORTED, Change(versions=(1,)))
        self.store.advance(record.id, Step.DONE)
        return record.id

    def amend(self, key: str, version: int) -> None:
        """One more version, whose export begins."""
        out = self.outbox / self.store.get(key).report_name
        write_version(replace(report_of(key), version=version), {}, out)
        self.exports.adopt(key, (version,))

    def run(self) -> None:
        """All that is due now."""
        busy = True
        while busy:
            busy = self.maker.run_once()
            for sender in self.senders.values():
                busy = sender.run_once() or busy

    def pass_time(self, seconds: float) -> None:
        """All that is due in this time, looked for every second or a few hundred times."""
        until_s = self.clock() + seconds
        while self.clock() < until_s:
            self.run()
            self.clock.sleep(max(1.0, seconds / 200))

    def steps(self, target: str) -> list[str]:
        """The steps of the deliveries to a target, in the order of studies and versions."""
        return [one.step.value for one in self.of(target)]

    def of(self, target: str) -> list[Delivery]:
        return [one for one in self.exports.deliveries(*DeliveryStep) if one.target == target]


def report_of(key: str) -> Report:
    return Report(
        study_key=key,
        created="2026-01-02T03:04:05+00:00",
        source=Path("study"),
        deadline_s=10.0,
        status=Status.FINAL,
    )


def pacs_at(port: int, name: str = "pacs", **settings: Any) -> DicomTarget:
    """A Storage SCP on this machine."""
    given = {"address": f"127.0.0.1:{port}", "called_ae": "PACS", "timeout_s": 10.0}
    return DicomTarget(kind="dicom", name=name, **given | settings)


def web_at(url: str, name: str = "web", **settings: Any) -> DicomWebTarget:
    """A STOW-RS service on this machine."""
    return DicomWebTarget(kind="dicomweb", name=name, url=url, **settings)


@contextmanager
def deliveries(
    root: Path, *targets: TargetOf, on_step: StepHook | None = None
) -> Iterator[Deliveries]:
    """Deliveries from the database below ``root``."""
    (root / "state").mkdir(exist_ok=True)
    path = root / "state" / "spool.sqlite3"
    with open_store(path, [one.name for one in targets], on_step or nothing) as store:
        yield Deliveries(root, store, *targets)
