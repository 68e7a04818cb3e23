"""The real agent as a process, with a screening network that proposes what its first argument says.

python scripted_agent.py '[[x, y, z, score], ...]' --config edge.toml
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from edge.agent import run_agent
from edge.assemble import build_line
from edge.escalate import NoSecondReader
from edge.reading import read_and_report
from edge.settings import load_settings
from edge.telemetry import configure_logging
from imaging.preprocess import Preprocessed
from models.runtime.detection import Candidate


class ScriptedScreening:
    """Proposes candidates at given places ``(x, y, z)`` LPS mm, with given scores."""

    name, version, engine = "scripted", "1", "none"

    def __init__(self, marks: list[list[float]]) -> None:
        self.marks = marks
        thresholds = {"dismiss": 0.1, "report": 0.9, "alone": 0.5, "final": 0.6}
        self.settings = {"thresholds": thresholds, "merge": [0.0, 0.5, 0.5]}

    def screen(self, box: Preprocessed) -> list[Candidate]:
        """The scripted candidates, with their place in this box."""
        found = []
        for x, y, z, score in self.marks:
            k, j, i = (float(v) for v in box.geometry.to_index((x, y, z)))
            found.append(Candidate((x, y, z), (k, j, i), 6.0, score))
        return found


def run(marks: str, config: str) -> None:
    """Works until SIGTERM, as the agent does."""
    settings = load_settings(Path(config))
    configure_logging(settings.log_format, sys.stderr)
    line = build_line(settings, ScriptedScreening(json.loads(marks)), NoSecondReader())
    run_agent(settings, line=partial(read_and_report, line))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[3])
