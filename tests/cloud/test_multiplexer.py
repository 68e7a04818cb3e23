from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from cloud.multiplexer import ResponseMultiplexer
from protos.codec import Outcome
from protos.errors import Draining, InvalidRequest
from protos.messages import Refusal, Summary, Verdict


def verdict(roi_id: int) -> Verdict:
    return Verdict(roi_id, 0.5, 6.0, "m 1", 0.0, 0.0)


def given(work: asyncio.Future[Outcome]) -> Outcome:
    return work.result()


async def after(event: asyncio.Event, outcome: Outcome) -> Outcome:
    """Work that finishes with ``outcome`` when ``event`` is set."""
    await event.wait()
    return outcome


def test_outcomes_are_sent_as_they_finish() -> None:
    """In the order of finishing, not of sending; the summary counts both kinds and the time."""
    now_s = iter((10.0, 12.5))

    async def study() -> tuple[list[int], Summary]:
        responses, slow = ResponseMultiplexer(lambda: next(now_s)), asyncio.Event()
        responses.add(asyncio.ensure_future(after(slow, verdict(1))), given)
        responses.put(Refusal(2, "TooLarge", "why"))
        responses.close()
        ids = []
        async for outcome in responses.outcomes():
            ids.append(outcome.roi_id)
            slow.set()
        return ids, responses.summary()

    assert asyncio.run(study()) == ([2, 1], Summary(1, 1, 2.5))


async def bug() -> Outcome:
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (lambda responses: responses.fail(Draining("stop")), Draining),
        (lambda responses: responses.fail(InvalidRequest("no")), InvalidRequest),
        (lambda responses: responses.add(asyncio.ensure_future(bug()), given), ZeroDivisionError),
    ],
)
def test_a_failure_ends_the_study_after_finished_outcomes(
    end: Callable[[ResponseMultiplexer], None], kind: type[Exception]
) -> None:
    """What finished before the failure is still sent; the rest is cancelled by the caller."""

    async def study() -> list[int]:
        responses, never, ids = ResponseMultiplexer(), asyncio.Event(), []
        responses.put(verdict(1))
        responses.add(asyncio.ensure_future(after(never, verdict(2))), given)
        end(responses)
        with contextlib.suppress(kind):
            async for outcome in responses.outcomes():
                ids.append(outcome.roi_id)
            pytest.fail("the study ended well")
        responses.cancel()
        await asyncio.sleep(0)
        return ids

    assert asyncio.run(study()) == [1]


def test_work_added_after_a_failure_is_cancelled() -> None:

    async def study() -> bool:
        responses, work = ResponseMultiplexer(), asyncio.get_running_loop().create_future()
        responses.fail(Draining("stop"))
        responses.add(work, given)
        with pytest.raises(Draining):
            await anext(responses.outcomes())
        return work.cancelled() and responses.summary().refused == 0

    assert asyncio.run(study())
