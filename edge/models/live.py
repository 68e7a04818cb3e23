"""The models of a running agent: the active one, and the one in shadow.

The main loop calls `LiveModels.run_once` while it is between two studies. Then the active model may
change, and the lung box of the last study is read once more with the model in shadow. That is done
only while no study waits and none is in the inbox, so it is never in the way of a deadline; and
after the report is out. One lung box is kept, that of the last study.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import structlog

from edge.atomic_files import is_transient
from edge.budget import LedgerEntry
from edge.decide import Thresholds
from edge.errors import EdgeError
from edge.findings import Finding
from edge.guarantee import Guarantee
from edge.job import Job
from edge.models.agreement import compare
from edge.models.choose import ShadowState, models_state
from edge.models.errors import RefusedModel
from edge.models.fetch import fetch
from edge.models.folder import ModelFolders
from edge.models.store import SHIPPED, ModelStore, StoredPackage, open_models
from edge.pipeline import Pipeline, StudyResult
from edge.reader import EdgeReader, Screening, open_configured
from edge.report.compose import Assessment
from edge.report.model import Report
from edge.site import Site
from edge.store.pending import PersistPending
from imaging.preprocess import Preprocessed
from models.runtime.detection import Candidate
from models.runtime.errors import EngineUnavailable, ModelError
from models.runtime.screener import open_screener
from process.backoff import doubled

LOOK_S = 1.0
"""The choice in the database is read at most once in this time."""
MOST_FAILURES = 3
"""After this number of errors this process no longer tries a model in shadow."""
FETCH_EVERY_S = 86_400.0
"""Time between two requests for a new model."""
FIRST_PAUSE_S = 60.0
"""Pause after the first fetch that failed; it doubles up to `FETCH_EVERY_S`."""
AUTO = "auto"
"""The value of the setting ``engine`` that leaves the choice to the program."""
AGENT = "agent"
"""Who acts, in the audit trail, where no person does."""

Reading = Callable[[Pipeline, Job, PersistPending], StudyResult]

log = structlog.get_logger()


@dataclass(frozen=True, eq=False)
class _Seen:
    """The lung box of a study, and what the active model found in it."""

    study_key: str
    box: Preprocessed
    candidates: tuple[Candidate, ...]
    findings: tuple[Finding, ...]
    thresholds: Thresholds
    active: str
    took_s: float


@dataclass(frozen=True, eq=False)
class _Shadow:
    """A model that is open beside the active one."""

    version: str
    reader: EdgeReader


class LiveModels:
    """What an agent runs, and tries.

    Use it as a screener to open first (`open_active`), then hand it the pipeline (`attach`).
    """

    def __init__(self, site: Site, clock: Callable[[], float] = time.monotonic) -> None:
        self._site, self._settings, self._clock = site, site.settings, clock
        self._active = SHIPPED
        self._pipeline: Pipeline | None = None
        self._shadow: _Shadow | None = None
        self._seen: _Seen | None = None
        self._failures: dict[str, int] = {}
        self._looked_s, self._is_wanted = float("-inf"), False

    def open_active(self) -> Screening:
        """Open the active model; one that cannot be opened is replaced, and the trail says so.

        Raises:
            ModelError: not even the model of the settings can be opened.
        """
        try:
            with open_models(self._site) as store:
                return self._open_first(store)
        except (sqlite3.Error, EdgeError, OSError) as error:
            log.error("choice of models cannot be read, using screening_model", reason=str(error))
        self._active = SHIPPED
        return self._open(SHIPPED)

    def attach(self, pipeline: Pipeline) -> None:
        """Take the pipeline around the active model."""
        self._pipeline = self._around(pipeline, pipeline.reader)

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline of the next study."""
        assert self._pipeline is not None
        return self._pipeline

    @property
    def label(self) -> str:
        """Model, version and engine of the next study."""
        return self.pipeline.provenance.edge_model

    def active_model(self) -> tuple[str, str]:
        """Name and version of the model of the next study."""
        screener = self.pipeline.reader.screener
        return screener.name, self._active if self._active != SHIPPED else screener.version

    def shadow_state(self) -> ShadowState | None:
        """Return what is in shadow; None also while the database does not answer."""
        try:
            return models_state(self._site).shadow
        except (sqlite3.Error, EdgeError):
            return None

    @property
    def guarantee(self) -> Guarantee:
        """The most that the next report may guarantee."""
        return self.pipeline.provenance.guarantee

    @property
    def finding(self) -> float:
        """The probability from which a candidate of the active model is a finding."""
        return self.pipeline.reader.thresholds.finding

    def reading(self, read: Reading) -> Callable[[Job, PersistPending], StudyResult]:
        """Return ``read`` with the pipeline of the moment; it notes the lung box of each study."""

        def read_and_note(job: Job, persist: PersistPending) -> StudyResult:
            def persist_and_note(
                report: Report, assessment: Assessment, reader: EdgeReader, box: Preprocessed
            ) -> None:
                persist(report, assessment, reader, box)
                self._note(report, assessment, box)

            return read(self.pipeline, job, persist_and_note)

        return read_and_note

    def run_once(self, waiting: bool) -> bool:
        """Change the active model if that was decided, or read one lung box in shadow.

        ``waiting`` says that a study waits: nothing is read in shadow then. Returns whether there
        was something to do. Whatever goes wrong is logged, and harms no study.
        """
        try:
            return self._run_once(waiting)
        except sqlite3.Error as error:
            if not is_transient(error):
                log.warning("choice of models cannot be read", reason=str(error))
        except Exception:  # whatever it is: the next study must be read
            log.exception("model update failed")
            self._seen = None
        return False

    def _run_once(self, waiting: bool) -> bool:
        if self._clock() - self._looked_s < LOOK_S and (waiting or self._seen is None):
            return False
        self._looked_s = self._clock()
        with open_models(self._site) as store:
            choice = store.choice()
            if choice.active != self._active:
                self._switch(store, choice.active)
                return True
            shadow = store.package(choice.shadow) if choice.shadow else None
            self._is_wanted = shadow is not None
            if shadow is None:
                self._shadow = self._seen = None
                return False
            if waiting or self._seen is None or self._is_arriving():
                return False
            self._try(store, shadow, self._seen)
            self._seen = None
            return True

    def _note(self, report: Report, assessment: Assessment, box: Preprocessed) -> None:
        if not self._is_wanted:
            return
        took_s = next((one.took_s for one in report.ledger if _is_screening(one)), 0.0)
        self._seen = _Seen(
            report.study_key,
            box,
            tuple(one.candidate for one in assessment.plan.decisions),
            assessment.merged.findings,
            self.pipeline.reader.thresholds,
            self._active,
            took_s,
        )

    def _is_arriving(self) -> bool:
        """Tell whether anything is in the inbox: its deadline may begin soon."""
        return any(not name.startswith(".") for name in os.listdir(self._site.folders.inbox))

    def _try(self, store: ModelStore, package: StoredPackage, seen: _Seen) -> None:
        """Read a lung box with the model in shadow, and store how far it agrees."""
        if self._failures.get(package.version, 0) >= MOST_FAILURES:
            return
        try:
            shadow = self._opened(package)
            began_s = time.perf_counter()
            found = shadow.reader.screen(seen.box)
            took_s = time.perf_counter() - began_s
        except (ModelError, EdgeError, MemoryError) as error:
            self._shadow = None
            count = self._failures.get(package.version, 0) + 1
            self._failures[package.version] = count
            reason = f"{type(error).__name__}: {error}"
            log.error("model in shadow failed", version=package.version, reason=reason)
            if isinstance(error, RefusedModel) or count == MOST_FAILURES:
                store.refuse(package.version, reason, AGENT)
                ModelFolders.of(self._site.folders).at(package.version).remove()
            return
        thresholds = shadow.reader.thresholds
        compared = compare(
            seen.findings, seen.candidates, seen.thresholds, found, thresholds, seen.took_s, took_s
        )
        store.add_compared(package.version, seen.active, seen.study_key, compared)
        log.info(
            "model compared in shadow",
            study_key=seen.study_key,
            version=package.version,
            findings=compared.findings,
            kept=compared.kept,
            added=compared.added,
        )

    def _opened(self, package: StoredPackage) -> _Shadow:
        """Return the model in shadow, opened once."""
        if self._shadow is None or self._shadow.version != package.version:
            self._shadow = None  # its memory first
            reader = EdgeReader.of(self._open_package(package))
            self._shadow = _Shadow(package.version, reader)
            log.info("model in shadow", version=package.version)
        return self._shadow

    def _switch(self, store: ModelStore, version: str) -> None:
        """Read the next studies with another model."""
        shadow = self._shadow
        try:
            if shadow is not None and shadow.version == version:
                reader = shadow.reader
            else:
                reader = EdgeReader.of(self._open(version, store))
        except (ModelError, EdgeError) as error:
            log.error("model cannot be opened, the active one stays",
                      version=version, reason=str(error))  # fmt: skip
            store.replace_active(self._active, f"{type(error).__name__}: {error}")
            return
        self._active, self._shadow, self._seen = version, None, None
        self._pipeline = self._around(self.pipeline, reader)
        log.info("model changed", model=self.label)

    def _around(self, pipeline: Pipeline, reader: EdgeReader) -> Pipeline:
        """Return the pipeline around the active model; reports name the version of its package."""
        label, screener = reader.label, reader.screener
        if self._active != SHIPPED:
            label = f"{screener.name} {self._active} ({screener.engine})"
        provenance = replace(pipeline.provenance, edge_model=label, guarantee=reader.guarantee)
        return replace(pipeline, reader=reader, provenance=provenance)

    def _open_first(self, store: ModelStore) -> Screening:
        """Open the active model, else the one before it, else that of the settings."""
        choice, reason = store.choice(), ""
        self._is_wanted = choice.shadow is not None
        for version in dict.fromkeys((choice.active, choice.previous or SHIPPED, SHIPPED)):
            try:
                screener = self._open(version, store)
                EdgeReader.of(screener)
            except (ModelError, EdgeError) as error:
                if version == SHIPPED:
                    raise
                reason = f"{type(error).__name__}: {error}"
                log.error("active model cannot be opened", version=version, reason=reason)
                continue
            if version != choice.active:
                log.error("another model is active now", version=version or "screening_model",
                          instead_of=choice.active)  # fmt: skip
                store.replace_active(version, reason)
            self._active = version
            return screener
        raise AssertionError("the last one is returned, or its error raised")

    def _open(self, version: str, store: ModelStore | None = None) -> Screening:
        """Open a version; errors as `_open_package`, and those of the model of the settings."""
        if version == SHIPPED:
            return open_configured(self._settings)
        package = store.package(version) if store else None
        if package is None:
            raise RefusedModel(f"model {version} is not here: fetch it again")
        return self._open_package(package)

    def _open_package(self, package: StoredPackage) -> Screening:
        """Open the model of a package that was fetched.

        Raises:
            RefusedModel: nobody who is trusted signed it.
            ModelError: the file is damaged, or cannot be run.
        """
        settings, folder = self._settings, ModelFolders.of(self._site.folders).at(package.version)
        opened = partial(
            open_screener,
            folder.package(package.name, settings.models.keys).model.name,
            threads=settings.threads,
            keys=settings.models.keys,
            folder=folder.path,
        )
        try:
            return opened(engine=package.engine if settings.engine == AUTO else settings.engine)
        except EngineUnavailable:
            if settings.engine != AUTO:
                raise
            return opened(engine=AUTO)  # the engine that its trial found is gone


@contextmanager
def fetching(site: Site) -> Iterator[None]:
    """Fetch what the cloud offers, in a thread, while entered and if the settings say so."""
    settings = site.settings
    if not settings.models.fetch:
        yield
        return
    stop = threading.Event()

    def fetch_on() -> None:
        failures = 0
        while True:
            try:
                found = fetch(site, user=AGENT)
                log.info("model looked for", version=found.version, new=found.new)
                wait_s, failures = FETCH_EVERY_S, 0
            except Exception as error:  # the agent goes on, and it is tried again
                log.warning("model not fetched", reason=f"{type(error).__name__}: {error}")
                failures += 1
                wait_s = doubled(FIRST_PAUSE_S, FETCH_EVERY_S, failures - 1)
            if stop.wait(wait_s):
                return

    thread = threading.Thread(target=fetch_on, name="models", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(1.0)  # a transfer that is not over is continued at the next start


def _is_screening(entry: LedgerEntry) -> bool:
    return entry.stage == "screen"
