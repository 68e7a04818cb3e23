"""TLS on the way to the cloud: the edge's files, and the reason why it fails."""

import time
from collections.abc import Callable

from edge.settings.core import EdgeSettings
from process.tls import diagnose, replicas_of

DIAGNOSE_EVERY_S = 30.0
"""Shortest time between two diagnoses: each opens a connection."""
DIAGNOSE_S = 1.5
"""Time for each step of a diagnosis: two round trips of a satellite link. A stop waits for it."""


def check_credentials(settings: EdgeSettings) -> list[str]:
    """Return what is wrong with the TLS files, a sentence each; nothing if they can be used."""
    return settings.cloud.tls.problems()


class Diagnosis:
    """Why TLS fails on the way to one cloud, found out again while it fails."""

    def __init__(
        self, address: str, settings: EdgeSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = replicas_of(address)[0]  # all have the same certificates
        self._files, self._clock = settings.cloud.tls, clock
        self._reason, self._next_s = "", float("-inf")

    def reason(self) -> str:
        """Return the reason; empty if TLS does not fail, or the cloud cannot be reached at all."""
        if self._clock() >= self._next_s:
            self._reason = diagnose(self._address, self._files, DIAGNOSE_S)
            self._next_s = self._clock() + DIAGNOSE_EVERY_S
        return self._reason
