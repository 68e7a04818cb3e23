"""Who sees what, in the audit trail: a view is recorded before its content is answered."""

import threading
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from edge.audit import Event
from edge.part import Agent
from edge.status.login import audited, person_of

SAME_S, AGAIN_S = 60.0, 3600.0
"""A user who sees the same thing again within the first time has one view; it is recorded again
after the second. So the hundreds of slices of a viewer are one record, and an open page a few."""


class Views:
    """The views of the last minute; several threads may use it."""

    def __init__(self, agent: Agent) -> None:
        self._agent, self._lock = agent, threading.Lock()
        self._seen: dict[str, tuple[float, float]] = {}  # recorded, and last seen

    def record(self, request: Request, what: str, *within: tuple[str, str], **facts: Any) -> None:
        """Record what the user is about to see, unless that is one view with what he saw before.

        ``within`` is what he sees with it, with study keys: it is no view of its own.

        Raises:
            HTTPException: it cannot be recorded, so nothing may be shown.
        """
        by, now_s = person_of(request), self._agent.clock()
        view = f"{by} {what} {[*facts.values()]}"
        with self._lock:
            self._seen = {
                name: (first_s, last_s)
                for name, (first_s, last_s) in self._seen.items()
                if last_s > now_s - SAME_S and first_s > now_s - AGAIN_S
            }
            is_new, site = view not in self._seen, self._agent.site
            if is_new and not audited(site, Event.VIEWED, by, what=what, **facts):
                text = "Nothing is shown now, because views cannot be recorded in the audit trail."
                raise HTTPException(503, f"{text} {self._agent.problem()}".strip())
            for one in (view, *(f"{by} {part} {[key]}" for part, key in within)):
                self._seen[one] = self._seen.get(one, (now_s, now_s))[0], now_s
