"""The edge of ``overread-eval latency --candidates``: times one candidate after another.

The candidates are those of the edge's own network in one prepared study. Whatever their scores, all
are treated as uncertain.
"""

import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from edge.decide import ROI_SIDE, Situation, Thresholds, decide
from edge.escalation.client import Escalator
from edge.escalation.rois import RoiStates, cut_rois
from edge.link.channel import open_link
from edge.link.estimate import Arrival
from edge.link.link import Link
from edge.merge import MergeWeights, merge
from edge.reader import EdgeReader
from edge.settings.core import EdgeSettings, load_settings
from evaluation.phantoms import prepare, whole_chest
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from models.runtime.detection import Candidate
from models.runtime.screener import open_screener
from protos.codec import encode_roi
from protos.deadline import Deadline


@dataclass(frozen=True, eq=False)
class Case:
    """A lung box and its candidates, all of them uncertain under these thresholds."""

    box: Preprocessed
    candidates: Sequence[Candidate]
    thresholds: Thresholds
    weights: MergeWeights


class RecordingLink(Link):
    """A link that also remembers the last verdict."""

    last: Arrival | None = None

    def succeeded(self, arrivals: Sequence[Arrival], response_s: float = 0.0) -> None:
        """See `edge.link.link.Link.succeeded`."""
        self.last = arrivals[-1] if arrivals else None
        super().succeeded(arrivals, response_s)


def read_case(folder: Path, settings: EdgeSettings) -> Case:
    """Read and screen the study in that folder."""
    screener = open_screener(settings.screening_model, engine=settings.engine)
    reader = EdgeReader.of(screener)
    box = preprocess(read_study(folder).volume, folder)
    uncertain = replace(reader.thresholds, dismiss=0.0, report=1.01)
    return Case(box, reader.screen(box), uncertain, reader.weights)


def escalate(
    case: Case, number: int, second: Escalator, link: RecordingLink, settings: EdgeSettings
) -> dict[str, Any]:
    """Take one candidate to its final verdict; the seconds in all and of each part."""
    candidate = case.candidates[number % len(case.candidates)]
    times_s = [time.monotonic()]
    situation = Situation(
        (candidate,), case.thresholds, link.estimate(),
        settings.deadline_s, ROI_SIDE**3, settings.cloud.max_rois,
    )  # fmt: skip
    plan = decide(situation)
    times_s.append(time.monotonic())
    rois = cut_rois(plan, case.box)
    times_s.append(time.monotonic())
    answers = second.read_rois(rois, Deadline.after(settings.deadline_s), uuid.uuid4().hex)
    times_s.append(time.monotonic())
    merge(plan, answers, case.thresholds, case.weights, case.box.geometry)
    times_s.append(time.monotonic())
    if (last := link.last) is None or not answers.verdicts:
        return {"reason": answers.reason or "no verdict"}
    decide_s, cut_s, stream_s, merge_s = (b - a for a, b in pairwise(times_s))
    began_s = time.monotonic()  # encode once more, to learn how long that takes
    for roi in RoiStates(rois).open.values():
        encode_roi(roi)
    encode_s = time.monotonic() - began_s
    parts_s = {
        "decide": decide_s,
        "cut and encode": cut_s + encode_s,
        "link": last.transport_s - encode_s,
        "queue": last.queue_s,
        "compute": last.compute_s,
        "end of stream": stream_s - last.after_s,
        "merge": merge_s,
    }
    return {"total_s": times_s[-1] - times_s[0], "parts_s": parts_s}


class Candidates:
    """The candidates of one phantom, and a link to a cloud; for `evaluation.world.apart`."""

    def __init__(self, seed: int, cache: Path) -> None:
        (prepared,) = prepare([whole_chest(seed)], cache)
        self._case = read_case(prepared.folder, load_settings())
        self._held = ExitStack()

    def open(self, address: str) -> None:
        """Connect to a cloud, and wait until the link is known."""
        self._held.close()
        self._settings, self._link = load_settings(cloud__address=address), RecordingLink()
        channel = open_link(address, self._link, self._settings, self._held)
        self._second = Escalator(channel, self._link, self._settings)
        self._link.wait_until_known()

    def escalate(self, number: int) -> dict[str, Any]:
        """Have one candidate read again; see `escalate`."""
        return escalate(self._case, number, self._second, self._link, self._settings)
