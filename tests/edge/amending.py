"""A site that owes second readings: a store, its folders, and an amender on a clock by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge.amend.amender import Amender, RetryBudget
from edge.daemon.inbox import report_names
from edge.daemon.study import AgentFolders, process_study
from edge.escalation.client import SecondReader
from edge.job import Job
from edge.pipeline import StudyResult, read_and_report
from edge.store.pending import persist_in
from edge.store.studies import Record, Step, StudyStore
from evaluation.recovery.agent import settings_in
from tests.edge.cases import SHAPE, HandClock
from tests.edge.killable import put
from tests.edge.owing import SilentCloud, owing

PAUSE_S = 4.0
UNHURRIED = RetryBudget(
    first_s=20.0, longest_s=20.0, max_rois=64, pause_s=PAUSE_S, max_days=30.0, max_bytes=math.inf
)
BY_EDGE = {1: 0.95, 2: 0.7}
"""Findings of version 1 by number, with their probability: the edge alone."""


class Site:
    """A store, its folders, and an amender on a clock by hand."""

    def __init__(self, root: Path, store: StudyStore, cloud: SilentCloud) -> None:
        self.clock, self.store, self.cloud = HandClock(), store, cloud
        self.places = AgentFolders.of(settings_in(root))
        self.places.make()
        self.now = datetime(2026, 3, 1, tzinfo=UTC)
        self.amender = self.start()

    def start(self, max_bytes: float = math.inf) -> Amender:
        """The amender of a process that has just begun."""
        return Amender(
            self.store,
            self.places.outbox,
            self.cloud,
            replace(UNHURRIED, max_bytes=max_bytes),
            clock=self.clock,
            now=lambda: self.now,
            jitter=lambda _low, high: high,
        )

    def study(
        self, name: str, *, pictures: bool = False, second: SecondReader | None = None
    ) -> Record:
        """A study whose report is out and owes two second readings."""
        record = self.store.open_claim((name,), "p", report_names(name))
        assert record is not None
        put(self.places.work / record.id, name)
        record = self.store.advance(record.id, Step.CLAIMED)

        def read(job: Job) -> StudyResult:
            pipeline = owing(second or self.cloud, pictures=pictures)
            persist = persist_in(self.store.pending, SHAPE)
            return read_and_report(replace(pipeline, persist_pending=persist), job)

        process_study(record, None, self.places, self.store, read, 60.0, [].append)
        return self.store.get(record.id)

    def turns(self) -> None:
        """Turns until there is nothing to do."""
        while self.amender.run_once():
            pass

    def report(self, name: str, version: str = "") -> dict[str, Any]:
        """The report of a study as its readers have it."""
        path = self.places.outbox / name / f"report{version}.json"
        words: dict[str, Any] = json.loads(path.read_text())
        return words


def findings(report: dict[str, Any]) -> dict[int, float]:
    """Number to probability."""
    return {finding["number"]: finding["probability"] for finding in report["findings"]}
