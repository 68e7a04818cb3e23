"""An agent that does not run, as its parts see it, and its commands."""

from collections.abc import Iterable
from pathlib import Path
from threading import Event
from typing import Any

import structlog
from typer.testing import CliRunner, Result

from edge.cli.main import app
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


def config_in(root: Path, *lines: str) -> Path:
    """The settings of the agent below ``root``, in a file; ``lines`` come after its folders."""
    folders = {"inbox": "inbox", "outbox": "outbox", "state_dir": "state"}
    file = root / "edge.toml"
    file.write_text("\n".join([*(f'{n} = "{root / p}"' for n, p in folders.items()), *lines]))
    return file


def command(root: Path, *arguments: str, lines: Iterable[str] = ()) -> Result:
    """A command of ``overread-edge`` with those settings."""
    result = CliRunner().invoke(app, [*arguments, "--config", str(config_in(root, *lines))])
    structlog.reset_defaults()  # its standard error is closed now
    return result
