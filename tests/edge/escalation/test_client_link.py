"""What the link learns from an escalation, and when it rejects one.

What travels to the cloud, and in what shape.
"""

from dataclasses import replace

import numpy as np
import pytest

from edge.budget import Budget
from edge.escalation.rois import cut_rois
from edge.link.link import Link
from edge.selection import Size
from protos.codec import pack_mask
from protos.deadline import Deadline
from protos.errors import DeadlineUnmeetable
from protos.messages import Refusal, Roi, Verdict
from tests.edge.builders import SHAPE, box, plan_of
from tests.edge.fake_cloud import RESERVE_S, FakeCloud, ask, escalator, read, stalled_cloud, sure


@pytest.mark.parametrize(
    ("score", "budget_s", "fault", "reason"),
    [
        (0.05, 60.0, "", ""),  # the plan sends nothing
        (0.4, RESERVE_S / 2, "", "the time ran out (no time was left for a second reading)"),
        (
            0.4,
            60.0,
            "lost",
            "lost; next attempt in 30 s; no answer yet since this program started",
        ),  # the breaker is open
    ],
)
def test_nothing_is_sent(score: float, budget_s: float, fault: str, reason: str) -> None:
    """No stream is opened, and the link is not blamed."""
    link = Link(failures=1, clock=lambda: 0.0)
    if fault:
        link.failed(fault)
    with FakeCloud() as cloud:
        came = ask(cloud.address, score, budget_s=budget_s, link=link)
    assert (came.attempts, came.reason, cloud.headers) == (0, reason, [])
    assert link.estimate().available is not bool(fault)


def test_link_learns_from_each_study() -> None:
    """The cloud's queue estimate reaches the link; an unreachable cloud opens its breaker."""
    link = Link(failures=1, clock=lambda: 0.0)
    with FakeCloud(queue_s=0.25) as cloud:
        ask(cloud.address, 0.4, link=link)
    assert link.estimate().middle.queue_s == 0.25
    ask(cloud.address, 0.4, link=link)
    assert not link.estimate().available


@pytest.mark.parametrize("said", ["soon", "nan", "inf", "-1"])
def test_senseless_queue_estimate_is_ignored(said: str) -> None:
    link = Link(clock=lambda: 0.0)
    with FakeCloud(queue_s=said) as cloud:
        came = ask(cloud.address, 0.4, link=link)
    assert (came.reason, link.estimate().middle.queue_s) == ("", 0.0)


def test_deadline_missed_without_an_answer_opens_the_breaker() -> None:
    """The cloud responded: the wait is its queue, and not a slow link."""
    link = Link(failures=1)
    with stalled_cloud() as cloud:
        came = ask(cloud.address, 0.4, budget_s=3.0, link=link)
    assert came.reason.startswith("the time ran out")
    assert "no answer within" in link.estimate().reason
    slow, unknown = link.estimate().slow, Link().estimate().slow
    assert slow.bytes_per_s == unknown.bytes_per_s
    assert slow.queue_s > 2.0


def test_a_cloud_that_refuses_is_there_all_the_same() -> None:
    """A probe that meets a full queue closes the breaker: the link is back."""
    now_s = [0.0]
    link = Link(failures=1, clock=lambda: now_s[0])
    link.failed("Unreachable: refused")
    now_s[0] = 31.0
    with FakeCloud(faults=[DeadlineUnmeetable("late", 9.0)]) as cloud:
        came = ask(cloud.address, 0.4, link=link)
    assert came.reason == "the cloud has too much work to answer in time (late)"
    assert (link.estimate().available, link.estimate().probing) == (True, False)


def test_a_short_retry_does_not_open_the_breaker() -> None:
    """The cloud responded: it is up, and slow."""
    link = Link(failures=1)
    rois = cut_rois(plan_of(0.4), box(), SHAPE)
    with stalled_cloud() as cloud, escalator(cloud.address, link) as second:
        came = second.read_rois(rois, Deadline.after(3.0), "key-1")
    assert came.reason.startswith("the time ran out")
    assert link.estimate().available
    assert link.estimate().slow.queue_s > 2.0


def test_roi_is_cut_around_its_candidate() -> None:
    seen: list[Roi] = []

    def keep(roi: Roi) -> Verdict | Refusal:
        seen.append(roi)
        return sure(roi)

    with FakeCloud(answer=keep) as cloud:
        ask(cloud.address, 0.5)
    (roi,) = seen
    assert roi.voxels.shape == SHAPE
    # the candidate lies in slice 30; the box's slices are as bright as their number
    np.testing.assert_array_equal(roi.voxels[:, 0, 0], np.arange(6, 54))
    assert (roi.edge_score, roi.window_hu) == (0.5, (-1000.0, 400.0))


def test_smaller_rois_are_sent_as_such_with_masks_of_their_own_shape() -> None:
    shapes = {0: Size.REDUCED.shape_of(SHAPE), 1: Size.SLAB.shape_of(SHAPE)}
    masks = {roi_id: np.ones(shape, bool) for roi_id, shape in shapes.items()}
    plan = replace(plan_of(0.5, 0.4), sizes=(Size.REDUCED, Size.SLAB))
    with (
        FakeCloud(
            answer=lambda roi: replace(sure(roi), mask=pack_mask(masks[roi.roi_id]))
        ) as cloud,
        escalator(cloud.address) as second,
    ):
        came = second.read(plan, box(), Budget(Deadline.after(60.0)), "key")
    assert {i: mask.shape for i, mask in came.masks.items()} == shapes


def test_the_site_s_name_travels_where_one_is_set() -> None:
    """In the stream's metadata; without a name there is none."""
    with FakeCloud() as cloud:
        for site in ("north wing", ""):
            with escalator(cloud.address, site=site) as second:
                read(second, 0.4)
    assert cloud.sites == ["north wing", None]
