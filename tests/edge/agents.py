"""An agent that does not run, as its parts see it."""

from collections.abc import Iterable
from threading import Event
from typing import Any

from edge.part import Agent, Panel, Part
from edge.run import site_of
from edge.settings.core import EdgeSettings
from edge.store.studies import StudyStore
from edge.telemetry import Telemetry
from tests.edge.databases import nothing


def no_store() -> StudyStore:
    """Fail: only the main loop has an open database."""
    raise AssertionError("the main loop does not run")


def agent_of(settings: EdgeSettings, **given: Any) -> Agent:
    """The agent of these settings, without parts."""
    values: dict[str, Any] = {
        "clock": lambda: 0.0,
        "wake": lambda: None,
        "problem": lambda: "",
        "store": no_store,
        "telemetry": Telemetry(),
        **given,
    }
    return Agent(site_of(settings), stop=Event(), on_step=nothing, **values)


class Showing(Part):
    """A part that only shows panels."""

    def __init__(self, agent: Agent, panels: Iterable[Panel]) -> None:
        super().__init__(agent)
        self._panels = tuple(panels)

    def panels(self) -> tuple[Panel, ...]:
        return self._panels
