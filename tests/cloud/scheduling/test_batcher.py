import asyncio

import pytest

from cloud.scheduling.batcher import STALE_S, Batcher
from cloud.telemetry import CloudTelemetry
from protos.errors import DeadlineUnmeetable, ModelFailed
from tests.cloud.scheduling.builders import HandStage, TwoSteps, settle, submit, with_batcher


def wasted_s(batcher: Batcher) -> float:
    value = batcher.telemetry.registry.get_sample_value("overread_cloud_wasted_seconds_total")
    assert value is not None
    return value


@with_batcher()
async def test_the_earliest_deadlines_form_the_next_batch(
    batcher: Batcher, stage: HandStage
) -> None:
    results = [submit(batcher, 1, 50)]
    await settle()
    for value, budget_s in ((2, 40), (3, 20), (4, 30)):
        results.append(submit(batcher, value, budget_s))
    for _ in range(3):
        stage.allow()
        await settle()
    assert stage.batches == [[1], [3, 4], [2]]
    got = [await result for result in results]
    assert [round(a.reading.probability * 255) for a in got] == [1, 2, 3, 4]
    assert [a.batch for a in got] == [1, 3, 2, 2]
    assert [a.queue_s for a in got] == [0.0, 7.0, 3.0, 3.0]
    assert [a.compute_s for a in got] == [3.0, 3.0, 4.0, 4.0]


@with_batcher(max_batch=4)
async def test_the_batch_follows_the_cost(batcher: Batcher, stage: HandStage) -> None:
    """If batches save no time they shrink, so that each ROI is answered sooner.

    Not while many wait.
    """
    stage.fixed_s = 0.0
    results = [submit(batcher, value, 900) for value in range(250)]
    stage.allow(250)
    await asyncio.gather(*results)
    sizes = [len(batch) for batch in stage.batches]
    assert sizes[:50] == [4] * 50
    assert max(sizes[-3:]) < 4


@with_batcher(TwoSteps)
async def test_a_pipeline_is_kept_full(batcher: Batcher, stage: HandStage) -> None:
    """The second batch starts before the first is answered, and each gets its own answers."""
    results = [submit(batcher, value, 60) for value in (1, 2, 3, 4)]
    await settle()
    assert stage.batches == [[1, 2], [3, 4]]
    stage.allow(2)
    got = [await result for result in results]
    assert [a.reading.diameter_mm for a in got] == [1.0, 2.0, 3.0, 4.0]
    assert [a.batch for a in got] == [1, 1, 2, 2]


@pytest.mark.parametrize(("announced", "batches"), [(0, [[1], [2]]), (1, [[1, 2]])])
def test_a_batch_waits_only_for_rois_that_are_announced(
    announced: int, batches: list[list[int]]
) -> None:
    @with_batcher(max_batch_delay_s=60.0)
    async def scenario(batcher: Batcher, stage: HandStage) -> None:
        stage.allow(2)
        batcher.announced_rois = announced
        results = [submit(batcher, 1, 900.0)]
        await settle()
        results.append(submit(batcher, 2, 900.0))
        await asyncio.gather(*results)
        assert stage.batches == batches

    scenario()


@with_batcher()
async def test_an_abandoned_batch_ends_and_the_next_is_read(
    batcher: Batcher, stage: HandStage
) -> None:
    """Its time is not learnt as a cost."""
    given_up = submit(batcher, 1, 90)
    await settle()
    given_up.cancel()
    stage.allow()
    await settle()
    assert stage.now_s == 0.0
    result = submit(batcher, 2, 90)
    stage.allow()
    assert (await result).compute_s == 3.0
    assert batcher.timing.latency.line == pytest.approx((2.0, 1.0))


@with_batcher()
async def test_model_time_of_cancelled_rois_counts_as_wasted(
    batcher: Batcher, stage: HandStage
) -> None:
    """Half of a batch of 4 s was for a cancelled ROI."""
    kept, given_up = (submit(batcher, v, 9) for v in (1, 2))
    await settle()
    given_up.cancel()
    stage.allow()
    await kept
    assert wasted_s(batcher) == pytest.approx(2.0)


@with_batcher()
async def test_an_unexpected_error_reaches_every_caller_of_the_batch(
    batcher: Batcher, stage: HandStage
) -> None:
    """The caller gets `ModelFailed` whatever it was; the next batch is read."""
    compute_s, batcher.telemetry.compute_s = batcher.telemetry.compute_s, None
    result = submit(batcher, 1, 9)
    stage.allow()
    with pytest.raises(ModelFailed, match="AttributeError"):
        await result
    batcher.telemetry.compute_s = compute_s
    result = submit(batcher, 2, 9)
    stage.allow()
    assert (await result).reading.probability == pytest.approx(2 / 255)


def test_warm_up_measures_the_cost() -> None:

    async def scenario() -> None:
        stage = HandStage()
        stage.allow(5)
        batcher = Batcher(
            [stage], CloudTelemetry(), max_batch=6, max_batch_delay_s=0.0, clock=lambda: stage.now_s
        )
        await batcher.warm_up((1, 1, 1))
        assert [len(batch) for batch in stage.batches] == [1, 1, 2, 4, 6]
        assert batcher.timing.latency.line == pytest.approx((2.0, 1.0))

    asyncio.run(scenario())


@with_batcher()
async def test_closing_cancels_all_waiting_rois(batcher: Batcher, *_: HandStage) -> None:
    running = submit(batcher, 1, 60)
    await settle()
    waiting = submit(batcher, 2, 60)
    await batcher.__aexit__()
    assert running.cancelled()
    assert waiting.cancelled()


@with_batcher()
async def test_an_roi_that_would_be_late_is_rejected_with_a_bound(
    batcher: Batcher, *_: HandStage
) -> None:
    """Three ahead in batches of two, 4 s each: 4 s of waiting; one due first is read in 3 s."""
    for value in (1, 2, 3):
        submit(batcher, value, 10)
    assert batcher.queue.queue_s == pytest.approx(4.0)
    with pytest.raises(DeadlineUnmeetable) as caught:
        submit(batcher, 4, 0.5)
    assert caught.value.bound_s == pytest.approx(3.0)


@with_batcher()
async def test_a_running_batch_counts_and_if_it_overruns_as_long_again(
    batcher: Batcher, stage: HandStage
) -> None:
    """Otherwise an ROI that arrives while the model hangs would be promised an answer at once."""
    submit(batcher, 1, 90)
    await settle()
    stage.now_s += 0.75
    assert batcher.queue.queue_s == pytest.approx(2.25)
    stage.now_s += 2.25 + 20.0
    assert batcher.queue.queue_s == pytest.approx(20.0)
    with pytest.raises(DeadlineUnmeetable):
        submit(batcher, 2, 20)
    stage.allow()


@with_batcher()
async def test_one_stall_does_not_block_admission_for_long(
    batcher: Batcher, stage: HandStage
) -> None:
    """After a batch that stalled for a minute, one due in 5 s is read, and the next too."""
    submit(batcher, 1, 90)
    await settle()
    stage.now_s += 57.0
    stage.allow()
    await settle()
    with pytest.raises(DeadlineUnmeetable):
        submit(batcher, 2, 5)
    for _ in range(30):
        stage.now_s += STALE_S + 1.0
        result = submit(batcher, 3, 5)
        stage.allow()
        await result
    submit(batcher, 4, 6)
