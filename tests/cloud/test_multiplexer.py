"""Outcomes are given on as they finish, and counted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from cloud.multiplexer import Merger
from protos.codec import Outcome
from protos.errors import Draining, InvalidRequest
from protos.messages import Refusal, Summary, Verdict


def verdict(roi_id: int) -> Verdict:
    """A verdict on that ROI."""
    return Verdict(roi_id, 0.5, 6.0, "m 1", 0.0, 0.0)


def given(work: asyncio.Future[Outcome]) -> Outcome:
    """What the work returned, or a refusal where it was cancelled."""
    return Refusal(3, "ModelFailed", "why") if work.cancelled() else work.result()


async def after(event: asyncio.Event, outcome: Outcome) -> Outcome:
    """Work that finishes with ``outcome`` when ``event`` is set."""
    await event.wait()
    return outcome


def test_what_finishes_first_is_given_first() -> None:
    """Order of finishing, not of sending; the summary counts both kinds and the time."""
    now_s = iter((10.0, 12.5))

    async def study() -> tuple[list[int], Summary]:
        merger, slow = Merger(lambda: next(now_s)), asyncio.Event()
        merger.add(asyncio.ensure_future(after(slow, verdict(1))), given)
        merger.put(Refusal(2, "TooLarge", "why"))
        merger.close()
        ids = []
        async for outcome in merger.outcomes():
            ids.append(outcome.roi_id)
            slow.set()
        return ids, merger.summary()

    ids, summary = asyncio.run(study())
    assert ids == [2, 1]
    assert summary == Summary(1, 1, 2.5)


def test_a_study_without_rois_ends_at_once() -> None:
    """Nothing to wait for is an end, not a wait."""

    async def study() -> list[Outcome]:
        merger = Merger()
        merger.close()
        return [outcome async for outcome in merger.outcomes()]

    assert asyncio.run(study()) == []


def test_an_roi_counts_once_by_its_last_outcome() -> None:
    """Refused for damage and answered when sent again is one answered ROI."""

    async def study() -> Summary:
        merger = Merger(lambda: 0.0)
        merger.put(Refusal(1, "ChecksumMismatch", "why"))
        merger.put(verdict(1))
        merger.close()
        assert len([outcome async for outcome in merger.outcomes()]) == 2
        return merger.summary()

    assert asyncio.run(study()) == Summary(1, 0, 0.0)


async def bug() -> Outcome:
    """Work that raises what nobody thought of."""
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (lambda merger: merger.fail(Draining("stop")), Draining),
        (lambda merger: merger.fail(InvalidRequest("no")), InvalidRequest),
        (lambda merger: merger.add(asyncio.ensure_future(bug()), given), ZeroDivisionError),
    ],
)
def test_a_failure_ends_the_study_after_what_is_ready(
    end: Callable[[Merger], None], kind: type[Exception]
) -> None:
    """What finished before the failure is still given on; the rest is given up by the caller."""

    async def study() -> list[int]:
        merger, never, ids = Merger(), asyncio.Event(), []
        merger.put(verdict(1))
        merger.add(asyncio.ensure_future(after(never, verdict(2))), given)
        end(merger)
        with contextlib.suppress(kind):
            async for outcome in merger.outcomes():
                ids.append(outcome.roi_id)
            pytest.fail("the study ended well")
        merger.cancel()
        await asyncio.sleep(0)
        return ids

    assert asyncio.run(study()) == [1]


def test_work_that_others_cancelled_has_an_outcome_too() -> None:
    """Only what the study itself gives up is not given on."""

    async def study() -> list[Outcome]:
        merger, work = Merger(), asyncio.get_running_loop().create_future()
        merger.add(work, given)
        merger.close()
        work.cancel()
        return [outcome async for outcome in merger.outcomes()]

    assert asyncio.run(study()) == [Refusal(3, "ModelFailed", "why")]


def test_what_is_added_to_a_study_that_was_given_up_is_given_up_too() -> None:
    """Nothing is read for it, and nothing of it is given on."""

    async def study() -> bool:
        merger, work = Merger(), asyncio.get_running_loop().create_future()
        merger.fail(Draining("stop"))
        merger.add(work, given)
        with pytest.raises(Draining):
            await anext(merger.outcomes())
        return work.cancelled() and merger.summary().refused == 0

    assert asyncio.run(study())
