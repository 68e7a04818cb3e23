"""Second readings over a link: what travels to the cloud, what comes back, what the link learns."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge.budget import Budget
from edge.escalation import stream
from edge.escalation.rois import EscalationResult, cut_rois
from edge.link.link import Link
from edge.selection import Size
from protos import overread_pb2 as pb
from protos.codec import encode_roi, pack_mask
from protos.deadline import Deadline
from protos.errors import (
    ChecksumMismatch,
    DeadlineUnmeetable,
    Draining,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    OverreadError,
    error_by_name,
)
from protos.messages import Priority, Refusal, Roi, Verdict
from tests.edge.builders import SHAPE, HandClock, box, plan_of
from tests.edge.fake_cloud import (
    RESERVE_S,
    FakeCloud,
    ask,
    escalator,
    free_port,
    read,
    stalled_cloud,
    sure,
)

NAN, INF = float("nan"), float("inf")
LATER = Overloaded("full")
LATER.retry_s = 3600.0


def asked(
    *scores: float, link: Link | None = None, budget_s: float = 60.0, **scripted: Any
) -> tuple[FakeCloud, EscalationResult]:
    """A scripted cloud, after it was sent candidates of these scores, and what came back."""
    with FakeCloud(**scripted) as cloud:
        return cloud, ask(cloud.address, *scores, budget_s=budget_s, link=link)


def test_verdicts_come_back_for_what_was_sent() -> None:
    """Every region is answered under its own identifier, in one attempt, the uncertain first."""
    cloud, came = asked(0.95, 0.4, 0.5, 0.05)
    assert sorted(came.verdicts) == [0, 1, 2]
    assert (came.reason, came.attempts) == ("", 1)
    assert cloud.asked == [[2, 1, 0]]


@pytest.mark.parametrize(
    ("faults", "attempts", "refused"),
    [
        ([Overloaded("full")], 2, False),
        ([ChecksumMismatch("ROI 0")], 2, False),
        ([Overloaded("full")] * 9, 3, True),
        ([Draining("stopping")] * 9, 3, False),
        ([InvalidRequest("no")], 1, True),
        ([DeadlineUnmeetable("late", 9.0)], 1, True),
        ([ModelFailed("nan")], 1, True),
        ([LATER], 1, True),
    ],
)
def test_a_transient_fault_is_retried_twice_and_a_lasting_one_never(
    faults: list[OverreadError], attempts: int, refused: bool
) -> None:
    """Every attempt has the same key; the fault of the last one is reported.

    A cloud that would not read this study has refused it; one that goes is gone. A pause beyond
    the deadline is no attempt.
    """
    fault, answered = faults[0], attempts == 2
    cloud, came = asked(0.4, faults=faults)
    assert (list(came.verdicts), came.attempts) == ([0] if answered else [], attempts)
    assert came.reason == ("" if answered else fault.text)
    assert came.refused is refused
    assert [header.study_key for header in cloud.headers] == ["key-1"] * attempts


@pytest.mark.parametrize("priority", [None, Priority.ROUTINE])
def test_the_cloud_hears_how_urgent_a_study_is(priority: Priority | None) -> None:
    """Without a priority of its own it is that of the settings: here stat."""
    with FakeCloud() as cloud, escalator(cloud.address) as second:
        second.read(plan_of(0.4), box(), Budget(Deadline.after(60.0)), "key-1", priority)
    assert [header.priority for header in cloud.headers] == [priority or Priority.STAT]


@pytest.mark.parametrize("kind", ["Overloaded", "ChecksumMismatch"])
def test_an_roi_refused_for_a_transient_cause_is_sent_again(kind: str) -> None:
    refusals = [Refusal(1, kind, "not now")]

    def refuse_once(roi: Roi) -> Verdict | Refusal:
        return refusals.pop() if refusals and roi.roi_id == 1 else sure(roi)

    cloud, came = asked(0.5, 0.45, 0.4, answer=refuse_once)
    assert cloud.asked == [[0, 1, 2], [1]]
    assert {header.study_key for header in cloud.headers} == {"key-1"}
    assert (sorted(came.verdicts), came.refusals, came.reason) == ([0, 1, 2], {}, "")


@pytest.mark.parametrize(
    ("kind", "streams"), [("Overloaded", [[0, 1], [0], [0]]), ("ModelFailed", [[0, 1]])]
)
def test_an_roi_that_is_always_refused_keeps_the_last_refusal(
    kind: str, streams: list[list[int]]
) -> None:
    """It is sent again where that may help; the verdicts of the others stand."""
    told = iter(range(9))

    def refuse(roi: Roi) -> Verdict | Refusal:
        return sure(roi) if roi.roi_id else Refusal(0, kind, f"no {next(told)}")

    cloud, came = asked(0.5, 0.4, answer=refuse)
    assert (cloud.asked, came.attempts, list(came.verdicts)) == (streams, len(streams), [1])
    reason = f"no {len(streams) - 1}"
    assert came.refusals == {0: Refusal(0, kind, reason)}
    assert came.reason == f"the cloud refused 1 ROI: {error_by_name(kind, reason).text}"
    assert came.refused


def test_pauses_are_random_up_to_a_bound_that_doubles() -> None:
    """Up to 0.1 s and 0.2 s at a full queue; a dead cloud costs 30 ms at most."""
    drawn: list[tuple[float, float]] = []

    def jitter(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.0

    with (
        FakeCloud(faults=[Overloaded("full")] * 9) as cloud,
        escalator(cloud.address, jitter=jitter) as second,
    ):
        read(second, 0.4)
    link = Link()
    with escalator(f"127.0.0.1:{free_port()}", link, jitter=jitter) as second:
        came = read(second, 0.4)
    assert drawn == [(0.0, 0.1), (0.0, 0.2), (0.0, 0.01), (0.0, 0.02)]
    assert (came.verdicts, came.attempts) == ({}, 3)
    assert came.reason.startswith("the cloud cannot be reached")
    assert link.estimate().silent_s is None


def test_a_slow_service_leaves_the_verdicts_that_came_in_time() -> None:
    """One of three verdicts came: it is kept, the link is up, and known to be slow."""
    link = Link(failures=1)
    with stalled_cloud(after=1) as cloud:
        came = ask(cloud.address, 0.5, 0.45, 0.4, budget_s=3.0, link=link)
    assert (list(came.verdicts), link.estimate().available) == ([0], True)
    assert came.reason.startswith("the time ran out")
    assert link.estimate().completion_s(3, 3 * 48**3) > 2.0


def test_a_response_of_a_later_contract_is_ignored() -> None:
    class Later(FakeCloud):
        def Read(self, request_iterator: Any, context: Any) -> Iterator[Any]:  # noqa: N802 - gRPC's name
            for response in super().Read(request_iterator, context):
                yield from (response, pb.ReadResponse())

    with Later() as cloud:
        came = ask(cloud.address, 0.5, 0.4)
    assert (sorted(came.verdicts), came.attempts, came.reason) == ([0, 1], 1, "")


def test_a_retry_sends_only_open_rois() -> None:
    cloud, came = asked(0.5, 0.45, 0.4, faults=[Draining("stopping")], fault_after=1)
    assert cloud.asked == [[0], [1, 2]]
    assert [header.roi_count for header in cloud.headers] == [3, 2]
    assert (sorted(came.verdicts), came.reason) == ([0, 1, 2], "")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("probability", p) for p in (NAN, 1.5, -0.1)),
        *(("diameter_mm", d) for d in (NAN, INF, 0.0, -3.0, 201.0)),
        *(("malignancy", m) for m in (NAN, 1.5, -0.1)),
        *(("queue_s", s) for s in (NAN, INF, -1.0)),
        *(("compute_s", s) for s in (NAN, INF, -1.0)),
    ],
)
def test_an_implausible_verdict_is_refused(field: str, value: float) -> None:
    link = Link()
    _, came = asked(0.4, link=link, answer=lambda roi: Verdict(**{**vars(sure(roi)), field: value}))
    assert came.verdicts == {}
    assert came.refusals[0].error == "ModelFailed"
    assert str(value) in came.refusals[0].reason
    assert link.estimate().middle.roi_s == Link().estimate().middle.roi_s


@pytest.mark.parametrize("mask", [b"", b"nonsense", pack_mask(np.ones((4, 4, 4), bool))])
def test_a_verdict_stands_without_a_readable_mask(mask: bytes) -> None:
    """None, a damaged one, one of another shape: the probability counts, nothing is outlined."""
    _, came = asked(0.4, answer=lambda roi: replace(sure(roi), mask=mask))
    assert (list(came.verdicts), came.masks) == ([0], {})


def test_an_unrequested_verdict_is_dropped() -> None:
    _, came = asked(0.4, answer=lambda _: Verdict(77, 0.9, 1.0, "m", 0.0, 0.0))
    assert came.verdicts == {}
    assert came.reason == "the cloud left 1 ROI unanswered"


SCORES = (0.5, 0.45, 0.4)


def busy_link() -> Link:
    link = Link(clock=lambda: 0.0)
    link.queue_reported(30.0)
    return link


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The regions that were handed to gRPC."""
    seen: list[int] = []

    def note(roi: Roi) -> object:
        seen.append(roi.roi_id)
        return encode_roi(roi)

    monkeypatch.setattr(stream, "encode_roi", note)
    return seen


def test_a_busy_cloud_that_refuses_is_sent_no_roi(sent: list[int]) -> None:
    """It is asked with the header alone; the reason is its own."""
    cloud, came = asked(*SCORES, link=busy_link(), turns_away=[DeadlineUnmeetable("late", 9.0)])
    reason = "the cloud has too much work to answer in time (late)"
    assert (came.reason, came.attempts) == (reason, 1)
    assert (sent, cloud.headers[0].roi_count) == ([], 3)


def test_a_busy_cloud_gets_the_rois_when_it_has_taken_the_header(sent: list[int]) -> None:
    """None before its first sign, all after it; what one waits for is no throughput."""
    before: list[int] = []

    def admit() -> None:
        over = Deadline.after(0.2)
        while not sent and not over.passed:
            time.sleep(0.01)
        before.append(len(sent))

    _, came = asked(*SCORES, link=busy_link(), admits=admit)
    assert (before, sent) == ([0], [0, 1, 2])
    assert (sorted(came.verdicts), came.reason) == ([0, 1, 2], "")


@pytest.mark.parametrize("accepts", [9, 1, 0])
def test_only_accepted_rois_are_sent(sent: list[int], accepts: int) -> None:
    """The most valuable; the others are refused at once, and there is no other attempt."""
    cloud, came = asked(*SCORES, link=busy_link(), accepts=accepts)
    taken, refused = [0, 1, 2][:accepts], [0, 1, 2][accepts:]
    assert (sent, cloud.asked) == (taken, [taken])
    assert (list(came.verdicts), sorted(came.refusals), came.attempts) == (taken, refused, 1)
    reason = (
        f"the cloud has too much work to answer in time (the cloud accepted {accepts} of 3 ROIs)"
    )
    assert came.reason == (f"the cloud refused {len(refused)} ROIs: {reason}" if refused else "")
    assert came.refused is bool(refused)


@pytest.mark.parametrize(
    ("round_trip_s", "least_s", "most_s"),
    [(None, 50.0, 59.8), (20.0, 30.0, 39.8), (900.0, 25.0, 29.9)],
)
def test_the_way_there_and_back_is_not_the_cloud_s(
    round_trip_s: float | None, least_s: float, most_s: float
) -> None:
    """Of 59.8 s a measured round trip is kept, half of them at most."""
    link = Link(clock=lambda: 0.0)
    link.up(round_trip_s)
    cloud, _ = asked(0.5, link=link)
    assert least_s < cloud.headers[0].budget_s <= most_s


@pytest.mark.parametrize(
    ("score", "budget_s", "fault", "reason"),
    [
        (0.05, 60.0, "", ""),  # the plan sends nothing
        (0.4, RESERVE_S / 2, "", "the time ran out (no time was left for a second reading)"),
        (0.4, 60.0, "lost",  # the breaker is open
         "lost; next attempt in 30 s; no answer yet since this program started"),
    ],
)  # fmt: skip
def test_nothing_is_sent(score: float, budget_s: float, fault: str, reason: str) -> None:
    link = Link(failures=1, clock=lambda: 0.0)
    if fault:
        link.failed(fault)
    cloud, came = asked(score, budget_s=budget_s, link=link)
    assert (came.attempts, came.reason, cloud.headers) == (0, reason, [])
    assert link.estimate().available is not bool(fault)


@pytest.mark.parametrize(
    ("said", "learnt_s"), [(0.25, 0.25), ("soon", 0.0), ("nan", 0.0), ("inf", 0.0), ("-1", 0.0)]
)
def test_the_link_learns_the_queue_of_the_cloud_where_it_makes_sense(
    said: Any, learnt_s: float
) -> None:
    link = Link(clock=lambda: 0.0)
    _, came = asked(0.4, link=link, queue_s=said)
    assert (came.reason, link.estimate().middle.queue_s) == ("", learnt_s)


@pytest.mark.parametrize("retry", [False, True])
def test_a_missed_deadline_opens_the_breaker_unless_it_was_a_short_retry(retry: bool) -> None:
    """The cloud responded: the wait is its queue, and not a slow link."""
    link = Link(failures=1)
    with stalled_cloud() as cloud, escalator(cloud.address, link) as second:
        if retry:
            came = second.read_rois(
                cut_rois(plan_of(0.4), box(), SHAPE), Deadline.after(3.0), "key-1"
            )
        else:
            came = read(second, 0.4, budget_s=3.0)
    assert came.reason.startswith("the time ran out")
    now, unknown = link.estimate(), Link().estimate().slow
    assert now.available is retry
    assert retry or "no answer within" in now.reason
    assert now.slow.bytes_per_s == unknown.bytes_per_s
    assert now.slow.queue_s > 2.0


def test_a_cloud_that_refuses_is_there_all_the_same(clock: HandClock) -> None:
    """A probe that meets a full queue closes the breaker: the link is back."""
    link = Link(failures=1, clock=clock)
    link.failed("Unreachable: refused")
    clock.sleep(31.0)
    _, came = asked(0.4, link=link, faults=[DeadlineUnmeetable("late", 9.0)])
    assert came.reason == "the cloud has too much work to answer in time (late)"
    assert (link.estimate().available, link.estimate().probing) == (True, False)


def test_roi_is_cut_around_its_candidate() -> None:
    seen: list[Roi] = []

    def keep(roi: Roi) -> Verdict | Refusal:
        seen.append(roi)
        return sure(roi)

    asked(0.5, answer=keep)
    (roi,) = seen
    assert roi.voxels.shape == SHAPE
    # the candidate lies in slice 30; the box's slices are as bright as their number
    np.testing.assert_array_equal(roi.voxels[:, 0, 0], np.arange(6, 54))
    assert (roi.edge_score, roi.window_hu) == (0.5, (-1000.0, 400.0))


def test_smaller_rois_are_sent_as_such_with_masks_of_their_own_shape() -> None:
    shapes = {0: Size.REDUCED.shape_of(SHAPE), 1: Size.SLAB.shape_of(SHAPE)}
    masks = {roi_id: pack_mask(np.ones(shape, bool)) for roi_id, shape in shapes.items()}
    plan = replace(plan_of(0.5, 0.4), sizes=(Size.REDUCED, Size.SLAB))
    cloud = FakeCloud(answer=lambda roi: replace(sure(roi), mask=masks[roi.roi_id]))
    with cloud, escalator(cloud.address) as second:
        came = second.read(plan, box(), Budget(Deadline.after(60.0)), "key")
    assert {i: mask.shape for i, mask in came.masks.items()} == shapes


def test_the_site_s_name_travels_where_one_is_set() -> None:
    """In the stream's metadata; without a name there is none."""
    with FakeCloud() as cloud:
        for site in ("north wing", ""):
            with escalator(cloud.address, site=site) as second:
                read(second, 0.4)
    assert cloud.sites == ["north wing", None]
