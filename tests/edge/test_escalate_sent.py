"""What travels to the cloud, and in what shape."""

from __future__ import annotations

from dataclasses import replace

import grpc
import numpy as np

from edge.budget import Budget
from edge.channel import OPTIONS
from edge.escalate import Asking, Escalator
from edge.exchange import cut_rois
from edge.link import Link
from edge.sizes import Size
from protos.codec import pack_mask
from protos.deadline import Deadline
from protos.messages import Priority, Refusal, Roi, Verdict
from tests.edge.asking import RESERVE_S, ask, escalator
from tests.edge.cases import SHAPE, box, plan_of
from tests.edge.fake_cloud import FakeCloud, sure


def test_header_tells_key_count_budget_and_priority() -> None:
    """The header carries the study's random key, the count, and the time left less the reserve."""
    with FakeCloud() as cloud:
        ask(cloud.address, 0.4, 0.5)
    (header,) = cloud.headers
    assert (header.study_key, header.roi_count, header.priority) == ("key-1", 2, Priority.STAT)
    assert 0.0 < header.budget_s <= 60.0 - RESERVE_S


def test_region_is_cut_around_its_candidate() -> None:
    """The voxels sent are the 48 mm around the candidate, with its score and the window."""
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


def test_nothing_to_send_asks_nobody() -> None:
    """A plan that sends nothing opens no stream."""
    with FakeCloud() as cloud:
        came = ask(cloud.address, 0.05)
    assert (came.attempts, came.reason, cloud.headers) == (0, "", [])


def test_regions_cut_before_can_be_asked_for() -> None:
    """What was kept of a study is asked for by itself, under its key and by its own deadline."""
    rois = cut_rois(plan_of(0.4, 0.5), box(), SHAPE)
    with FakeCloud() as cloud, escalator(cloud.address) as second:
        came = second.ask(rois, Deadline.after(60.0), "key-7")
    assert (sorted(came.verdicts), cloud.asked) == ([0, 1], [[1, 0]])
    assert cloud.headers[0].study_key == "key-7"


def test_smaller_regions_are_sent_as_such_with_masks_of_their_own_shape() -> None:
    """A reduced cube and a slab keep their shapes there and back."""
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
    with FakeCloud() as cloud, grpc.insecure_channel(cloud.address, options=OPTIONS) as channel:
        for site in ("north wing", ""):
            second = Escalator(channel, Link(), Asking(SHAPE, RESERVE_S, site=site))
            second.read(plan_of(0.4), box(), Budget(Deadline.after(60.0)), "key-1")
    assert cloud.sites == ["north wing", None]
