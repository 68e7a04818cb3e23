"""The service as its callers meet it: a real server on loopback, a blocking client."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
import structlog

from protos import codec, overread_pb2_grpc
from protos import overread_pb2 as pb
from protos.errors import InvalidRequest, OverreadError
from protos.messages import Load, Priority, Refusal, Verdict
from tests.cloud.running import (
    RunningCloud,
    accepted_of,
    answers,
    end_of,
    make_roi,
    make_stream,
    outcomes_by_id,
    read,
    refused,
    run_cloud,
    typed,
    unfinished,
    until,
)


@pytest.mark.parametrize("values", [(), (51, 102)])
def test_a_caller_that_never_closes_its_stream_gets_its_summary(
    cloud: RunningCloud, values: tuple[int, ...]
) -> None:
    """When all announced ROIs are answered the study ends, long before its budget."""
    requests = make_stream(*(make_roi(i, value) for i, value in enumerate(values)))
    with cloud.stub() as stub, unfinished(*requests) as sent:
        *verdicts, last = answers(stub.Read(sent, timeout=60))
    assert sorted(one.verdict.roi_id for one in verdicts) == list(range(len(values)))
    assert last.summary.answered == len(values)


def test_the_load_is_in_the_summary_and_in_the_details_of_an_error(cloud: RunningCloud) -> None:
    with cloud.stub() as stub:
        load = read(cloud, make_stream(make_roi(1)))[-1].load
        assert load.queue_s == 0.0
        assert load.compute_s > 0.0
        failed = stub.Read(iter(make_stream(budget_s=-1.0)), timeout=20)
        with pytest.raises(grpc.RpcError):
            list(failed)
        assert codec.load_of(failed.trailing_metadata()) == Load(0.0, 0.0)


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ({"budget_s": 0.0}, "InvalidRequest"),
        ({"budget_s": -1.0}, "InvalidRequest"),
        ({"budget_s": float("nan")}, "InvalidRequest"),
        ({"budget_s": float("inf")}, "InvalidRequest"),
        ({"study_key": ""}, "InvalidRequest"),
        ({"study_key": "k" * 129}, "InvalidRequest"),
        ({"roi_count": 101}, "TooLarge"),
        ({"model_version": "1.0"}, "VersionMismatch"),
        ({"model_version": "21.0"}, "VersionMismatch"),
    ],
)
def test_an_invalid_header_is_refused(
    cloud: RunningCloud, header: dict[str, Any], kind: str
) -> None:
    assert refused(cloud, make_stream(**header)).kind == kind


@pytest.mark.parametrize("version", ["", "2", "2.1", "2.1.4", "2.9"])
def test_a_compatible_version_is_served(cloud: RunningCloud, version: str) -> None:
    """Any version, the same, or the same major one is served; a study without ROIs is one too."""
    (summary,) = read(cloud, make_stream(model_version=version))
    assert (summary.answered, summary.refused) == (0, 0)


@pytest.mark.parametrize(
    ("version", "kind"), [("9" * 4_000, "InvalidRequest"), ("\x00" * 128, "VersionMismatch")]
)
def test_a_long_version_is_cut_in_errors_and_logs(version: str, kind: str) -> None:
    """The class reaches the caller, and the log keeps a line of readable length."""
    with run_cloud() as cloud, structlog.testing.capture_logs() as logs:
        error = refused(cloud, make_stream(model_version=version))
    assert error.kind == kind
    assert len(error.reason) < 200
    assert max(len(str(log)) for log in logs) < 500


def test_the_header_comes_first_and_once(cloud: RunningCloud) -> None:
    header, roi = make_stream(make_roi(1))
    for requests in ([roi], [header, header], [header, pb.ReadRequest()], []):
        assert refused(cloud, requests).kind == "InvalidRequest"


def test_a_message_beyond_the_limit_is_too_large(cloud: RunningCloud) -> None:
    header, roi = make_stream(make_roi(1))
    huge = codec.encode_roi(make_roi(1))
    huge.roi.voxels = bytes(10_000)
    assert refused(cloud, [header, huge]).kind == "TooLarge"
    assert isinstance(read(cloud, [header, roi])[0], Verdict)


def test_a_caller_may_be_silent_while_its_rois_are_read() -> None:
    """Afterwards it must send the others, or close its side."""
    header, first = make_stream(make_roi(1), roi_count=2)
    with (
        run_cloud(idle_timeout_s=0.3) as cloud,
        cloud.stub() as stub,
        unfinished(header, first) as requests,
        unfinished() as nothing,
    ):
        cloud.reader.gate.clear()
        call = stub.Read(requests, timeout=20)
        until(lambda: cloud.taken == 1)
        assert end_of(stub.Read(nothing, timeout=20)) == "InvalidRequest"  # it took as long
        until(lambda: cloud.open_streams == 1)
        cloud.reader.gate.set()
        assert next(answers(call)).verdict.roi_id == 1
        with pytest.raises(OverreadError, match="none was pending"), typed():
            list(call)


def test_a_failed_batch_is_refused_and_the_service_continues() -> None:
    with run_cloud(max_batch=1) as cloud, structlog.testing.capture_logs() as logs:
        outcomes = outcomes_by_id(read(cloud, make_stream(make_roi(1, 255), make_roi(2))))
        assert [one["rois"] for one in logs if one["event"] == "batch failed"] == [1]
        assert isinstance(read(cloud, make_stream(make_roi(3)))[0], Verdict)
    assert outcomes[1] == Refusal(1, "ModelFailed", "mean: ValueError: all 255")
    assert isinstance(outcomes[2], Verdict)


def test_quotas_keep_streams_for_other_sites_and_for_stat() -> None:
    """Of ten streams one site may keep five under contention; the tenth is for stat."""
    with (
        run_cloud(max_streams=10, trusted_proxies=("*",)) as cloud,
        cloud.stub() as stub,
        ExitStack() as calls,
    ):

        def hold(site: str, **header: Any) -> Any:
            sent = calls.enter_context(unfinished(*make_stream(roi_count=1, **header)))
            call = stub.Read(sent, timeout=20, metadata=(("overread-site", site),))
            calls.callback(call.cancel)
            return call

        def refused(site: str, words: str) -> None:
            with pytest.raises(OverreadError, match=words) as caught, typed():
                list(hold(site))
            assert caught.value.kind == "Overloaded"

        for count, site in enumerate(["north"] * 5 + ["south"] * 4, 1):
            hold(site)
            until(lambda count=count: cloud.open_streams == count)
            if count == 6:
                refused("north", "north has 6 open streams; .* is 5")
        refused("east", "are reserved for stat")
        ends = cloud.counts("streams", "end")
        assert ends == {"OverShare": 1, "Overloaded": 1}  # the autoscaler counts only the second
        assert accepted_of(hold("north", priority=Priority.STAT)) == 1


@pytest.mark.parametrize(
    ("timeout_s", "sent", "kind", "words"),
    [
        (0.05, [], "InvalidRequest", "no header arrived within"),
        (1.0, make_stream(budget_s=600.0, roi_count=1), "InvalidRequest", "no ROI arrived within"),
        (60.0, make_stream(budget_s=2.0, roi_count=1), "DeadlinePassed", "the last ROI arrived"),
    ],
)
def test_a_silent_caller_does_not_hold_a_stream(
    timeout_s: float, sent: list[pb.ReadRequest], kind: str, words: str
) -> None:
    """Header and first ROI must arrive within the header timeout, the others within the budget."""
    with (
        run_cloud(idle_timeout_s=timeout_s) as cloud,
        cloud.stub() as stub,
        unfinished(*sent) as requests,
        pytest.raises(OverreadError, match=words) as caught,
        typed(),
    ):
        list(stub.Read(requests, timeout=20))
    assert caught.value.kind == kind


def test_a_caller_that_trickles_rois_does_not_hold_a_stream() -> None:
    """Each of them comes in time; all of them may take no more than some time of the budget."""

    def slow() -> Iterator[pb.ReadRequest]:
        for request in make_stream(*map(make_roi, range(64)), budget_s=600.0):
            yield request
            time.sleep(0.1)

    words = "the ROIs come too slowly: .* the limit is 1.5 s for this budget"
    with (
        run_cloud(idle_timeout_s=0.5, max_budget_s=6.0) as cloud,
        cloud.stub() as stub,
        pytest.raises(InvalidRequest, match=words),
        typed(),
    ):
        list(stub.Read(slow(), timeout=60))
    assert cloud.taken < 64


def test_a_caller_that_reads_nothing_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is free soon after the deadline, though the answers cannot be sent to it."""
    monkeypatch.setattr("cloud.stream.CLOSE_AFTER_S", 0.1)
    monkeypatch.setattr("cloud.stream.ABANDON_AFTER_S", 0.1)
    monkeypatch.setattr(
        "cloud.stream.verdict_of", lambda i, *_: Verdict(i, 0.5, 1.0, "m" * 4_000, 0.0, 0.0)
    )
    rois = [make_roi(i) for i in range(64)]
    # a window that the answers exceed: the cloud waits for the caller to read
    window = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    with run_cloud() as cloud, grpc.insecure_channel(cloud.address, options=window) as channel:
        stub: Any = overread_pb2_grpc.OverreadStub(channel)
        call = stub.Read(iter(make_stream(*rois, budget_s=2.0)), timeout=60)
        until(lambda: cloud.taken > 0)
        until(lambda: cloud.open_streams == 0)
        assert cloud.count("streams_total", end="cancelled", priority="routine") == 1
        call.cancel()


def test_a_hanging_model_does_not_hold_a_study_beyond_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A caller without a timeout of its own gets an error, and its stream is free."""
    monkeypatch.setattr("cloud.stream.CLOSE_AFTER_S", 0.05)
    with run_cloud() as cloud, cloud.stub() as stub:
        cloud.reader.gate.clear()
        with pytest.raises(OverreadError, match="not all ROIs were answered") as caught, typed():
            list(stub.Read(iter(make_stream(make_roi(1), budget_s=3.0))))
        until(lambda: cloud.open_streams == 0)
        assert cloud.taken == 1
    assert caught.value.kind == "DeadlinePassed"


@pytest.mark.parametrize("field", ["shape", "checksum"])
def test_an_invalid_shape_refuses_that_roi_alone(cloud: RunningCloud, field: str) -> None:
    """Megabytes that a caller sends are not sent back, or kept; the rest of the study is read."""
    header, wrong, sound = make_stream(make_roi(1), make_roi(2))
    if field == "shape":
        wrong.roi.shape.z = 2**32 - 1
    else:
        wrong.roi.checksum = bytes(2_000)
    outcomes = outcomes_by_id(read(cloud, [header, wrong, sound]))
    assert (outcomes[1].error, outcomes[1].field) == ("InvalidRequest", f"roi.{field}")
    assert len(outcomes[1].reason) < 100
    assert isinstance(outcomes[2], Verdict)


def test_a_damaged_roi_is_refused_and_may_be_sent_again(cloud: RunningCloud) -> None:
    header, whole = make_stream(make_roi(1))
    damaged = pb.ReadRequest()
    damaged.CopyFrom(whole)
    damaged.roi.voxels = b"\x00" + whole.roi.voxels[1:]
    refusal, verdict, summary = read(cloud, [header, damaged, whole])
    assert isinstance(refusal, Refusal)
    assert refusal.error == "ChecksumMismatch"
    assert isinstance(verdict, Verdict)
    assert (summary.answered, summary.refused) == (1, 0)


def test_a_batch_without_an_answer_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_cloud() as cloud, cloud.stub() as stub:
        submit = cloud.server.batcher.submit

        def given_up(*arguments: Any) -> Any:
            result = submit(*arguments)
            result.cancel()
            return result

        monkeypatch.setattr(cloud.server.batcher, "submit", given_up)
        call = stub.Read(iter(make_stream(make_roi(1))))
        refusal, summary = map(codec.decode_response, answers(call))
    assert refusal == Refusal(1, "ModelFailed", "the batch ended without an answer")
    assert (summary.answered, summary.refused) == (0, 1)


def test_stat_of_others_is_read_as_routine() -> None:
    with run_cloud(stat_sites=("north",)) as cloud:
        assert isinstance(read(cloud, make_stream(make_roi(1), priority=Priority.STAT))[0], Verdict)
        assert cloud.count("demoted_streams_total") == 1
