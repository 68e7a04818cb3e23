"""The models of a running agent: the active one, and the one in shadow.

The main loop calls `LiveModels.run_once` while it is between two studies. Then the active model may
change, and the lung box of the last study is read once more with the model in shadow. That is done
only while no study waits and none is in the inbox, so it is never in the way of a deadline; and
after the report is out. One lung box is kept, that of the last study.
"""

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import structlog

from edge.atomic_files import is_transient
from edge.errors import EdgeError
from edge.findings import Finding
from edge.job import Job
from edge.models.agreement import Reading, compare
from edge.models.folder import RefusedModel, folder_of, remove_version, signed_package
from edge.models.store import (
    AGENT,
    SHIPPED,
    ModelStore,
    ShadowState,
    StoredPackage,
    models_state,
    open_models,
)
from edge.pipeline import PersistPending, Pipeline, StudyResult, read_and_report
from edge.reader import EdgeReader, Screening, open_configured
from edge.report.compose import Assessment
from edge.report.model import Report
from edge.site import Site
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry
from models.runtime.errors import EngineUnavailable, ModelError
from models.runtime.screener import open_screener

USUAL_BOX = (288, 224, 272)  # (z, y, x) in mm; the first, which takes longer, is an empty one
LOOK_S = 1.0
"""The choice in the database is read at most once in this time."""
MAX_FAILURES = 3
"""After this number of errors this process no longer tries a model in shadow."""
AUTO = "auto"
"""The value of the setting ``engine`` that leaves the choice to the program."""

log = structlog.get_logger()


@dataclass(frozen=True, eq=False)
class _Seen:
    """The lung box of a study, and what the active model found in it."""

    study_key: str
    box: Preprocessed
    findings: tuple[Finding, ...]
    reading: Reading
    active: str


class LiveModels:
    """What an agent runs, and tries.

    Use it as a screener to open first (`open_active`), then hand it the pipeline (`attach`).
    """

    def __init__(self, site: Site, clock: Callable[[], float] = time.monotonic) -> None:
        self._site, self._settings, self._clock = site, site.settings, clock
        self._active = SHIPPED
        self._pipeline: Pipeline | None = None
        self._shadow: tuple[str, EdgeReader] | None = None
        self._seen: _Seen | None = None
        self._failures = Counter[str]()
        self._looked_s, self._is_wanted = float("-inf"), False
        self._opened_s: float | None = None  # when the active model was, if it has read no box

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
        return open_configured(self._settings)

    def attach(self, pipeline: Pipeline) -> None:
        """Take the pipeline around the active model."""
        self._pipeline, self._opened_s = self._around(pipeline, pipeline.reader), self._clock()

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline of the next study."""
        assert self._pipeline is not None
        return self._pipeline

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

    def read(self, job: Job, persist: PersistPending) -> StudyResult:
        """Read a study with the pipeline of the moment, whose lung box is noted."""

        def persist_and_note(
            report: Report, assessment: Assessment, reader: EdgeReader, box: Preprocessed
        ) -> None:
            persist(report, assessment, reader, box)
            self._note(report, assessment, box)

        self._opened_s = None
        provenance = replace(self.pipeline.provenance, amends=True)
        noting = replace(self.pipeline, persist_pending=persist_and_note, provenance=provenance)
        return read_and_report(noting, job)

    def run_once(self, waiting: bool) -> bool:
        """Change the active model if that was decided, or read one box: in shadow, or an empty one.

        ``waiting`` says that a study waits: no box is read then. Returns whether there
        was something to do. Whatever goes wrong is logged, and harms no study.
        """
        try:
            return self._run_once(waiting) or self._warm_up(waiting)
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
            shadow = store.package(choice.shadow)
            self._is_wanted = shadow is not None
            if shadow is None:
                self._shadow = self._seen = None
                return False
            if waiting or self._seen is None or self._is_arriving():
                return False
            self._try(store, shadow, self._seen)
            self._seen = None
            return True

    def _warm_up(self, waiting: bool) -> bool:
        """Read an empty box, a while after each active model is opened; a study comes first."""
        is_due = self._opened_s is not None and self._clock() - self._opened_s >= LOOK_S
        if not is_due or waiting or self._is_arriving():
            return False
        self._opened_s = None
        self.pipeline.reader.screen(Preprocessed(np.zeros(USUAL_BOX, np.uint8), Geometry()))
        return True

    def _note(self, report: Report, assessment: Assessment, box: Preprocessed) -> None:
        if self._is_wanted:
            took_s = next((one.took_s for one in report.ledger if one.stage == "screen"), 0.0)
            candidates = [one.candidate for one in assessment.plan.decisions]
            reading = Reading(candidates, self.pipeline.reader.thresholds, took_s)
            findings = assessment.merged.findings
            self._seen = _Seen(report.study_key, box, findings, reading, self._active)

    def _is_arriving(self) -> bool:
        """Tell whether anything is in the inbox: its deadline may begin soon."""
        return any(not name.startswith(".") for name in os.listdir(self._site.folders.inbox))

    def _try(self, store: ModelStore, package: StoredPackage, seen: _Seen) -> None:
        """Read a lung box with the model in shadow, and store how far it agrees."""
        version = package.version
        if self._failures[version] >= MAX_FAILURES:
            return
        try:
            reader = self._reader_in_shadow(package)
            began_s = time.perf_counter()
            found = reader.screen(seen.box)
            took_s = time.perf_counter() - began_s
        except (ModelError, EdgeError, MemoryError) as error:
            self._shadow = None
            self._failures[version] += 1
            reason = f"{type(error).__name__}: {error}"
            log.error("model in shadow failed", version=version, reason=reason)
            if isinstance(error, RefusedModel) or self._failures[version] == MAX_FAILURES:
                store.refuse(version, reason, AGENT)
                remove_version(folder_of(self._site, version))
            return
        compared = compare(seen.findings, seen.reading, Reading(found, reader.thresholds, took_s))
        store.add_compared(version, seen.active, seen.study_key, compared)
        log.info(
            "model compared in shadow",
            study_key=seen.study_key,
            version=version,
            findings=compared.findings,
            kept=compared.kept,
            added=compared.added,
        )

    def _reader_in_shadow(self, package: StoredPackage) -> EdgeReader:
        """Return the reader of the model in shadow, opened once."""
        if self._shadow is None or self._shadow[0] != package.version:
            self._shadow = None  # its memory first
            self._shadow = package.version, EdgeReader.of(self._open_package(package))
            log.info("model in shadow", version=package.version)
        return self._shadow[1]

    def _switch(self, store: ModelStore, version: str) -> None:
        try:
            if self._shadow is not None and self._shadow[0] == version:
                reader = self._shadow[1]
            else:
                reader = EdgeReader.of(self._open(version, store))
        except (ModelError, EdgeError) as error:
            log.error("model cannot be opened, the active one stays",
                      version=version, reason=str(error))  # fmt: skip
            store.replace_active(self._active, f"{type(error).__name__}: {error}")
            return
        self._active, self._shadow, self._seen = version, None, None
        self._pipeline, self._opened_s = self._around(self.pipeline, reader), self._clock()
        log.info("model changed", model=self.pipeline.provenance.edge_model)

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

    def _open(self, version: str, store: ModelStore) -> Screening:
        """Open a version; errors as `_open_package`, and those of the model of the settings."""
        if version == SHIPPED:
            return open_configured(self._settings)
        package = store.package(version)
        if package is None:
            raise RefusedModel(f"model {version} is not here: fetch it again")
        return self._open_package(package)

    def _open_package(self, package: StoredPackage) -> Screening:
        """Open a package that was fetched, with the engine that its trial found if it may.

        Raises:
            RefusedModel, ModelError: nobody who is trusted signed it, or it cannot be run.
        """
        settings, folder = self._settings, folder_of(self._site, package.version)
        keys = settings.models.keys
        name = signed_package(package.name, folder, keys).model.name
        first = package.engine if settings.engine == AUTO else settings.engine
        try:
            return open_screener(
                name, engine=first, threads=settings.threads, keys=keys, folder=folder
            )
        except EngineUnavailable:
            if settings.engine != AUTO:
                raise
            # the engine that its trial found is gone
            return open_screener(name, threads=settings.threads, keys=keys, folder=folder)
