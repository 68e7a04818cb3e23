"""Verdicts are remembered for a while, and not too many of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cloud.cache import CacheKey, VerdictCache
from protos.messages import Verdict

VERDICT = Verdict(1, 0.5, 6.0, "m 1", 0.25, 0.125)


@dataclass
class HandClock:
    """A clock that is moved by hand."""

    now_s: float = 0.0

    def __call__(self) -> float:
        """The time that it was moved to."""
        return self.now_s


def test_the_same_question_gets_the_same_answer_at_no_cost() -> None:
    """What is remembered was neither queued nor computed this time."""
    answers, question = VerdictCache(10, 60.0), CacheKey("k", 1, b"sum")
    assert answers.get(question) is None
    answers.put(question, VERDICT)
    assert answers.get(question) == replace(VERDICT, queue_s=0.0, compute_s=0.0)


def test_another_study_number_or_content_is_another_question() -> None:
    """Only all three together make two ROIs the same."""
    answers = VerdictCache(10, 60.0)
    answers.put(CacheKey("k", 1, b"sum"), VERDICT)
    for other in (CacheKey("j", 1, b"sum"), CacheKey("k", 2, b"sum"), CacheKey("k", 1, b"mus")):
        assert answers.get(other) is None


def test_the_oldest_is_forgotten_when_there_is_no_room() -> None:
    """Memory is bounded by count, and a size of 0 remembers nothing."""
    answers = VerdictCache(2, 60.0)
    for roi_id in (1, 2, 1, 3):
        answers.put(CacheKey("k", roi_id, b""), VERDICT)
    known = [i for i in (1, 2, 3) if answers.get(CacheKey("k", i, b"")) is not None]
    assert known == [1, 3]
    none = VerdictCache(0, 60.0)
    none.put(CacheKey("k", 1, b""), VERDICT)
    assert len(none) == 0


def test_an_answer_is_forgotten_after_its_time() -> None:
    """At 60 s an answer kept for 60 s is gone."""
    clock = HandClock()
    answers, question = VerdictCache(10, 60.0, clock), CacheKey("k", 1, b"")
    answers.put(question, VERDICT)
    clock.now_s = 59.0
    assert answers.get(question) is not None
    clock.now_s = 60.0
    assert answers.get(question) is None


def test_what_is_remembered_of_a_study_is_counted() -> None:
    """Not what is forgotten for room, nor what is over its time."""
    clock = HandClock()
    answers = VerdictCache(2, 60.0, clock)
    assert answers.count("k") == 0
    for key, roi_id in (("k", 1), ("k", 2), ("j", 1)):
        answers.put(CacheKey(key, roi_id, b""), VERDICT)
    assert (answers.count("k"), answers.count("j")) == (1, 1)
    answers.put(CacheKey("j", 2, b""), VERDICT)
    assert (answers.count("k"), answers.count("j")) == (0, 2)
    assert list(answers._newest) == ["j"]  # or memory would grow with every study
    clock.now_s = 60.0
    assert answers.count("j") == 0
