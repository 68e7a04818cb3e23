"""One study's ROIs and their answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge.escalation.rois import RoiStates, cut_rois
from protos.codec import pack_mask
from protos.errors import DeadlinePassed, Draining, Overloaded, OverreadError, Unreachable
from protos.messages import Refusal, Summary, Verdict
from tests.edge.builders import SHAPE, box, plan_of


def exchange(*scores: float) -> RoiStates:
    return RoiStates(cut_rois(plan_of(*scores), box(), SHAPE))


def verdict(roi_id: int, mask: bytes = b"") -> Verdict:
    return Verdict(roi_id, 0.9, 8.0, "m", 0.0, 0.0, mask=mask)


def test_what_is_refused_for_now_is_open_but_not_unanswered() -> None:
    """The next attempt carries it; the cloud has not kept it waiting."""
    asked = exchange(0.4, 0.5, 0.45)
    asked.take(verdict(0))
    asked.take(Refusal(1, "Overloaded", "full"))
    assert (sorted(asked.open), set(asked.unanswered)) == ([1, 2], {2})


def test_an_answer_counts_once() -> None:
    """A second verdict for a region, one for an unknown ROI, and the summary change nothing."""
    asked = exchange(0.4)
    asked.take(verdict(0))
    asked.take(replace(verdict(0), probability=0.1))
    asked.take(verdict(7))
    asked.take(Summary(1, 0, 0.1))
    assert asked.verdicts == {0: verdict(0)}


def test_the_nodules_voxels_are_unpacked() -> None:
    mask = np.zeros((48, 48, 48), bool)
    mask[20:24, 22:25, 23] = True
    asked = exchange(0.4)
    asked.take(verdict(0, pack_mask(mask)))
    np.testing.assert_array_equal(asked.result(None, 1).masks[0], mask)


@pytest.mark.parametrize("mask", [b"", b"nonsense", pack_mask(np.ones((4, 4, 4), bool))])
def test_a_verdict_stands_without_a_readable_mask(mask: bytes) -> None:
    """None, a damaged one, one of another shape: the probability counts, nothing is outlined."""
    asked = exchange(0.4)
    asked.take(verdict(0, mask))
    ended = asked.result(None, 1)
    assert list(ended.verdicts) == [0]
    assert ended.masks == {}


def test_why_not_all_came_is_said() -> None:
    """The fault of the last attempt, a stream that ended early, or the first refusal."""
    asked = exchange(0.4, 0.5)
    assert asked.result(Unreachable("refused"), 1).reason == "the cloud cannot be reached (refused)"
    asked.take(verdict(0))
    assert "left 1 ROI unanswered" in asked.result(None, 1).reason
    asked.take(Refusal(1, "ModelFailed", "not finite"))
    assert asked.result(None, 1).reason == (
        "the cloud refused 1 ROI: the cloud's model failed (not finite)"
    )


@pytest.mark.parametrize(
    ("fault", "refused"),
    [
        (Overloaded("full"), True),
        (None, True),
        (Unreachable("refused"), False),
        (DeadlinePassed("late"), False),
        (Draining("stopping"), False),
    ],
)
def test_a_refusal_is_distinguished_from_a_fault_of_the_link(
    fault: OverreadError | None, refused: bool
) -> None:
    """A cloud that would not read this study says nothing of others; one that goes is gone."""
    assert exchange(0.4).result(fault, 1).refused is refused
    assert not exchange(0.4).result(fault, 0).refused


NO_ROOM = Refusal(0, "DeadlineUnmeetable", "the cloud accepted 0 of 1 ROIs")


def test_an_roi_that_one_cloud_cannot_answer_in_time_is_left_open_for_another() -> None:
    """It is no reason to try the same cloud again."""
    asked = exchange(0.4)
    assert not asked.take(NO_ROOM, elsewhere=True)
    assert (list(asked.open), set(asked.unanswered)) == ([0], set())
    assert not asked.is_retryable(None)
    assert asked.result(None, 1).refused
