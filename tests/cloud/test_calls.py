"""The messages of calls: they come in time, within the share of their site, and can be decoded."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from protos import overread_pb2 as pb
from protos.messages import SITE_KEY
from tests.cloud.running import (
    RunningCloud,
    make_roi,
    make_stream,
    read,
    run_cloud,
    unfinished,
    until,
)

OWN = ("/overread.v1.Overread/Describe", "/overread.v1.Overread/GetModel")
HEALTH = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
INFERENCE = tuple(
    f"/inference.GRPCInferenceService/{name}"
    for name in ("ServerLive", "ModelInfer", "ModelStreamInfer")
)
GARBAGE = b"\xff" * 9


def address_of(cloud: RunningCloud, method: str) -> str:
    return cloud.server.inference_address if "inference" in method else cloud.address


@contextlib.contextmanager
def called(cloud: RunningCloud, method: str, sent: Iterable[bytes], **named: Any) -> Iterator[Any]:
    """A call of any method with these messages and no end of them."""
    raw: Any = sent
    with grpc.insecure_channel(address_of(cloud, method)) as channel, unfinished(*raw) as requests:
        yield channel.stream_stream(method)(requests, **named)


def ended(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError):
        list(call)
    return call.code(), call.details()


@pytest.fixture(scope="module")
def hasty() -> Iterator[RunningCloud]:
    with run_cloud(idle_timeout_s=0.3, inference_address="127.0.0.1:0") as cloud:
        yield cloud


@pytest.mark.parametrize("method", [*OWN, *HEALTH, *INFERENCE, REFLECTION])
def test_a_call_without_its_message_ends_in_time(hasty: RunningCloud, method: str) -> None:
    with called(hasty, method, [], timeout=60) as call:
        said = "no whole message arrived within 0.3 s"
        assert ended(call) == (grpc.StatusCode.INVALID_ARGUMENT, said)


@pytest.mark.parametrize("first", [[], make_stream(roi_count=1)])
@pytest.mark.parametrize(
    "method", [*OWN, *HEALTH, *INFERENCE, REFLECTION, "/overread.v1.Overread/Read"]
)
def test_what_is_no_message_is_an_invalid_argument(
    hasty: RunningCloud, method: str, first: list[Any]
) -> None:
    is_study = method.endswith("Read")
    before = [one.SerializeToString() for one in first] if is_study else []
    with (
        structlog.testing.capture_logs() as logs,
        called(hasty, method, [*before, GARBAGE], timeout=60) as call,
    ):
        said = "a message of 9 bytes is not of the method's type"
        assert ended(call) == (grpc.StatusCode.INVALID_ARGUMENT, said)
    assert not [line for line in logs if line["log_level"] == "error"]


def test_messages_that_do_not_end_take_the_share_of_their_site_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloud.calls.RECEIVING", 4)
    method = HEALTH[0]
    with run_cloud(trusted_proxies=("*",)) as cloud, contextlib.ExitStack() as callers:

        def open_one(site: str, *sent: bytes) -> Any:
            named = {"timeout": 60, "metadata": ((SITE_KEY, site),)}
            return callers.enter_context(called(cloud, method, sent, **named))

        calls = [open_one("north") for _ in range(3)]
        until(lambda: any(call.done() for call in calls))
        (refused,) = [call for call in calls if call.done()]
        said = "2 messages of site north are being received"
        assert ended(refused) == (grpc.StatusCode.RESOURCE_EXHAUSTED, said)
        request = health_pb2.HealthCheckRequest().SerializeToString()
        assert len(list(open_one("south", request))) == 1
        assert len(read(cloud, make_stream(make_roi(1)))) == 2


def test_reflection_answers_in_both_versions(cloud: RunningCloud) -> None:
    """Newer clients ask for v1 alone."""
    request = reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString()
    answers = []
    for method in (REFLECTION, REFLECTION.replace("v1", "v1alpha")):
        with called(cloud, method, [request], timeout=60) as call:
            answers.append(reflection_pb2.ServerReflectionResponse.FromString(next(call)))
    assert answers[0] == answers[1]
    names = [one.name for one in answers[0].list_services_response.service]
    assert pb.DESCRIPTOR.services_by_name["Overread"].full_name in names
    symbol = reflection_pb2.ServerReflectionRequest(file_containing_symbol="overread.v1.Roi")
    with called(cloud, REFLECTION, [symbol.SerializeToString()], timeout=60) as call:
        found = reflection_pb2.ServerReflectionResponse.FromString(next(call))
    assert pb.DESCRIPTOR.serialized_pb in found.file_descriptor_response.file_descriptor_proto
