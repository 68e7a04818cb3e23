"""Note the observations of new reports; the main loop calls it while it is idle."""

import json
from collections.abc import Callable
from pathlib import Path

import structlog

from edge.drift.observe import Observation, observe
from edge.drift.store import DriftStore
from edge.store.studies import StudyStore

AT_ONCE = 500
"""Studies that are looked up together."""

FINDING = 0.5
"""The threshold of findings where that of the model is not known."""

log = structlog.get_logger()


class DriftKeeper:
    """Notes one observation at a time, until there is one for each report.

    Args:
        finding: gives the probability from which a candidate is a finding.
    """

    def __init__(
        self, store: StudyStore, outbox: Path, finding: Callable[[], float] = lambda: FINDING
    ) -> None:
        self._drift, self._outbox, self._finding = DriftStore(store.database), outbox, finding
        self._due: list[tuple[str, str, str]] = []
        self._may_be_due = True

    def changed(self) -> None:
        """Note that a report was written or amended."""
        self._may_be_due = True

    def run_once(self) -> bool:
        """Note one observation; return whether there was one to note.

        Raises:
            sqlite3.OperationalError: nothing can be written now; call again later.
        """
        if not self._due and self._may_be_due:
            self._due = self._drift.due(AT_ONCE)[::-1]
            self._may_be_due = len(self._due) == AT_ONCE
        if not self._due:
            return False
        key, name, updated = self._due[-1]
        self._drift.put(self._observation(key, name), updated)
        self._due.pop()
        return True

    def _observation(self, key: str, name: str) -> Observation:
        """Return what a report shows; nothing if it is gone, or of another study."""
        try:
            report = json.loads((self._outbox / name / "report.json").read_bytes())
            return observe(key, report if report["study_key"] == key else None, self._finding())
        except OSError:
            return Observation(key)
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("report cannot be observed for drift", study_key=key)
            return Observation(key)
