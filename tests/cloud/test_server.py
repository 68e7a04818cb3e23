"""The server around the service: health, reflection, drain, address, TLS, and the real process."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from cloud.describe import fetch_description
from cloud.errors import AddressUnusable, BadSettings
from cloud.server import SERVICE_NAME
from cloud.service import Caller, caller_of
from cloud.settings import CloudSettings
from protos import codec, overread_pb2_grpc
from protos import overread_pb2 as pb
from protos.errors import OverreadError, Unreachable, from_status, status_of
from protos.messages import Refusal, Verdict
from tests.cloud.running import (
    RunningCloud,
    accepted_of,
    answers,
    make_roi,
    make_stream,
    run_cloud,
    typed,
    unfinished,
    until,
)
from tests.edge.models.signed import offering, signed
from tests.pki import make_pki
from tests.process.test_endpoints import get

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health_of(cloud: RunningCloud, service: str) -> int:
    with grpc.insecure_channel(cloud.address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=20).status)


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


def end_of(call: Any) -> str | None:
    """The class of the error that ends a study, as the edge would meet it; None for a good end."""
    try:
        with typed():
            list(call)
    except OverreadError as error:
        return error.kind
    return None


def test_health_says_serving() -> None:
    with run_cloud() as cloud:
        assert health_of(cloud, "") == SERVING
        assert health_of(cloud, SERVICE_NAME) == SERVING


def test_reflection_names_the_service() -> None:
    with run_cloud() as cloud, grpc.insecure_channel(cloud.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "overread.v1.Overread" in database.get_services()
        assert database.FindFileContainingSymbol("overread.v1.Roi").name == "protos/overread.proto"


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
        draining.join(20)
        assert not draining.is_alive()
    assert isinstance(verdict, Verdict)
    assert verdict.roi_id == 1
    assert summary.answered == 1


def test_a_study_open_after_the_grace_period_gets_draining() -> None:
    with contextlib.ExitStack() as channel:
        with run_cloud(grace_s=0.05) as cloud:
            stub = channel.enter_context(cloud.stub())
            sent = channel.enter_context(unfinished(*make_stream(roi_count=1)))
            call = stub.Read(sent, timeout=20)
            until(lambda: cloud.open_streams == 1)
            cloud.drain()
        assert end_of(call) == "Draining"


@pytest.mark.parametrize("host", ["256.1.1.1", "192.0.2.1"])
def test_an_address_of_no_or_another_machine_is_named(host: str) -> None:
    """In words of the system: gRPC says to set GRPC_VERBOSITY."""
    with (
        pytest.raises(AddressUnusable, match=f"^{host}:0 cannot be bound: ") as caught,
        run_cloud(address=f"{host}:0", insecure=True),
    ):
        pass
    assert "GRPC" not in str(caught.value)


def test_a_socket_of_this_machine_can_be_served(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'reader.sock'}"
    with run_cloud(address=address) as cloud:
        assert cloud.address == address
        assert fetch_description(address, timeout_s=20.0).models == {"mean": "2.1"}


def test_a_taken_port_is_named() -> None:
    """A second service on the same port fails to start instead of sharing it unnoticed."""
    with (
        run_cloud() as cloud,
        pytest.raises(AddressUnusable, match=cloud.address),
        run_cloud(address=cloud.address),
    ):
        pass


def test_a_missing_tls_file_is_named(tmp_path: Path) -> None:
    tls = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    with pytest.raises(BadSettings, match=r"key\.pem"), run_cloud(**tls):
        pass


def test_a_wrong_pair_is_named(pki: Path) -> None:
    tls = {"tls_cert": pki / "server.pem", "tls_key": pki / "client.key"}
    with (
        pytest.raises(BadSettings, match=r"client\.key is not the private key of"),
        run_cloud(**tls),
    ):
        pass


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


@contextlib.contextmanager
def run_mutual_tls(pki: Path, client: str) -> Iterator[tuple[RunningCloud, Any, Any]]:
    """A cloud, and a client's credentials: with its certificate, and without."""
    ca, key, cert = ((pki / n).read_bytes() for n in ("ca.pem", f"{client}.key", f"{client}.pem"))
    files = {
        "tls_cert": pki / "server.pem",
        "tls_key": pki / "server.key",
        "tls_ca": pki / "ca.pem",
    }
    with run_cloud(**files) as cloud:
        credentials = grpc.ssl_channel_credentials
        yield cloud, credentials(ca, key, cert), credentials(ca)


def test_mutual_tls_admits_only_signed_certificates(pki: Path) -> None:
    with run_mutual_tls(pki, "client") as (cloud, known, unknown):
        assert fetch_description(cloud.address, credentials=known).models == {"mean": "2.1"}
        for credentials in (unknown, None):
            with pytest.raises(Unreachable):
                fetch_description(cloud.address, credentials=credentials, timeout_s=5.0)


@pytest.mark.parametrize(
    ("name", "site"), [("client", "client"), ("alternative", "south"), ("nameless", "unknown")]
)
def test_the_site_comes_from_the_certificate(
    pki: Path, monkeypatch: pytest.MonkeyPatch, name: str, site: str
) -> None:
    """Even a certificate without any name cannot be used to take another site's quota."""
    sites: list[str] = []

    def noted(context: Any, settings: CloudSettings) -> Caller:
        caller = caller_of(context, settings)
        sites.append(caller.site)
        return caller

    monkeypatch.setattr("cloud.service.caller_of", noted)
    with (
        run_mutual_tls(pki, name) as (cloud, known, _),
        grpc.secure_channel(cloud.address, known) as channel,
    ):
        stub = overread_pb2_grpc.OverreadStub(channel)
        metadata = (("overread-site", "north"),)
        list(stub.Read(iter(make_stream(make_roi(1))), timeout=20, metadata=metadata))
    assert sites == [site]


# The command itself, with a reader of one line in the place of the trained one.
PROCESS = """
import numpy as np
import cloud.__main__ as command
from models.runtime.second_reader import Readings

class Mean:
    name, version, engine, roi_shape = "mean", "1.0", "numpy", (4, 4, 4)

    def read(self, batch):
        mean = batch.reshape(len(batch), -1).mean(axis=1)
        nothing = np.zeros((len(batch), 4, 4, 4), bool)
        zero = np.zeros(len(batch), int)
        return Readings(mean / 255, mean, zero, zero, nothing)

command.open_second_reader = lambda name, **_: Mean()
command.main()
"""

# The same, and the loop that forms batches ends by a bug with the first ROI.
BROKEN = f"""
from cloud.scheduling.batcher import Batcher

async def broken(self):
    await self._arrived.wait()
    raise ZeroDivisionError("a bug")

Batcher._next_batch = broken
{PROCESS}"""


@contextlib.contextmanager
def run_process(
    folder: Path, *options: str, program: str = PROCESS
) -> Iterator[tuple[subprocess.Popen[str], str, Any]]:
    """The process, its address once the ready file is there, and a stub."""
    ready = folder / "ready"
    command = [sys.executable, "-c", program, "serve", "--address", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, "--ready-file", str(ready), *options], stderr=subprocess.PIPE, text=True
    )
    try:
        end_s = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end_s, "it never became ready"
            time.sleep(0.02)
        address = ready.read_text()
        with grpc.insecure_channel(address) as channel:
            yield process, address, overread_pb2_grpc.OverreadStub(channel)
    finally:
        process.kill()
        process.communicate()


def test_one_signal_stops_an_idle_service(tmp_path: Path) -> None:
    with run_process(tmp_path) as (process, address, _):
        assert fetch_description(address, timeout_s=20.0).models == {"mean": "1.0"}
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "draining" in log
    assert "stopped" in log


def test_the_service_says_what_it_serves_and_is_ready_until_it_is_stopped(tmp_path: Path) -> None:
    """An open study holds a service that drains: it is alive, and not ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pages, header = f"127.0.0.1:{port}", make_stream(budget_s=300.0, roi_count=1)
    with (
        run_process(tmp_path, "--grace-s", "300", "--metrics-port", str(port)) as running,
        unfinished(*header) as sent,
    ):
        process, _, stub = running
        assert get(pages, "/healthz") == (200, {"status": "ok", "checks": {"event loop": "ok"}})
        assert get(pages, "/readyz")[0] == 200
        call = stub.Read(sent, timeout=60)
        until(lambda: "open_streams 1.0" in get(pages, "/metrics")[1])
        process.send_signal(signal.SIGTERM)
        until(lambda: get(pages, "/readyz")[0] == 503)
        assert get(pages, "/readyz")[1]["checks"] == {"service": "the service is being stopped"}
        assert get(pages, "/healthz")[0] == 200
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
        assert end_of(call) == "Draining"
    serving = next(line for line in log.splitlines() if "] serving" in line)
    for said in ("address=127.0.0.1:", "encryption=none", "model='mean 1.0 (", "version="):
        assert said in serving


def test_serving_in_the_clear_is_logged_at_each_start(tmp_path: Path) -> None:
    with run_process(tmp_path, "--address", "0.0.0.0:0", "--insecure") as (process, address, _):
        assert address.startswith("0.0.0.0:")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert "[warning  ] ROIs are received unencrypted: set tls_cert and tls_key" in log


def test_a_second_signal_does_not_wait_for_open_studies(tmp_path: Path) -> None:
    """After one signal an open study holds the service, after two its caller gets Draining."""
    header = make_stream(budget_s=300.0, roi_count=1)
    with (
        run_process(tmp_path, "--grace-s", "300") as (process, _, stub),
        unfinished(*header) as sent,
    ):
        call = stub.Read(sent, timeout=60)
        list(stub.Read(iter(header), timeout=60))  # by then the first is open too
        process.send_signal(signal.SIGTERM)
        while end_of(stub.Read(iter(header), timeout=60)) not in ("Draining", "Unreachable"):
            time.sleep(0.02)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert end_of(call) == "Draining"
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_failed_batcher_stops_the_service(tmp_path: Path) -> None:
    """The open study gets Draining, the log has the traceback, the status is 1."""
    roi = make_roi(1, voxels=np.zeros((4, 4, 4), np.uint8))
    with run_process(tmp_path, program=BROKEN) as (process, _, stub):
        call = stub.Read(iter(make_stream(roi, budget_s=300.0)), timeout=60)
        assert end_of(call) == "Draining"
        _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "batcher failed, stopping" in log
    assert "in broken" in log
    assert log.splitlines()[-1].startswith("BatcherFailed: ")


# The same, with a reader that hangs on an ROI of 200 and fails on one of 255; the watchdog waits
# for half a second, or as long as the test says.
UNSOUND = PROCESS.replace(
    "        mean = batch",
    """        if batch.max() == 200:
            time.sleep(3600)
        if batch.max() == 255:
            raise ValueError("all 255")
        mean = batch""",
).replace(
    "import numpy as np",
    """import os
import time
import numpy as np
import cloud.watchdog as watchdog
watchdog.LEAST_HUNG_S = float(os.environ.get("LEAST_HUNG_S", "0.5"))""",
)


def send_roi(stub: Any, value: int) -> Any:
    """Send a study of one ROI of this brightness, in the shape that the reader reads."""
    roi = make_roi(1, voxels=np.full((4, 4, 4), value, np.uint8))
    return stub.Read(iter(make_stream(roi, study_key=f"k{time.monotonic()}")), timeout=60)


def test_a_hanging_model_ends_the_service(tmp_path: Path) -> None:
    """Health says so, its callers get an error, and the supervisor can start it again."""
    with (
        run_process(tmp_path, program=UNSOUND) as (process, address, stub),
        grpc.insecure_channel(address) as channel,
    ):
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == SERVING
        call = send_roi(stub, 200)
        assert next(watched).status == NOT_SERVING
        assert end_of(call) in ("Draining", "Unreachable")
        _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the model hangs: a batch of 1 ROIs takes more than" in log
    assert "the process ends without it" in log


# The same, with a model whose loading takes until a file is there.
LOADING = PROCESS.replace(
    "import numpy as np",
    """import os
import time
import numpy as np""",
).replace(
    "command.open_second_reader = lambda name, *, engine, threads, keys: Mean()",
    """def opened(*_, **__):
    while not os.path.exists(os.environ["GO"]):
        time.sleep(0.01)
    return Mean()

command.open_second_reader = opened""",
)


def test_a_service_that_loads_its_model_is_alive_and_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, said = tmp_path / "go", list[Any]()
    monkeypatch.setenv("GO", str(go))
    with socket.create_server(("127.0.0.1", 0)) as free:
        pages = f"127.0.0.1:{free.getsockname()[1]}"

    def look() -> None:
        end_s = time.monotonic() + 60
        while not said and time.monotonic() < end_s:
            with contextlib.suppress(OSError):
                said.extend(get(pages, page) for page in ("/healthz", "/readyz"))
        go.touch()

    looking = threading.Thread(target=look)
    looking.start()
    port = pages.rpartition(":")[2]
    with run_process(tmp_path, "--metrics-port", port, program=LOADING):
        looking.join()
        assert get(pages, "/readyz")[0] == 200
    assert said[0] == (200, {"status": "ok", "checks": {"event loop": "ok"}})
    checks = {"service": "the model is being loaded"}
    assert said[1] == (503, {"status": "failed", "checks": checks})


# The same, with an event loop that stands still from the first `Describe` on, for some seconds.
STANDING = PROCESS.replace(
    "import numpy as np",
    """import time
import numpy as np
import cloud.__main__ as command_line
from cloud.service import OverreadService
command_line.UNREADY_S, command_line.STALLED_S = 3.0, 4.0

async def stand(*_):
    time.sleep(8)
    raise ZeroDivisionError

OverreadService.Describe = stand""",
)


def test_an_event_loop_that_stands_still_is_not_ready_and_then_not_alive(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        pages = f"127.0.0.1:{free.getsockname()[1]}"
    port = pages.rpartition(":")[2]
    with run_process(tmp_path, "--metrics-port", port, program=STANDING) as (_, _, stub):
        assert get(pages, "/readyz")[0] == get(pages, "/healthz")[0] == 200
        call = stub.Describe.future(pb.DescribeRequest(), timeout=60)
        until(lambda: get(pages, "/readyz")[0] == 503)
        assert "no progress for" in get(pages, "/readyz")[1]["checks"]["service"]
        until(lambda: get(pages, "/healthz")[0] == 503)
        assert call.exception(timeout=60) is not None
        until(lambda: get(pages, "/readyz")[0] == get(pages, "/healthz")[0] == 200)


def test_a_service_whose_model_hangs_is_not_ready_any_more(tmp_path: Path) -> None:
    """It says so between the watchdog's finding and the end of the process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        pages = f"127.0.0.1:{free.getsockname()[1]}"
    port, said = pages.rpartition(":")[2], set[str]()
    with run_process(tmp_path, "--metrics-port", port, program=UNSOUND) as (process, _, stub):
        call = send_roi(stub, 200)
        while process.poll() is None:
            with contextlib.suppress(OSError):
                said.add(get(pages, "/readyz")[1]["checks"]["service"])
        assert end_of(call) in ("Draining", "Unreachable")
    assert said == {"ok", "the service is being stopped"}


def test_one_signal_ends_a_service_with_a_hanging_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the watchdog has found it: Python alone would wait for its thread without end."""
    monkeypatch.setenv("LEAST_HUNG_S", "3600")
    with run_process(tmp_path, "--grace-s", "0.5", program=UNSOUND) as (process, _, stub):
        call = send_roi(stub, 200)
        assert accepted_of(call) == 1
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert end_of(call) in ("Draining", "Unreachable")
        _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the process ends without it" in log


def test_three_failed_batches_in_a_row_end_the_service(tmp_path: Path) -> None:
    with run_process(tmp_path, program=UNSOUND) as (process, _, stub):
        for value in (255, 255, 10, 255, 255):  # one that is read begins a new row
            assert end_of(send_roi(stub, value)) is None
        with contextlib.suppress(grpc.RpcError):
            list(send_roi(stub, 255))
        _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "3 batches in a row failed: " in log


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
            with pytest.raises(grpc.RpcError):
                list(call)
            assert call.code() is grpc.StatusCode.UNAVAILABLE
            assert end_of_status(call).kind == "Draining"
        assert cloud.counts("streams", "end") == {"Draining": 3}
        assert cloud.counts("rois", "outcome") == {"Draining": 1}


def end_of_status(call: Any) -> OverreadError:
    """The error in the details of a call's status; fails where there are none."""
    assert status_of(call.trailing_metadata()) is not None
    return from_status(call.code(), call.details(), call.trailing_metadata())


def test_an_instance_that_hangs_leaves_the_others_and_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ROI is refused, and health stays; the last instance that hangs ends the service."""
    monkeypatch.setenv("OVERREAD_CLOUD_INSTANCES", "2")
    with run_process(tmp_path, program=UNSOUND) as (process, address, stub):
        assert fetch_description(address, timeout_s=20.0).engine == "2 x numpy"
        outcomes = [codec.decode_response(one) for one in send_roi(stub, 200)]
        assert [one.error for one in outcomes if isinstance(one, Refusal)] == ["ModelFailed"]
        assert end_of(send_roi(stub, 10)) is None
        assert end_of(send_roi(stub, 200)) in ("Draining", "Unreachable")
        _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "an instance of the model is dropped" in log
    assert "the model cannot read any more" in log
