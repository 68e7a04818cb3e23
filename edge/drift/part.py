"""The watch for drift as a part of the agent: one row a study, a gauge a measure, and a page."""

import sqlite3
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edge.database import Schema
from edge.drift.compare import BASELINE, NAMES, RECENT, Drift, Level, compare, rates
from edge.drift.observe import MIGRATIONS, Observation, due, observations, observe, put
from edge.part import Agent, Card, Panel, Part
from edge.report.model import Report
from edge.report.serialize import own_report
from edge.settings.core import EdgeSettings

NOTHING = Drift("", (), ())


def _load(database: sqlite3.Connection) -> Drift:
    last = database.execute(
        "SELECT model FROM drift WHERE model != '' ORDER BY rowid DESC LIMIT 1"
    ).fetchone()
    if last is None:
        return NOTHING
    model = str(last[0])
    counted = database.execute("SELECT count(*) FROM drift WHERE model = ?", (model,))
    skip, of = max(BASELINE, counted.fetchone()[0] - RECENT), partial(observations, database, model)
    return compare(model, of(BASELINE), of(RECENT, skip=skip))


AT_ONCE = 500
"""Studies that are looked up together."""

FINDING = 0.5
"""The threshold of findings where that of the model is not known."""


_LOOKS = {Level.ALARM: ("Alarm", "wrong"), Level.WATCH: ("Watch", "look")}


class DriftPart(Part):
    """Compares the last studies with the first ones that the model read."""

    name = "drift"

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        self._lock = threading.Lock()
        self._seen: tuple[object, ...] = ()
        self._drift = NOTHING
        self._due: list[tuple[str, str, str]] = []
        self._may_be_due = True
        level = agent.telemetry.gauge(
            "drift_level", "0 steady, 1 watch, 2 alarm, for each measure of drift", "measure"
        )
        for name in NAMES:
            level.labels(name).set_function(partial(self.level, name))

    @classmethod
    def schema(cls, _settings: EdgeSettings) -> Schema:
        """Return the table of observations."""
        return Schema(MIGRATIONS)

    def current(self) -> Drift:
        """Return the drift of the model that read the last study; several threads may ask.

        Raises:
            sqlite3.Error: the database does not answer.
        """
        with self._lock, self.agent.site.reading() as database:
            seen = database.execute(
                "SELECT count(*), max(rowid), max(updated), sum(provisional) FROM drift"
            ).fetchone()
            if tuple(seen) != self._seen:
                self._drift = _load(database)
                self._seen = tuple(seen)
            return self._drift

    def level(self, measure: str) -> float:
        """Return the level of a measure as a number, 0 where nothing is known."""
        try:
            found = self.current().measures
        except sqlite3.Error:
            return 0.0
        return float(next((one.level.value for one in found if one.name == measure), 0))

    def work(self, _waiting: bool) -> bool:
        """Note the observation of one report, until there is one for each."""
        database = self.agent.store.database
        if not self._due and self._may_be_due:
            self._due = due(database, AT_ONCE)[::-1]
            self._may_be_due = len(self._due) == AT_ONCE
        if not self._due:
            return False
        key, name, updated = self._due[-1]
        put(database, self._observation(key, name), updated)
        self._due.pop()
        return True

    def reported(self, _report: Report) -> None:
        """Note that there is a report to observe."""
        self._may_be_due = True

    def amended(self, _report: Report) -> None:
        """Note that there is a report to observe again."""
        self._may_be_due = True

    def panels(self) -> Sequence[Panel]:
        """Return the page with all measures."""
        template = Path(__file__).with_name("panel.html.j2")
        return [Panel("drift", template, self._values, card=self._card, is_page=True)]

    def _observation(self, key: str, name: str) -> Observation:
        """Return what a report shows; nothing if it is gone, or of another study."""
        pipeline = self.agent.pipeline()
        finding = pipeline.reader.thresholds.finding if pipeline else FINDING
        try:
            report = own_report(self.agent.site.folders.outbox / name / "report.json", key)
        except OSError:
            report = None
        return observe(key, report, finding)

    def _values(self) -> Mapping[str, Any]:
        drift = self.current()
        return {"drift": drift, "rates": rates(drift)}

    def _card(self) -> Card:
        drift = self.current()
        steady = ("Steady", "ok") if drift.is_complete else ("Too early", "")
        value, look = _LOOKS.get(drift.level, steady)
        count = len(drift.baseline) + len(drift.recent)
        studies = "1 study" if count == 1 else f"{count} studies"
        text = "compare with the first studies" if drift.is_complete else f"{studies} so far"
        return Card("Drift", value, text, look)
