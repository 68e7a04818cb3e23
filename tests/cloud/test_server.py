"""The server around the service: health, reflection, drain, address and TLS."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud.describe import fetch_description
from cloud.settings import AddressUnusable, BadSettings
from evaluation.hostile.clients import ATTACKS
from protos import codec, overread_pb2_grpc
from protos import overread_pb2 as pb
from protos.errors import status_of
from protos.messages import SITE_KEY, Verdict
from tests.cloud.running import (
    RunningCloud,
    answers,
    end_of,
    make_roi,
    make_stream,
    noted,
    read,
    run_cloud,
    unfinished,
    until,
)
from tests.edge.models.signed import offering, signed
from tests.pki import make_pki

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def watch_health(cloud: RunningCloud) -> Iterator[int]:
    """The states of the whole service, as a channel with health checks sees them."""
    with grpc.insecure_channel(cloud.address) as channel:
        request = health_pb2.HealthCheckRequest(service="")
        for response in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=20):
            yield int(response.status)


def listens(cloud: RunningCloud) -> bool:
    """Whether its port takes connections."""
    host, _, port = cloud.address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_drain_finishes_open_studies_and_sends_callers_elsewhere() -> None:
    """Connections are closed for new calls at once, so that a channel takes another replica."""
    with run_cloud(grace_s=20.0) as cloud, cloud.stub() as stub:
        watched = watch_health(cloud)
        assert next(watched) == SERVING
        cloud.reader.gate.clear()
        open_call = stub.Read(iter(make_stream(make_roi(1))), timeout=20)
        until(lambda: cloud.open_streams == 1)
        draining = threading.Thread(target=cloud.drain)
        draining.start()
        assert next(watched) == NOT_SERVING
        new = end_of(stub.Read(iter(make_stream(make_roi(1))), timeout=20))
        assert new in ("Draining", "Unreachable")
        until(lambda: listens(cloud) is False)
        assert draining.is_alive()
        cloud.reader.gate.set()
        verdict, summary = (codec.decode_response(r) for r in answers(open_call))
        draining.join(120)
        assert not draining.is_alive()
    assert isinstance(verdict, Verdict)
    assert verdict.roi_id == 1
    assert summary.answered == 1


def test_a_burst_of_calls_does_not_cancel_those_of_other_sites() -> None:
    """By default gRPC cancels most of what comes after 2,560 calls that wait for the service."""
    go, north = threading.Event(), ((SITE_KEY, "north"),)
    with run_cloud(trusted_proxies=("*",)) as cloud, cloud.stub() as stub:
        read(cloud, make_stream(make_roi(1)))
        cloud.loop.call_soon_threadsafe(go.wait, 60)
        attack = asyncio.wait_for(ATTACKS["messages without an end"](cloud.address), 2.0)
        with ThreadPoolExecutor() as pool:
            pool.submit(asyncio.run, attack)
            calls = [
                stub.Read(iter(make_stream(make_roi(1), budget_s=60.0)), 60, metadata=north)
                for _ in range(8)
            ]
            time.sleep(0.5)  # they have come by then, or the service had less to do
            go.set()
            assert [end_of(call) for call in calls] == [None] * 8


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"address": "256.1.1.1:0"}, "256.1.1.1:0 cannot be bound: "),
        ({"address": "192.0.2.1:0"}, "192.0.2.1:0 cannot be bound: "),
        ({"address": "unix:/none/s"}, "its folder is missing or may not be written"),
        ({"address": "[::1]:1", "tls": ("server.pem", "client.key")}, "cannot be used together"),
    ],
)
def test_what_cannot_be_served_is_named(pki: Path, settings: dict[str, Any], says: str) -> None:
    """In words of the system: gRPC says to set GRPC_VERBOSITY."""
    if "tls" in settings:
        cert, key = settings["tls"]
        settings = {"tls": {"cert": pki / cert, "key": pki / key}}
    with (
        pytest.raises((AddressUnusable, BadSettings), match=says) as caught,
        run_cloud(insecure=True, **settings),
    ):
        pass
    assert "GRPC" not in str(caught.value)


def test_a_socket_of_this_machine_can_be_served(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'reader.sock'}"
    with run_cloud(address=address) as cloud:
        assert cloud.address == address
        assert fetch_description(address, timeout_s=20.0).models == {"mean": "2.1"}


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """Certificates of a server and of clients with and without names."""
    return make_pki(
        tmp_path,
        server=("CN=server", "subjectAltName=IP:127.0.0.1"),
        client=("CN=client", "subjectAltName=IP:127.0.0.1"),
        alternative=("O=none", "subjectAltName=DNS:south"),
        nameless=("O=none", "extendedKeyUsage=clientAuth"),
    )


@pytest.mark.parametrize(
    ("name", "site"), [("client", "client"), ("alternative", "south"), ("nameless", "unknown")]
)
def test_the_site_comes_from_the_certificate(
    pki: Path, monkeypatch: pytest.MonkeyPatch, name: str, site: str
) -> None:
    """Even a certificate without any name cannot be used to take another site's quota."""
    callers = noted(monkeypatch, "cloud.service.caller_of")
    files = {"cert": pki / "server.pem", "key": pki / "server.key", "ca": pki / "ca.pem"}
    own = ((pki / file).read_bytes() for file in ("ca.pem", f"{name}.key", f"{name}.pem"))
    with (
        run_cloud(tls=files) as cloud,
        grpc.secure_channel(cloud.address, grpc.ssl_channel_credentials(*own)) as channel,
    ):
        stub = overread_pb2_grpc.OverreadStub(channel)
        metadata = (("overread-site", "north"),)
        list(stub.Read(iter(make_stream(make_roi(1))), timeout=20, metadata=metadata))
    assert [caller.site for caller in callers] == [site]


def test_every_call_that_a_stop_meets_gets_draining_with_its_details(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its header, while it sends, while it waits for the model, and while it gets a model.

    None of them gets the bare status with which gRPC itself ends a call.
    """
    monkeypatch.setattr("cloud.models.PAUSE_S", 0.3)  # or the whole model might be there already
    hospital = signed(tmp_path)
    header, *rois = make_stream(make_roi(1, voxels=np.zeros((16, 16, 16), np.uint8)), roi_count=2)
    with contextlib.ExitStack() as callers:
        with offering(hospital) as cloud:
            cloud.reader.gate.clear()
            stub = callers.enter_context(cloud.stub())
            sent = [[], [header], [header, *rois]]
            calls = [
                stub.Read(callers.enter_context(unfinished(*requests)), timeout=60)
                for requests in sent
            ]
            until(lambda: cloud.open_streams == 3)
            until(lambda: cloud.taken == 1)
            calls.append(stub.GetModel(pb.GetModelRequest(kind=pb.MODEL_KIND_SCREENING)))
            assert next(calls[-1]).HasField("offer")
        for call in calls:
            assert end_of(call) == "Draining"
            assert call.code() is grpc.StatusCode.UNAVAILABLE
            assert status_of(call.trailing_metadata()) is not None
        assert cloud.counts("streams", "end") == {"Draining": 3}
        assert cloud.counts("rois", "outcome") == {"Draining": 1}
