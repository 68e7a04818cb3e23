"""The watch for drift as a part of the agent: one row a study, a gauge a measure, and a page."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edge.drift.compare import NAMES, Level, rates
from edge.drift.keeper import FINDING, DriftKeeper
from edge.drift.monitor import DriftMonitor
from edge.drift.store import MIGRATIONS
from edge.part import Agent, Card, Panel, Part
from edge.report.model import Report
from edge.settings.core import EdgeSettings
from edge.store.schema import Schema
from edge.store.studies import StudyStore

_LOOKS = {Level.ALARM: ("Alarm", "wrong"), Level.WATCH: ("Watch", "look")}


class DriftPart(Part):
    """Compares the last studies with the first ones that the model read."""

    name = "drift"

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        self.monitor = DriftMonitor(agent.site.reading)
        self._kept: tuple[StudyStore, DriftKeeper] | None = None
        level = agent.telemetry.gauge(
            "drift_level", "0 steady, 1 watch, 2 alarm, for each measure of drift", "measure"
        )
        for name in NAMES:
            level.labels(name).set_function(partial(self.monitor.level, name))

    @classmethod
    def schema(cls, _settings: EdgeSettings) -> Schema:
        """Return the table of observations."""
        return Schema(MIGRATIONS)

    def work(self, _waiting: bool) -> bool:
        """Note the observation of one report."""
        return self._keeper().run_once()

    def reported(self, _report: Report) -> None:
        """Note that there is a report to observe."""
        self._keeper().changed()

    def amended(self, _report: Report) -> None:
        """Note that there is a report to observe again."""
        self._keeper().changed()

    def panels(self) -> Sequence[Panel]:
        """Return the page with all measures."""
        template = Path(__file__).with_name("panel.html.j2")
        return [Panel("drift", template, self._values, card=self._card, is_page=True)]

    def _keeper(self) -> DriftKeeper:
        """Return the keeper of the database that is open now."""
        store = self.agent.store()
        if self._kept is None or self._kept[0] is not store:
            keeper = DriftKeeper(store, self.agent.site.folders.outbox, self._finding)
            self._kept = store, keeper
        return self._kept[1]

    def _finding(self) -> float:
        pipeline = self.agent.pipeline()
        return pipeline.reader.thresholds.finding if pipeline else FINDING

    def _values(self) -> Mapping[str, Any]:
        drift = self.monitor.current()
        return {"drift": drift, "rates": rates(drift)}

    def _card(self) -> Card:
        drift = self.monitor.current()
        steady = ("Steady", "ok") if drift.is_complete else ("Too early", "")
        value, look = _LOOKS.get(drift.level, steady)
        count = len(drift.baseline) + len(drift.recent)
        studies = "1 study" if count == 1 else f"{count} studies"
        text = "compare with the first studies" if drift.is_complete else f"{studies} so far"
        return Card("Drift", value, text, look)
