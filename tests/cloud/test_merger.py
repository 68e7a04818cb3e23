"""Outcomes are given on as they finish, and counted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from cloud.merger import Merger
from protos.codec import Outcome
from protos.errors import Draining, InvalidRequest
from protos.messages import Refusal, Summary, Verdict


def verdict(roi_id: int) -> Verdict:
    """A verdict on that ROI."""
    return Verdict(roi_id, 0.5, 6.0, "m 1", 0.0, 0.0)


async def after(event: asyncio.Event, outcome: Outcome) -> Outcome:
    """Work that finishes with ``outcome`` when ``event`` is set."""
    await event.wait()
    return outcome


def test_what_finishes_first_is_given_first() -> None:
    """Order of finishing, not of sending; the summary counts both kinds and the time."""
    now_s = iter((10.0, 12.5))

    async def study() -> tuple[list[int], Summary]:
        merger, slow = Merger(lambda: next(now_s)), asyncio.Event()
        merger.add(after(slow, verdict(1)))
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
        (lambda merger: merger.add(bug()), ZeroDivisionError),
    ],
)
def test_a_failure_ends_the_study_after_what_is_ready(
    end: Callable[[Merger], None], kind: type[Exception]
) -> None:
    """What finished before the failure is still given on; the rest is given up by the caller."""

    async def study() -> list[int]:
        merger, never, ids = Merger(), asyncio.Event(), []
        merger.put(verdict(1))
        merger.add(after(never, verdict(2)))
        end(merger)
        with contextlib.suppress(kind):
            async for outcome in merger.outcomes():
                ids.append(outcome.roi_id)
            pytest.fail("the study ended well")
        merger.cancel()
        await asyncio.sleep(0)
        return ids

    assert asyncio.run(study()) == [1]
