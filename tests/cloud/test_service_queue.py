"""What waits at the service: who goes first, who has no place, and what is never read."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from protos import codec
from protos.errors import OverreadError
from protos.messages import Priority, Refusal, Summary, Verdict
from tests.cloud.calling import (
    MakeRoi,
    MakeStream,
    StartCloud,
    Until,
    in_queue,
    read,
    taken,
    typed,
)
from tests.cloud.running import MeanReader, RunningCloud


def line_is(cloud: RunningCloud, waiting: int) -> bool:
    """Whether the model has one ROI and so many wait behind it."""
    return [taken(cloud), in_queue(cloud)] == [1, waiting]


def test_a_cancelled_study_is_not_read(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, until: Until
) -> None:
    """What waits for a caller that has gone never reaches the model."""
    with start_cloud(max_batch=1) as cloud, cloud.stub() as stub:
        cloud.reader.gate.clear()
        call = stub.Read(iter(make_stream(*(make_roi(i) for i in range(5)))), timeout=20)
        until(partial(line_is, cloud, 4))
        call.cancel()
        until(lambda: cloud.count("overread_cloud_open_streams") == 0)
        cloud.reader.gate.set()
        read(cloud, make_stream(make_roi(9), study_key="k2"))
        assert [len(batch) for batch in cloud.reader.batches] == [1, 1]  # under way, and k2's
        assert cloud.count("overread_cloud_streams_total", end="cancelled") == 1


def test_a_stat_study_overtakes_routine_ones(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, until: Until
) -> None:
    """While the model is busy with routine work, what is urgent goes to the head of the queue."""
    studies = [("under way", 10, Priority.ROUTINE), ("routine", 20, Priority.ROUTINE)]
    studies += [("stat", 30, Priority.STAT)]
    with start_cloud(max_batch=1) as cloud, cloud.stub() as stub:
        cloud.reader.gate.clear()
        calls = []
        for waiting, (key, value, priority) in enumerate(studies):
            requests = make_stream(make_roi(1, value), study_key=key, priority=priority)
            calls.append(stub.Read(iter(requests), timeout=20))
            until(partial(line_is, cloud, waiting))
        cloud.reader.gate.set()
        assert all(len(list(call)) == 2 for call in calls)
        assert cloud.reader.batches == [[10.0], [30.0], [20.0]]


def test_what_ran_out_of_time_in_the_queue_is_not_read(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, until: Until
) -> None:
    """The model is held until a study behind it is late: that is told, and not read."""
    with start_cloud(max_batch=1) as cloud, cloud.stub() as stub:
        cloud.reader.gate.clear()
        call = stub.Read(iter(make_stream(make_roi(1, 10))), timeout=20)
        until(lambda: taken(cloud) == 1)
        late = make_stream(make_roi(1, 20), make_roi(2, 30), study_key="k2", budget_s=0.4)
        outcomes = stub.Read(iter(late), timeout=20)
        until(lambda: in_queue(cloud) == 2)
        time.sleep(0.5)
        cloud.reader.gate.set()
        assert len(list(call)) == 2
        refusals = [r for r in map(codec.decode_response, outcomes) if isinstance(r, Refusal)]
        assert [r.error for r in refusals] == ["DeadlinePassed", "DeadlinePassed"]
        assert cloud.reader.batches == [[10.0]]


def test_a_site_has_no_more_than_its_share_of_the_queue(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, until: Until
) -> None:
    """Of four places two are a site's while another waits, which is not barred by the first."""
    with start_cloud(max_batch=1, max_waiting=4, site_share=0.5) as cloud, cloud.stub() as stub:
        cloud.reader.gate.clear()
        first = stub.Read(iter(make_stream(make_roi(1))), timeout=20)
        until(lambda: taken(cloud) == 1)

        def ask(site: str, *numbers: int) -> Any:
            requests = make_stream(*map(make_roi, numbers), study_key=f"{site}{numbers}")
            return stub.Read(iter(requests), timeout=20, metadata=(("overread-site", site),))

        north = ask("north", 1, 2, 3, 4)
        until(lambda: in_queue(cloud) == 4)
        south = ask("south", 1)
        until(lambda: cloud.count("overread_cloud_rois_total", outcome="Overloaded") == 1)
        with pytest.raises(OverreadError, match="3 ROIs of north wait, 2 may"), typed():
            list(ask("north", 5))
        cloud.reader.gate.set()
        kinds = [[type(codec.decode_response(r)) for r in call] for call in (first, north, south)]
        assert kinds[0] == kinds[2] == [Verdict, Summary]
        assert (
            sorted(kind.__name__ for kind in kinds[1]) == ["Refusal", "Summary"] + ["Verdict"] * 3
        )


def test_a_reader_in_steps_answers_as_a_whole_one(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """Batches overlap in the steps, and each ROI of each study gets its own verdict; one fails."""

    class Steps(MeanReader):
        @property
        def steps(self) -> tuple[Callable[[Any], Any], ...]:
            return (lambda batch: batch, self.read, lambda readings: readings)

    values = [*range(0, 250, 10), 255]
    with start_cloud(reader=Steps(), max_batch=2) as cloud, cloud.stub() as stub:
        calls = [
            stub.Read(
                iter(make_stream(*map(make_roi, range(26), values), study_key=key)), timeout=20
            )
            for key in ("k1", "k2")
        ]
        for call in calls:
            *outcomes, summary = map(codec.decode_response, call)
            verdicts = {v.roi_id: v for v in outcomes if isinstance(v, Verdict)}
            refusals = {r.roi_id: r for r in outcomes if isinstance(r, Refusal)}
            assert sorted([*verdicts, *refusals]) == list(range(26))
            assert refusals[25].error == "ModelFailed"
            assert len(refusals) <= 3  # its own 255, that one's company, and the other study's
            for number, verdict in verdicts.items():
                assert verdict.probability == pytest.approx(values[number] / 255)
            assert isinstance(summary, Summary)
            assert (summary.answered, summary.refused) == (len(verdicts), len(refusals))
