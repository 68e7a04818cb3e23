"""``overread-edge screen`` with a screening network that proposes what its first argument says.

python scripted_screen.py '[[x, y, z, score], ...]' STUDY [options of overread-edge screen]
"""

from __future__ import annotations

import json
import sys

import edge.__main__
import edge.assemble
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


if __name__ == "__main__":
    scripted = ScriptedScreening(json.loads(sys.argv.pop(1)))
    edge.assemble.open_screener = lambda *_, **_given: scripted  # type: ignore[assignment] # a stand-in
    sys.argv.insert(1, "screen")
    edge.__main__.main()
