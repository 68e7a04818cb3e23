"""The audit trail as a part of the agent: its tables, and the records of the agent itself."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any

import structlog

from edge.access import user_name
from edge.atomic_files import is_transient
from edge.audit import Event
from edge.checks import Checked, Level, Results
from edge.database import Schema
from edge.folders import AgentFolders
from edge.part import Part
from edge.settings.core import CLOUD_OFF, EdgeSettings
from edge.site import Site
from edge.trail.records import canonical, digest, files_in
from edge.trail.store import MIGRATIONS, TrailStore
from edge.trail.verify import NoTrail, verify

log = structlog.get_logger()


class TrailPart(Part):
    """Records what is done with each study, and the start and the end of the agent."""

    name = "trail"

    @classmethod
    def schema(cls, settings: EdgeSettings) -> Schema:
        """Return the tables of the trail, and how the core records in them."""
        folder = AgentFolders.of(settings).trail
        return Schema(MIGRATIONS, lambda database, hook: TrailStore(database, folder, on_step=hook))

    @classmethod
    def checks(cls, site: Site) -> Results:
        """Yield whether the chain of the trail is sound."""
        folder = site.folders.trail
        if not files_in(folder):
            text = f"{folder} has no file: the agent makes it at its start"
            yield Checked(Level.NOTE, "trail", text)
            return
        try:
            found = verify(folder, site.database)
        except NoTrail:  # what is wrong with the database was said
            found = verify(folder)
        yield Checked(Level.WRONG if found.broken else Level.OK, "trail", found.text)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Bring the trail's files up to its database, and record the end of the agent.

        Raises:
            OSError: the files cannot be read or written, and waiting does not help.
        """
        try:
            self.agent.store.trail.flush()
        except (OSError, sqlite3.OperationalError) as error:
            if not is_transient(error):
                raise
        reason = "it was stopped"
        try:
            yield
        except BaseException as error:
            reason = type(error).__name__
            raise
        finally:
            with suppress(OSError, sqlite3.Error):  # they wait in the database, or it is damaged
                trail = self.agent.store.trail
                trail.record(Event.STOPPED, site=self.agent.site.settings.site, reason=reason)
                trail.flush()

    def started(self) -> None:
        """Record the start of the agent; wait while nothing can be written."""
        agent, settings = self.agent, self.agent.site.settings
        pipeline = agent.pipeline()
        model = pipeline.provenance.edge_model if pipeline else ""
        while not agent.stop.is_set():
            try:
                agent.store.trail.record(Event.STARTED, **start_facts(settings), model=model)
                return
            except (OSError, sqlite3.OperationalError) as error:
                if not is_transient(error):
                    raise
                log.warning("start cannot be recorded, waiting", reason=str(error))
                agent.stop.wait(agent.site.pause_s)


def start_facts(settings: EdgeSettings) -> dict[str, Any]:
    """Return what the audit trail has of the start of an agent, the hash of all settings too."""
    values = settings.model_dump(mode="json")
    return {
        "site": settings.site,
        "program": f"overread-edge {version('overread')}",
        "settings": str(settings.file or "no file"),
        "settings_sha256": digest(canonical(values)),
        "cloud": settings.cloud.address or CLOUD_OFF,
        "user": user_name(os.geteuid()),
    }
