"""The edge's side of ``overread-eval detection``: one candidate at a time, from place to verdict.

It is told what to do by lines of JSON on stdin and answers each with one on stdout: ``{"open":
{settings}}`` opens the way to a cloud, ``{"ask": number}`` has one candidate read again and tells
what each part took, in milliseconds. The candidates are those that the edge's own network sees in
one prepared study; whatever their scores, each is treated as uncertain.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from edge.assemble import open_channel
from edge.decide import Situation, Thresholds, decide
from edge.escalation.client import Asking, Escalator, Knock
from edge.escalation.rois import Exchange, cut_rois
from edge.link.estimate import Arrival
from edge.link.health import Watch
from edge.link.link import Link
from edge.merge import MergeWeights, merge
from edge.screen import EdgeReader
from edge.settings import EdgeSettings, load_settings
from evaluation.links.studies import prepare, prepared_specs
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from models.runtime.detection import Candidate
from models.runtime.screener import open_screener
from protos.codec import encode_roi
from protos.deadline import Deadline
from protos.messages import Roi


@dataclass(frozen=True, eq=False)
class Case:
    """What is asked about: a lung box and what the edge sees in it, all of it uncertain."""

    box: Preprocessed
    candidates: Sequence[Candidate]
    thresholds: Thresholds
    weights: MergeWeights


class NotingLink(Link):
    """Remembers the verdict that came last."""

    last: Arrival | None = None

    def succeeded(self, arrivals: Sequence[Arrival], heard_s: float = 0.0) -> None:
        """See `edge.link.link.Link.succeeded`."""
        self.last = arrivals[-1] if arrivals else None
        super().succeeded(arrivals, heard_s)


def case_of(folder: Path, settings: EdgeSettings) -> Case:
    """The prepared study in that folder, through the first stages of the line."""
    screener = open_screener(settings.screening_model, engine=settings.engine)
    reader = EdgeReader.of(screener)
    box = preprocess(read_study(folder).volume, folder)
    uncertain = replace(reader.thresholds, dismiss=0.0, report=1.01)
    return Case(box, reader.screen(box), uncertain, reader.weights)


def ask(
    case: Case, number: int, second: Escalator, link: NotingLink, settings: EdgeSettings
) -> dict[str, Any]:
    """One candidate from its place to its final verdict, and what each part of it took."""
    candidate = case.candidates[number % len(case.candidates)]
    side = settings.roi_side
    marks = [time.monotonic()]
    situation = Situation(
        (candidate,), case.thresholds, link.estimate(),
        settings.deadline_s, side**3, settings.max_rois,
    )  # fmt: skip
    plan = decide(situation)
    marks.append(time.monotonic())
    rois = cut_rois(plan, case.box, (side, side, side))
    marks.append(time.monotonic())
    answers = second.ask(rois, Deadline.after(settings.deadline_s), uuid.uuid4().hex)
    marks.append(time.monotonic())
    merge(plan, answers, case.thresholds, case.weights, case.box.geometry)
    marks.append(time.monotonic())
    if link.last is None or not answers.verdicts:
        return {"reason": answers.reason or "no verdict"}
    return _parts(marks, _encode_s(rois), link.last)


def _parts(marks: Sequence[float], encode_s: float, came: Arrival) -> dict[str, Any]:
    """Milliseconds of each part; they add up to the whole."""
    decide_s, cut_s, ask_s, merge_s = (b - a for a, b in pairwise(marks))
    parts_s = {
        "decide": decide_s,
        "cut and encode": cut_s + encode_s,
        "link": came.transport_s - encode_s,
        "queue": came.queue_s,
        "compute": came.compute_s,
        "end of stream": ask_s - came.after_s,
        "merge": merge_s,
    }
    return {
        "total_ms": 1000 * (marks[-1] - marks[0]),
        "parts_ms": {name: 1000 * took_s for name, took_s in parts_s.items()},
    }


def _encode_s(rois: Sequence[Roi]) -> float:
    """What making messages of them takes, done once more for the purpose."""
    began_s = time.monotonic()
    for roi in Exchange(rois).open.values():
        encode_roi(roi)
    return time.monotonic() - began_s


def answers(commands: Iterable[str], folder: Path) -> Iterator[dict[str, Any]]:
    """The answer to each command."""
    with ExitStack() as held:
        settings = load_settings()
        case, link, second = case_of(folder, settings), NotingLink(), None
        for command in map(json.loads, commands):
            if "open" in command:
                held.close()
                settings, link = load_settings(**command["open"]), NotingLink()
                second = _open_way(settings, link, held)
                link.settle()
                yield {"opened": len(case.candidates)}
            elif second is not None:
                yield ask(case, command["ask"], second, link, settings)


def _open_way(settings: EdgeSettings, link: Link, held: ExitStack) -> Escalator:
    channel = held.enter_context(open_channel(str(settings.cloud), settings))
    if settings.watch_s:
        knock, first_s = partial(Knock, channel), settings.connect_s
        held.enter_context(Watch(knock, link, settings.watch_s, first_s=first_s))
    side = settings.roi_side
    return Escalator(channel, link, Asking((side, side, side), settings.reserve_s))


def main(seed: int, cache: Path) -> None:
    """Answers until stdin ends."""
    (prepared,) = prepare(prepared_specs(1, seed), cache)
    for answer in answers(sys.stdin, prepared.folder):
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[2]), Path(sys.argv[3]))
