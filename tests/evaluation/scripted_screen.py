"""``overread-edge screen`` with a screening network that proposes what its first argument says.

python scripted_screen.py '[[[x, y, z], score], ...]' STUDY [options of overread-edge screen]
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

import edge.assemble
import edge.cli.main
from edge.assemble import build_pipeline
from edge.escalation.client import NoSecondReader
from edge.pipeline import Pipeline
from edge.settings.core import load_settings
from imaging.preprocess import Preprocessed
from imaging.volume import Triple, UInt8Array, triple
from models.runtime.detection import Candidate
from models.runtime.second_reader import Readings
from tests.plain_readings import plain


class ScriptedScreening:
    """Proposes candidates at given places ``(x, y, z)`` LPS mm, with given scores."""

    name, version, engine = "scripted", "1", "none"

    def __init__(self, places: Sequence[tuple[Triple, float]], possible: float = 0.5) -> None:
        self.places = places
        thresholds = {"dismiss": 0.1, "report": 0.9, "finding": 0.5, "possible": possible}
        self.settings = {"thresholds": thresholds, "merge": [0.0, 0.5, 0.5, -9.0, 9.0]}

    def screen(self, box: Preprocessed) -> list[Candidate]:
        at = (triple(box.geometry.to_index(place)) for place, _ in self.places)
        return [
            Candidate(place, index, 6.0, score)
            for index, (place, score) in zip(at, self.places, strict=True)
        ]


class ScriptedSecond:
    """Answers each batch, by default with the brightness in the middle, and keeps what it saw.

    It outlines the cube of voxels from 24 to ``outlined`` of each ROI.
    """

    roi_shape = (48, 48, 48)

    def __init__(
        self, answer: Callable[[UInt8Array], npt.ArrayLike] | None = None, outlined: int = 0
    ) -> None:
        self._answer = answer or (lambda rois: rois[:, 22:27, 22:27, 22:27].max((1, 2, 3)) / 255)
        self._outlined = outlined
        self.seen: list[UInt8Array] = []

    def read(self, batch: UInt8Array) -> Readings:
        self.seen.append(batch)
        mask = np.zeros(batch.shape, bool)
        mask[(slice(None), *[slice(24, self._outlined)] * 3)] = True
        return replace(plain(self._answer(batch), [7.0] * len(batch)), mask=mask)


def scripted_pipeline(places: Sequence[tuple[Triple, float]]) -> Pipeline:
    """The pipeline of an edge without a cloud that proposes these places."""
    return build_pipeline(load_settings(deadline_s=60), ScriptedScreening(places), NoSecondReader())


if __name__ == "__main__":
    proposed = json.loads(sys.argv.pop(1))
    scripted = ScriptedScreening([(tuple(place), score) for place, score in proposed])
    edge.assemble.open_configured = lambda _settings: scripted  # type: ignore # a stand-in
    sys.argv.insert(1, "screen")
    edge.cli.main.main()
