"""The models of the agent as a part of it: the active one, the one in shadow, and new ones."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from edge.audit import Person
from edge.checks import Checked, Level, Results
from edge.database import Schema
from edge.models.agreement import MIN_STUDIES
from edge.models.fetch import fetching
from edge.models.folder import NotPromotable, UpdatesOff
from edge.models.live import LiveModels
from edge.models.store import MIGRATIONS, models_state, promote, require_sound, roll_back
from edge.part import Action, Agent, Panel, Part
from edge.pipeline import Pipeline
from edge.settings.core import EdgeSettings
from edge.site import Site

STAYS = "The model stays"


class ModelsPart(Part):
    """Reads with the active model, and tries another in shadow.

    ``is_on`` says whether the model may change: it is off until it has the pipeline (`attach`).
    """

    name = "models"

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent)
        self.live = LiveModels(agent.site, agent.clock)
        self.is_on = False
        agent.telemetry.registry.register(_Metrics(self))

    @classmethod
    def schema(cls, _settings: EdgeSettings) -> Schema:
        """Return the tables of the choice, the packages and the comparisons."""
        return Schema(MIGRATIONS)

    @classmethod
    def checks(cls, site: Site) -> Results:
        """Yield what is known of the models that came from the cloud."""
        try:
            state = models_state(site)
        except (UpdatesOff, sqlite3.Error):  # what is wrong with the database was said
            return
        packages = {one.version: one for one in state.packages}
        uses = {"active": state.choice.active, "previous": state.choice.previous,
                "in shadow": state.choice.shadow}  # fmt: skip
        for use, version in uses.items():
            if not version:
                continue
            try:
                if version not in packages:
                    raise NotPromotable(f"{version} is gone: fetch it again")
                require_sound(packages[version], site)
                yield Checked(Level.OK, "model", f"{use}: {version}, from the cloud")
            except NotPromotable as error:
                yield Checked(Level.WRONG, "model", f"{use}: {error}")

    def attach(self, pipeline: Pipeline) -> None:
        """Take the pipeline around the active model, which the agent has from here from now on."""
        self.live.attach(pipeline)
        self.agent.pipeline = lambda: self.live.pipeline
        self.is_on = True

    def opened(self) -> AbstractContextManager[None]:
        """Fetch what the cloud offers, in a thread, where the settings say so."""
        return fetching(self.agent.site) if self.is_on else nullcontext()

    def work(self, waiting: bool) -> bool:
        """Change the active model if that was decided, or read one lung box in shadow."""
        return self.is_on and self.live.run_once(waiting)

    def panels(self) -> Sequence[Panel]:
        """Return the models with their buttons."""
        if not self.is_on:
            return ()
        actions = {
            "promote": Action(
                self._promote, "The model is promoted. It reads from the next study on.", STAYS
            ),
            "rollback": Action(
                self._roll_back, "The previous model reads from the next study on.", STAYS
            ),
        }
        return [Panel("models", Path(__file__).with_name("panel.html.j2"), self._values, actions)]

    def _values(self) -> Mapping[str, Any]:
        site = self.agent.site
        shipped = site.settings.screening_model
        return {"state": models_state(site), "wanted": MIN_STUDIES, "shipped": shipped}

    def _promote(self, form: Mapping[str, str], by: Person) -> None:
        promote(self.agent.site, user=by.user, version=form.get("version", ""))

    def _roll_back(self, _form: Mapping[str, str], by: Person) -> None:
        roll_back(self.agent.site, user=by.user)


class _Metrics(Collector):
    """Which models read; old versions leave no series."""

    def __init__(self, part: ModelsPart) -> None:
        self._part = part

    def collect(self) -> Iterator[Metric]:
        """Yield the model that is active, and the one in shadow."""
        info = GaugeMetricFamily(
            "overread_edge_model_info",
            "1 for the model that reads (active), and the one that is tried (shadow)",
            labels=["role", "model", "version"],
        )
        if self._part.is_on:
            info.add_metric(["active", *self._part.live.active_model()], 1)
            if (tried := self._part.live.shadow_state()) is not None:
                info.add_metric(["shadow", tried.name, tried.version], 1)
        yield info
