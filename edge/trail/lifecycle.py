"""What the audit trail has of the agent itself: its start, with a hash of the settings; its end."""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any

import structlog

from edge.access import user_name
from edge.agent.loop import PAUSE_POLLS
from edge.atomic_files import is_transient
from edge.audit import AuditTrail, Event
from edge.settings.cloud import CLOUD_OFF
from edge.settings.core import EdgeSettings
from edge.trail.records import canonical, digest

log = structlog.get_logger()


@contextmanager
def recording(trail: Callable[[], AuditTrail], settings: EdgeSettings) -> Iterator[None]:
    """Bring the trail's files up to its database, and record the end of the agent.

    Raises:
        OSError: the files cannot be read or written, and waiting does not help.
    """
    try:
        trail().flush()
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
            trail().record(Event.STOPPED, site=settings.site, reason=reason)
            trail().flush()


def record_start(
    trail: AuditTrail, settings: EdgeSettings, model: str, stop: threading.Event
) -> None:
    """Record the start of the agent; wait while nothing can be written."""
    while not stop.is_set():
        try:
            trail.record(Event.STARTED, **trail_facts(settings), model=model)
            return
        except (OSError, sqlite3.OperationalError) as error:
            if not is_transient(error):
                raise
            log.warning("start cannot be recorded, waiting", reason=str(error))
            stop.wait(PAUSE_POLLS * settings.poll_s)


def trail_facts(settings: EdgeSettings) -> dict[str, Any]:
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
