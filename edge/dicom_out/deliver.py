"""Make the objects of each report, and deliver them to every target until it has them all.

`ObjectMaker` and a `Sender` for each target have a thread and a database connection of their own
(`delivering`), so that a target that is down or slow delays neither the others nor the next study.
All that matters is durable in `edge.dicom_out.exports`; what a crash interrupts is sent again, and
the target knows the objects by their UIDs.

Pauses double from a second up to a quarter of an hour, with jitter. A target that is unreachable
pauses as a whole. An object that is refused pauses alone, and becomes a dead letter after
`MAX_ATTEMPTS`. Pauses are in memory: at a start, and after a resend, everything is due once.

A SOP class that a target does not take is a property of the target, noted once: no study waits for
it. It is offered again with all that the target gets, behind the rest. Of a version of which a
target takes nothing, it is asked alone once in `MAX_PAUSE_S`, and the version waits.
"""

import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import structlog

from edge.atomic_files import is_transient, sync_folder
from edge.database import StepHook
from edge.dicom_out.exports import Backlog, Delivery, DeliveryStep, Export, ExportStore
from edge.dicom_out.scu import DicomNode
from edge.dicom_out.stow import DicomWebService
from edge.dicom_out.targets import STOPPED, Refusal, Sent, Target, class_of, kind_of
from edge.errors import EdgeError, NotDicom
from edge.report.evidence import objects_folder
from edge.report.write import exported_versions
from edge.settings.targets import DicomTarget, DicomWebTarget
from edge.site import Site
from edge.store.repair import ending_where_damaged
from edge.store.studies import StudyStore
from imaging.errors import is_machine_fault
from process import tracing
from process.backoff import Jitter, pause_s

FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 900.0
MAX_ATTEMPTS = 12
"""Attempts that a target may refuse; with their pauses they take about half an hour."""
MAX_MAKING = 3
"""Attempts to make objects that may fail or end with the process."""
STOP_S = 15.0
"""How long a stop waits for the object that is being sent; a longer one is sent again."""
ENDED = "the last attempt ended with the process"
_SENT = ".sent-"

MakeObjects = Callable[[Path, int], Sequence[Path]]
"""Makes the objects of one version of the report in a folder, once, and returns their files.

It raises an `EdgeError` that says why if they cannot be made, `NotDicom` if there is nothing to
make them of.
"""

log = structlog.get_logger()


def made_objects(out: Path, version: int) -> Sequence[Path]:
    """Make the objects of one version of the report in ``out``, once; errors as `make_objects`."""
    # imported here: highdicom takes as long as all else together, and few agents have targets
    from edge.dicom_out.identity import Device
    from edge.dicom_out.objects import make_objects

    return make_objects(out, Device.here(), version).files


def open_target(settings: DicomTarget | DicomWebTarget) -> Target:
    """Return the target of these settings; nothing is opened yet."""
    if isinstance(settings, DicomTarget):
        return DicomNode(settings)
    return DicomWebService(settings)


class ObjectMaker:
    """Makes the objects of the versions whose export has begun, the oldest first.

    ``outbox`` has the folders of the reports. ``clock`` is monotonic, in seconds.
    """

    def __init__(
        self,
        store: StudyStore,
        outbox: Path,
        make_objects: MakeObjects,
        clock: Callable[[], float] = time.monotonic,
        jitter: Jitter = random.uniform,
    ) -> None:
        self._store, self._exports = store, store.extension(ExportStore)
        self._outbox, self._make_objects = outbox, make_objects
        self._clock, self._jitter = clock, jitter
        self._until: dict[tuple[str, int], float] = {}
        self._adopted = False

    def run_once(self) -> bool:
        """Make the objects of one version; return whether one was due.

        Raises:
            OSError, sqlite3.Error, MemoryError: the machine is at fault; call again later.
        """
        if not self._adopted:
            self._adopt()
            self._adopted = True
        paused = set[str]()  # a version refers to the one before it, which must be made first
        for export in self._exports.making():
            due_s = self._until.get((export.study_key, export.version), float("-inf"))
            if export.study_key not in paused and self._clock() >= due_s:
                self._make(export)
                return True
            paused.add(export.study_key)
        return False

    def _adopt(self) -> None:
        """Begin the export of versions that a database older than its files does not know.

        Only studies of which a version was exported count: others are older than the targets.
        """
        for key, known in self._exports.known().items():
            if self._store.has(key):
                out = self._outbox / self._store.get(key).report_name
                if len(list(out.glob("report*.json"))) > known:
                    newest = max(one.version for one in self._exports.of(key))
                    if later := [v for v in exported_versions(out, key) if v > newest]:
                        self._exports.adopt(key, later)

    def _make(self, export: Export) -> None:
        key, exports = export.study_key, self._exports
        if not self._store.has(key):
            self._store.forget_report(key)
            return
        out = self._outbox / self._store.get(key).report_name
        if export.version not in exported_versions(out, key):
            self._none(export, "its report is not in the outbox any more", is_fault=False)
            return
        if export.attempts >= MAX_MAKING:
            self._none(export, f"making its objects has failed {MAX_MAKING} times: see the log")
            return
        exports.count_attempt(export)
        try:
            with tracing.study(key), tracing.span("make objects", version=export.version) as span:
                files = self._make_objects(out, export.version)
                span.set_attributes(tracing.attributes(objects=len(files)))
        except EdgeError as error:
            reason = f"{type(error).__name__}: {error}"
            self._none(export, reason, is_fault=not isinstance(error, NotDicom))
            return
        except Exception as error:  # whatever it is, the other reports must be exported
            if is_transient(error) or is_machine_fault(error):
                exports.count_attempt(export, -1)
                raise
            log.exception("objects not made", study_key=key, version=export.version)
            wait_s = _pause_s(export.attempts + 1, self._jitter)
            self._until[key, export.version] = self._clock() + wait_s
            return
        folder = objects_folder(out, export.version)
        exports.made(export, [path.name.removeprefix(_SENT) for path in folder.glob(f"{_SENT}*")])
        log.info("objects made", study_key=key, version=export.version, objects=len(files))

    def _none(self, export: Export, reason: str, *, is_fault: bool = True) -> None:
        self._exports.not_made(export, reason, is_fault=is_fault)
        names = {"study_key": export.study_key, "version": export.version}
        if is_fault:
            log.error("objects not made", **names, hint="overread-edge targets says why")
        else:
            log.warning("no objects of this report", **names)


class Sender:
    """Sends what is due to one target.

    Args:
        settings: of the target.
        stopped: whether the agent stops; an object that is being sent is finished.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        settings: DicomTarget | DicomWebTarget,
        store: StudyStore,
        outbox: Path,
        *,
        stopped: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        jitter: Jitter = random.uniform,
    ) -> None:
        self._settings, self._name, self._target = settings, settings.name, open_target(settings)
        self._store, self._exports = store, store.extension(ExportStore)
        self._outbox, self._stopped = outbox, stopped
        self._clock, self._jitter = clock, jitter
        self._failures, self._until, self._resends = 0, float("-inf"), 0
        self._refused_until: dict[tuple[str, int, int], float] = {}
        self._asks_again_s = float("-inf")
        self._last, self._taken = set[str](), set[str]()
        unwanted = [one.sop_class for one in self._exports.not_taken(self._name)]
        unwanted = [one for one in unwanted if not self._is_wanted(one)]
        self._exports.note_answers(self._name, dict.fromkeys(unwanted, ""))

    def run_once(self) -> bool:
        """Try one delivery; return whether one was due.

        Raises:
            OSError, sqlite3.Error, MemoryError: the machine is at fault; call again later.
        """
        resends = self._exports.resends(self._name)
        if resends > self._resends:  # a person has done something about the target
            self._failures, self._until, self._asks_again_s = 0, float("-inf"), float("-inf")
        self._resends = resends
        if self._stopped() or self._clock() < self._until:
            return False
        for delivery in self._exports.due(self._name):
            if self._clock() >= self._refused_until.get(_identity(delivery), float("-inf")):
                self._deliver(delivery)
                return True
        return False

    def _deliver(self, delivery: Delivery) -> None:
        exports, key = self._exports, delivery.study_key
        if not self._store.has(key):
            self._store.forget_report(key)
            return
        if delivery.attempts >= MAX_ATTEMPTS:  # the last one ended with the process
            reason = "; ".join(filter(None, (delivery.reason, ENDED)))
            self._give_up(replace(delivery, attempts=delivery.attempts - 1), reason, Sent())
            return
        folder = objects_folder(self._outbox / self._store.get(key).report_name, delivery.version)
        if not exports.begin_attempt(delivery):
            return
        try:
            if not any(folder.glob("*.dcm")):
                reason = "its objects are not in the outbox any more"
                self._give_up(delivery, reason, Sent())
                return
            sent = self._send(folder, delivery)
        except Exception as error:  # whatever it is, the other deliveries must go on
            if is_transient(error) or is_machine_fault(error) or isinstance(error, sqlite3.Error):
                exports.ended(delivery, DeliveryStep.SENDING, counts=False)
                raise
            log.exception("delivery interrupted", study_key=key, target=self._name)
            sent = Sent(refused={"": Refusal(type(error).__name__, str(error))})
        self._pause_target(sent)
        lacks = "; ".join(f"{name}: {why.code}" for name, why in sorted(sent.not_taken.items()))
        if sent.refused:
            self._refused(delivery, sent)
        elif sent.unreachable or (lacks and not (sent.stored or delivery.stored)):
            if not sent.unreachable:
                self._refused_until[_identity(delivery)] = self._clock() + MAX_PAUSE_S
            waits = DeliveryStep.SENDING, sent.unreachable or lacks, sent.stored
            self._noted(exports.ended, delivery, *waits, counts=False)
        else:
            if not lacks:  # it only saves sending it again after the database is lost
                with suppress(OSError):
                    (folder / f"{_SENT}{self._name}").touch(mode=0o600)
                    sync_folder(folder)
            self._noted(exports.ended, delivery, DeliveryStep.SENT, lacks, sent.stored)
            if sent.stored:
                names = {"study_key": key, "version": delivery.version, "target": self._name}
                log.info("delivered", **names, objects=len(sent.stored))

    def _noted(self, note: Callable[..., bool | None], *what: Any, **how: Any) -> bool | None:
        """Note what was sent, however long another process holds the database: once is enough."""
        while True:
            try:
                return note(*what, **how)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or self._stopped():
                    raise

    def _send(self, folder: Path, delivery: Delivery) -> Sent:
        """Send what the target shall get and does not have; note which classes it takes.

        A class with which it ended the association goes behind the others: it may do so again.
        """
        files = (file for file in folder.glob("*.dcm") if file.name not in delivery.stored)
        classes: dict[str, str] = {file.name: class_of(file) for file in files}
        classes = {name: one for name, one in classes.items() if self._is_wanted(one)}
        known = {one.sop_class: one for one in self._exports.not_taken(self._name)}
        is_alone = known.keys() >= {*classes.values()}
        if not classes or (is_alone and self._clock() < self._asks_again_s):
            whys = {name: Refusal(known[one].reason) for name, one in classes.items()}
            return Sent(not_taken=whys)
        last = self._last | known.keys()
        names = sorted(classes, key=lambda name: (classes[name] in last, name))
        with tracing.study(delivery.study_key), tracing.span("deliver") as span:
            about = {"version": delivery.version, "objects": len(names)}
            span.set_attributes(tracing.attributes(target=self._name, **about))
            sent = self._target.send([folder / name for name in names], self._stopped)
            counts = {"stored": len(sent.stored), "refused": len(sent.refused)}
            span.set_attributes(tracing.attributes(**counts, unreachable=bool(sent.unreachable)))
        if is_alone and not sent.unreachable:
            self._asks_again_s = self._clock() + MAX_PAUSE_S
        self._last |= {classes[name] for name, why in sent.refused.items() if why.is_last}
        self._taken |= {classes[name] for name in sent.stored}
        not_taken = {
            name: why
            for name, why in sent.refused.items()
            if why.of_class and not (why.of_object and classes[name] in self._taken)
        }
        answers = {classes[name]: why.code for name, why in not_taken.items()}
        answers |= dict.fromkeys((classes[name] for name in sent.stored), "")
        if self._noted(self._exports.note_answers, self._name, answers):
            self._refused_until.clear()  # what has waited for a class that is taken again
        refused = {name: why for name, why in sent.refused.items() if name not in not_taken}
        return replace(sent, refused=refused, not_taken=not_taken)

    def _is_wanted(self, sop_class: str) -> bool:
        wanted = self._settings.objects
        return not wanted or kind_of(sop_class) in wanted

    def _refused(self, delivery: Delivery, sent: Sent) -> None:
        attempts = delivery.attempts + 1
        reason = "; ".join(f"{name}: {why}" for name, why in sorted(sent.refused.items()))
        if attempts >= MAX_ATTEMPTS:
            self._give_up(delivery, reason, sent)
            return
        self._noted(self._exports.ended, delivery, DeliveryStep.SENDING, reason, sent.stored)
        wait_s = _pause_s(attempts, self._jitter)
        self._refused_until[_identity(delivery)] = self._clock() + wait_s
        log.warning("delivery refused", **self._words(delivery, sent), pause_s=round(wait_s, 1))

    def _give_up(self, delivery: Delivery, reason: str, sent: Sent) -> None:
        self._noted(self._exports.ended, delivery, DeliveryStep.DEAD, reason, sent.stored)
        self._refused_until.pop(_identity(delivery), None)
        hint = "overread-edge targets says why, overread-edge resend sends it again"
        log.error("dead letter", **self._words(delivery, sent), hint=hint)

    def _words(self, delivery: Delivery, sent: Sent) -> dict[str, object]:
        """Return what the log says, without the target's own words."""
        return {
            "study_key": delivery.study_key,
            "version": delivery.version,
            "target": self._name,
            "attempts": delivery.attempts + 1,
            "reason": "; ".join(sorted({why.code for why in sent.refused.values()})),
        }

    def _pause_target(self, sent: Sent) -> None:
        """Pause the target if it takes nothing now; end its pauses if it took something."""
        if sent.stored or sent.refused:
            self._failures, self._until = 0, float("-inf")
        if sent.unreachable and sent.unreachable != STOPPED:
            self._failures += 1
            wait_s = _pause_s(self._failures, self._jitter)
            self._until = self._clock() + wait_s
            values = {"reason": sent.unreachable, "pause_s": round(wait_s, 1)}
            log.warning("target unreachable", target=self._name, **values)


def _identity(delivery: Delivery) -> tuple[str, int, int]:
    return delivery.study_key, delivery.version, delivery.resends


def _pause_s(failures: int, jitter: Jitter) -> float:
    return pause_s(failures, FIRST_PAUSE_S, MAX_PAUSE_S, jitter)


Work = Callable[[], bool]
"""Does one piece of work; returns whether there was any."""


@contextmanager
def delivering(
    site: Site,
    make_objects: MakeObjects,
    *,
    on_step: StepHook,
    on_backlog: Callable[[Mapping[str, Backlog], int], None],
    clock: Callable[[], float],
) -> Iterator[None]:
    """Make and send objects for the time of the context, in a thread each.

    ``on_backlog`` gets the backlog of each target, and how many versions lack their objects. It is
    called by these threads, and so is ``on_step``.
    """
    stop, targets, poll_s = Event(), site.settings.targets, site.settings.poll_s
    path, outbox = site.database, site.folders.outbox

    def maker(store: StudyStore) -> Work:
        exports = store.extension(ExportStore)
        made = ObjectMaker(store, outbox, make_objects, clock)

        def work() -> bool:
            busy = made.run_once()
            on_backlog(exports.backlogs(), len(exports.making()) + len(exports.unmade()))
            return busy

        return work

    def sender(settings: DicomTarget | DicomWebTarget, store: StudyStore) -> Work:
        return Sender(settings, store, outbox, stopped=stop.is_set, clock=clock).run_once

    def work(start: Callable[[StudyStore], Work]) -> None:
        while not stop.is_set():
            try:
                with ending_where_damaged(path), StudyStore(path, site.schema, on_step) as store:
                    once = start(store)
                    while not stop.is_set():
                        if not once():
                            stop.wait(poll_s)
            except Exception as error:  # a full disk: it passes
                known = isinstance(error, EdgeError | OSError | sqlite3.Error | MemoryError)
                why = f"{type(error).__name__}: {error}"
                log.error("delivery pauses", error=why, exc_info=not known)
            stop.wait(10 * poll_s)

    starts = [("objects", maker), *((one.name, partial(sender, one)) for one in targets)]
    threads = [
        Thread(target=work, args=(start,), name=f"deliver {name}", daemon=True)
        for name, start in starts
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        until_s = time.monotonic() + STOP_S
        for thread in threads:
            thread.join(max(0.0, until_s - time.monotonic()))
