"""Verdicts remembered for a while, so that an ROI sent again costs nothing."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, replace

from protos.deadline import Clock, Deadline
from protos.messages import Verdict


@dataclass(frozen=True)
class Question:
    """What makes two ROIs the same: study, number in it, and content by checksum."""

    study_key: str
    roi_id: int
    checksum: bytes


class Answers:
    """The last ``size`` verdicts, each for ``keep_s`` seconds."""

    def __init__(self, size: int, keep_s: float, clock: Clock = time.monotonic) -> None:
        self._size, self._keep_s, self._clock = size, keep_s, clock
        self._known: OrderedDict[Question, tuple[Deadline, Verdict]] = OrderedDict()
        self._last: dict[str, Question] = {}  # of each study: it is forgotten after the others

    def __len__(self) -> int:
        return len(self._known)

    def get(self, question: Question) -> Verdict | None:
        """The verdict given before, which this time neither waited nor was computed."""
        until, verdict = self._known.get(question, (None, None))
        if until is None or verdict is None or until.passed:
            return None
        return replace(verdict, queue_s=0.0, compute_s=0.0)

    def of(self, study_key: str) -> int:
        """How many verdicts of that study are remembered."""
        if study_key not in self._last:
            return 0
        known = (question for question in self._known if question.study_key == study_key)
        return sum(self.get(question) is not None for question in known)

    def put(self, question: Question, verdict: Verdict) -> None:
        """Remembers ``verdict``; the oldest is forgotten when there is no room."""
        self._known.pop(question, None)
        self._known[question] = (Deadline.after(self._keep_s, self._clock), verdict)
        self._last[question.study_key] = question
        while len(self._known) > self._size:
            oldest, _ = self._known.popitem(last=False)
            if self._last[oldest.study_key] == oldest:
                del self._last[oldest.study_key]
