"""An unmodified tritonclient reads ROIs with the service, over gRPC and over HTTP."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cloud.inference_protocol.inference import Statistics
from cloud.scheduling.waiting import RoiResult
from cloud.server import CloudServer
from tests.cloud.inference_protocol.calling import (
    KINDS,
    Caller,
    DetailedReader,
    Refused,
    address_of,
    called,
    rois,
    tritonclient,
)
from tests.cloud.running import SHAPE, make_roi, make_stream, read, refused, run_cloud, until
from tests.plain_readings import plain

both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module", params=KINDS)
def calls(request: pytest.FixtureRequest) -> Iterator[Caller]:
    """A caller over gRPC, and one over HTTP, of a service that tests leave as it was."""
    with called(request.param, max_batch=4) as (_, caller):
        yield caller


def test_the_service_says_what_it_is_and_what_its_model_reads(calls: Caller) -> None:
    assert calls("is_server_live")
    assert calls("is_server_ready")
    asked = {("mean", ""): True, ("mean", "2.1"): True, ("mean", "3"): False, ("x", ""): False}
    for (name, version), ready in asked.items():
        assert calls("is_model_ready", model_name=name, model_version=version) is ready
    said = calls("get_server_metadata")
    metadata = calls("get_model_metadata", model_name="mean")
    config = calls("get_model_config", model_name="mean")
    index = calls("get_model_repository_index")
    assert (said["name"], said["version"]) == ("overread-cloud", "0.0")
    assert {"binary_tensor_data", "statistics"} <= set(said["extensions"])
    assert (metadata["name"], metadata["versions"]) == ("mean", ["2.1"])
    tensors = [*metadata["inputs"], *metadata["outputs"]]
    numbers = {name: ["FP64", -1, 1] for name in ("PROBABILITY", "DIAMETER_MM", "MALIGNANCY")}
    masks = {"ROI": ["UINT8", -1, *SHAPE], "MASK": ["BOOL", -1, *SHAPE]}
    assert {one["name"]: [one["datatype"], *map(int, one["shape"])] for one in tensors} == {
        **numbers, **masks, "TEXTURE": ["BYTES", -1, 1]
    }  # fmt: skip
    config = config.get("config", config)
    assert config["max_batch_size"] == 4
    assert config["input"][0]["data_type"] == "TYPE_UINT8"
    assert config["parameters"]["version"]["string_value"] == "2.1"
    assert "model_stats" in calls("get_inference_statistics")
    models = index["models"] if isinstance(index, dict) else index
    assert [(one["name"], one["state"]) for one in models] == [("mean", "READY")]


def test_a_version_of_hexadecimal_digits_is_served_as_a_number() -> None:
    """perf_analyzer reads it as one, and requests may name either."""
    with called("grpc", DetailedReader(version="67542c328e19")) as (_, call):
        (version,) = call("get_model_metadata", model_name="mean")["versions"]
        assert int(version) == 0x67542C328E19
        for name in (version, "67542c328e19"):
            assert call("infer", rois=rois(51), model_version=name)["version"] == version


def test_a_request_gets_the_readings_of_its_rois(calls: Caller) -> None:
    answer = calls("infer", rois=rois(51, 102, 204), request_id="a7")
    assert (answer["id"], answer["model"], answer["version"]) == ("a7", "mean", "2.1")
    given = answer["outputs"]
    assert given["PROBABILITY"] == [[0.2], [0.4], [0.8]]
    assert given["DIAMETER_MM"] == [[5.1], [10.2], [20.4]]
    assert given["MALIGNANCY"] == [[0.1], [0.2], [0.4]]
    assert given["TEXTURE"] == [["ground glass"], ["ground glass"], ["ground glass"]]
    assert np.array(given["MASK"]).sum(axis=(1, 2, 3)).tolist() == [0, 512, 512]
    assert answer == calls("infer", rois=rois(51, 102, 204), request_id="a7", binary=False)


def test_only_the_outputs_that_a_request_names_are_sent(calls: Caller) -> None:
    answer = calls("infer", rois=rois(51), outputs=["TEXTURE", "PROBABILITY"])
    assert answer["outputs"] == {"TEXTURE": [["ground glass"]], "PROBABILITY": [[0.2]]}


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_bodies_may_be_compressed(algorithm: str) -> None:
    packed = dict.fromkeys(
        ("request_compression_algorithm", "response_compression_algorithm"), algorithm
    )
    with called("http") as (_, call):
        assert call("infer", rois=rois(51, 102), **packed) == call("infer", rois=rois(51, 102))


def test_requests_on_a_stream_are_answered_in_order_and_fail_alone() -> None:
    """A method that is not served is unimplemented."""
    with called("grpc") as (_, call):
        first, second, third = call("stream", calls=[rois(51), [[[[1]]]], rois(102)])
        with pytest.raises(Refused) as caught:
            call("get_system_shared_memory_status")
    assert caught.value.status == "UNIMPLEMENTED"
    assert first["outputs"]["PROBABILITY"] == [[0.2]]
    assert "shape [1, 1, 1, 1] of ROI, expected [n, 8, 8, 8]" in second
    assert third["outputs"]["PROBABILITY"] == [[0.4]]


@pytest.mark.parametrize(
    ("wrong", "status", "words"),
    [
        ({"rois": [[[[1]]]]}, "INVALID_ARGUMENT 400", "shape [1, 1, 1, 1] of ROI, expected [n, 8"),
        ({"rois": [1] * 512}, "INVALID_ARGUMENT 400", "shape [512] of ROI"),
        ({"datatype": "FP32"}, "INVALID_ARGUMENT 400", "'FP32' of 'ROI', expected 'UINT8'"),
        ({"name": "IMAGE"}, "INVALID_ARGUMENT 400", "inputs ['IMAGE'], expected one input, 'ROI'"),
        ({"outputs": ["MASK"] * 2}, "INVALID_ARGUMENT 400", "an output is requested twice"),
        ({"outputs": ["LOGIT"]}, "INVALID_ARGUMENT 400", "output 'LOGIT', expected one of"),
        ({"model": "other"}, "NOT_FOUND 404", "model 'other' version '' is not served"),
        ({"model_version": "3"}, "NOT_FOUND 404", "model 'mean' version '3' is not served"),
        ({"rois": rois(1, 2, 3, 4, 5)}, "OUT_OF_RANGE 413", "5 ROIs in one request, the limit"),
        ({"timeout": 1}, "DEADLINE_EXCEEDED 429", "an answer would take"),
        ({"timeout": -5}, "INVALID_ARGUMENT 400", "parameter timeout is no integer of 0 or more"),
        ({"rois": rois(255)}, "INTERNAL 500", "all 255"),
    ],
)
def test_a_wrong_request_is_refused_with_its_reason(
    calls: Caller, wrong: dict[str, Any], status: str, words: str
) -> None:
    said, reason = calls.refused(**{"rois": rois(51), **wrong})
    assert said in status.split()
    assert words in reason
    assert calls("infer", rois=rois(51))["outputs"]["PROBABILITY"] == [[0.2]]


@both
def test_a_request_that_is_not_answered_in_time_fails(kind: str) -> None:
    """A second after its own timeout, or after the longest budget of the service."""
    with called(kind, max_budget_s=0.3) as (cloud, call):
        cloud.reader.gate.clear()
        for more in ({"timeout": 200_000}, {}):
            status, words = call.refused(rois=rois(51), **more)
            assert status in ("DEADLINE_EXCEEDED", "504", "429")
            assert "deadline" in words or "would take" in words
        assert cloud.queued == 0


def test_the_deadline_of_the_call_itself_counts() -> None:
    """The service refuses at once what the caller would not wait for."""
    with called("grpc") as (cloud, call):
        cloud.reader.gate.clear()
        with tritonclient("grpc", address_of(cloud, "grpc")) as other:
            other.send("infer", rois=rois(51))
            until(lambda: cloud.taken == 1)
            status, _ = call.refused(rois=rois(51), client_timeout=0.4)
            assert status == "DEADLINE_EXCEEDED"
            until(lambda: cloud.queued == 0)
            cloud.reader.gate.set()
            other.receive()


@both
def test_priority_1_is_read_first_also_before_a_study_in_the_same_queue(kind: str) -> None:
    with called(kind, max_batch=1) as (cloud, call), cloud.stub() as stub:
        with tritonclient(kind, address_of(cloud, kind)) as stat:
            held(cloud, call)
            study = stub.Read(iter(make_stream(make_roi(1, 20))), timeout=60)
            until(lambda: cloud.queued == 1)
            stat.send("infer", rois=rois(30), priority=1)
            until(lambda: cloud.queued == 2)
            cloud.reader.gate.set()
            for caller in (call, stat):
                caller.receive()
            assert len(list(study)) == 3
        assert cloud.reader.batches == [[10.0], [30.0], [20.0]]


@both
def test_a_caller_that_goes_away_frees_its_places(kind: str) -> None:
    with called(kind, max_batch=1) as (cloud, call):
        with tritonclient(kind, address_of(cloud, kind)) as leaving:
            held(cloud, call)
            leaving.send("infer", rois=rois(20))
            until(lambda: cloud.queued == 1)
        until(lambda: cloud.queued == 0)
        until(lambda: cloud.count("open_requests") == 1)
        cloud.reader.gate.set()
        call.receive()
        assert cloud.reader.batches == [[10.0]]
        stats = statistics(call)
        assert (count(stats, "success"), count(stats, "fail")) == (1, 1)


def test_requests_and_studies_beyond_the_quota_of_open_streams_are_refused() -> None:
    with (
        called("grpc", max_streams=1) as (cloud, call),
        tritonclient("http", cloud.server.http_address) as other,
    ):
        held(cloud, call)
        assert other.refused(rois=rois(20)) == ("429", "1 streams are open, the limit is 1")
        study = refused(cloud, make_stream(make_roi(1)))
        assert (study.kind, study.limit) == ("Overloaded", 1.0)
        cloud.reader.gate.set()
        call.receive()
        until(lambda: cloud.count("open_requests") == 0)
        assert len(read(cloud, make_stream(make_roi(1)))) == 2


@both
def test_a_service_that_drains_answers_what_is_open_and_takes_nothing_new(kind: str) -> None:
    with called(kind) as (cloud, call), tritonclient(kind, address_of(cloud, kind)) as other:
        assert other("is_server_ready")
        held(cloud, call)
        draining = threading.Thread(target=cloud.drain)
        draining.start()
        if kind == "http":  # the port stays open; that of gRPC does not
            until(lambda: not other("is_server_ready"))
            assert not other("is_model_ready", model_name="mean")
            assert other("is_server_live")
            assert other.refused(rois=rois(20))[0] == "503"
        else:
            until(lambda: is_unavailable(other))
        cloud.reader.gate.set()
        assert call.receive()["outputs"]["PROBABILITY"] == [[10 / 255]]
        draining.join()


def is_unavailable(call: Caller) -> bool:
    try:
        return not call("is_server_ready")
    except Refused as error:
        return error.status == "UNAVAILABLE"


@both
def test_a_request_open_at_the_end_gets_draining(kind: str) -> None:
    with called(kind, grace_s=0.1) as (cloud, call):
        held(cloud, call)
        cloud.drain()
        closing = asyncio.run_coroutine_threadsafe(close(cloud.server), cloud.loop)
        with pytest.raises(Refused) as caught:
            call.receive()
        assert caught.value.status == ("UNAVAILABLE" if kind == "grpc" else "503")
        assert str(caught.value) == "the service stopped before this request was answered"
        cloud.reader.gate.set()
        closing.result(30)


async def close(server: CloudServer) -> None:
    await server.__aexit__(None, None, None)


def test_statistics_count_what_happened() -> None:
    """A batch that two requests share is one execution, whichever way they came."""
    with called("http") as (cloud, call):
        where = address_of(cloud, "grpc")
        with tritonclient("grpc", where) as second, tritonclient("grpc", where) as third:
            held(cloud, call)
            second.send("infer", rois=rois(20))
            until(lambda: cloud.queued == 1)
            third.send("infer", rois=rois(30, 40))
            until(lambda: cloud.queued == 3)
            cloud.reader.gate.set()
            for caller in (call, second, third):
                caller.receive()
            call.refused(rois=[[[[1]]]])
            call.refused(rois=rois(255))
        stats = statistics(call)
        by_name = call("get_inference_statistics", model_name="mean", model_version="2.1")
    assert by_name["model_stats"][0]["name"] == "mean"
    batches = [len(batch) for batch in cloud.reader.batches if 255.0 not in batch]
    assert (int(stats["inference_count"]), int(stats["execution_count"])) == (4, len(batches))
    sizes = {int(one["batch_size"]): one["compute_infer"]["count"] for one in stats["batch_stats"]}
    assert {size: int(n) for size, n in sizes.items()} == Counter(batches)
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert count(stats, part) == 3
        assert nanoseconds(stats, part) > 0
    assert count(stats, "fail") == 2
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert sum(nanoseconds(stats, part) for part in parts) <= nanoseconds(stats, "success")
    assert int(stats["last_inference"]) > 1.7e12


def test_it_is_off_unless_it_has_a_port() -> None:
    with run_cloud() as cloud:
        assert (cloud.server.http_address, cloud.server.inference_address) == ("", "")
        with tritonclient("grpc", cloud.address) as call:
            assert call.refused(rois=rois(51))[0] == "UNIMPLEMENTED"


def held(cloud: Any, call: Caller) -> None:
    """Begin a request of 10, which the model holds until its gate opens."""
    cloud.reader.gate.clear()
    call.send("infer", rois=rois(10))
    until(lambda: cloud.taken == 1)


def statistics(call: Caller) -> dict[str, Any]:
    (stats,) = call("get_inference_statistics")["model_stats"]
    return dict(stats)


def count(stats: dict[str, Any], part: str) -> int:
    return int(stats["inference_stats"][part].get("count", 0))


def nanoseconds(stats: dict[str, Any], part: str) -> int:
    return int(stats["inference_stats"][part].get("ns", 0))


@pytest.mark.parametrize(
    ("batches", "queue_s", "compute_s"),
    [
        ([(1, 10.5, 0.25)], 0.5, 0.25),
        ([(1, 10.5, 0.25), (1, 10.5, 0.25)], 0.5, 0.25),
        ([(2, 11.0, 0.5), (1, 10.5, 0.25)], 0.75, 0.75),
        ([(1, 10.5, 1.0), (2, 11.0, 0.25), (3, 11.25, 0.75)], 0.5, 1.5),
    ],
)
def test_queue_and_compute_time_of_a_request_do_not_overlap(
    batches: list[tuple[int, float, float]], queue_s: float, compute_s: float
) -> None:
    """A request that arrived at 10 s, each ROI of it by batch, its begin, and its time."""
    reading = plain([0.5], [5.0])[0]
    statistics = Statistics()
    statistics.succeeded(
        [RoiResult(reading, at_s - 10.0, took_s, i, at_s, 2) for i, at_s, took_s in batches],
        input_s=0.0, output_s=0.0, total_s=3.0,
    )  # fmt: skip
    said = statistics.message("m", "1")
    assert said.inference_stats.queue.ns == round(1e9 * queue_s)
    assert said.inference_stats.compute_infer.ns == round(1e9 * compute_s)
    assert said.execution_count == len({i for i, *_ in batches})
    assert said.inference_count == len(batches)
