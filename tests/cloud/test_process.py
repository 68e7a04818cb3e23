"""The process of the command: signals, readiness, and a model that hangs or fails."""

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud.describe import fetch_description
from evaluation.world import free_ports, write_toml
from process.tls import TlsFiles
from protos import overread_pb2 as pb
from protos import overread_pb2_grpc
from protos.errors import Unreachable
from tests.cloud.running import accepted_of, end_of, make_roi, make_stream, unfinished, until
from tests.pki import make_pki
from tests.process.test_endpoints import get

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

# The command itself, with a reader of one line in the place of the trained one. It is loaded once
# the file GO is there, if that is set, and hangs on an ROI of 200.
PROCESS = """
import os
import time
import numpy as np
import cloud.__main__ as command
import cloud.instances as instances
import cloud.scheduling.batcher as batcher
from models.runtime.second_reader import Readings

batcher.MIN_HUNG_S = float(os.environ.get("MIN_HUNG_S", "3600"))

class Mean:
    name, version, engine, roi_shape = "mean", "1.0", "numpy", (4, 4, 4)

    def read(self, batch):
        if batch.max() == 200:
            time.sleep(3600)
        mean = batch.reshape(len(batch), -1).mean(axis=1)
        nothing = np.zeros((len(batch), 4, 4, 4), bool)
        zero = np.zeros(len(batch), int)
        return Readings(mean / 255, mean, zero, zero, nothing)

def opened(*_, **__):
    while not os.path.exists(os.environ.get("GO", "/")):
        time.sleep(0.01)
    return Mean()

instances.open_second_reader = opened
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
        end_s = time.monotonic() + 300
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


def test_one_signal_stops_an_idle_service(tmp_path: Path, notified: Callable[[], set[str]]) -> None:
    """One that serves in the clear says so at each start. systemd hears that it makes progress."""
    insecure = ("--address", "0.0.0.0:0", "--insecure")
    with run_process(tmp_path, *insecure) as (process, address, _):
        until(lambda: {"READY=1", "WATCHDOG=1"} <= notified())
        assert fetch_description(address, timeout_s=20.0).models == {"mean": "1.0"}
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "[warning  ] ROIs are received unencrypted: set tls.cert and tls.key" in log
    assert "draining" in log
    assert "stopped" in log
    assert not (tmp_path / "ready").exists()


def test_the_service_says_what_it_serves_and_is_ready_until_it_is_stopped(tmp_path: Path) -> None:
    """An open study holds a service that drains: it is alive, and not ready.

    After a second signal its caller gets Draining.
    """
    pages = f"127.0.0.1:{free_ports(1)[0]}"
    header = make_stream(budget_s=300.0, roi_count=1)
    with (
        run_process(tmp_path, "--grace-s", "300", "--metrics-address", pages) as running,
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
        _, log = process.communicate(timeout=120)
        assert end_of(call) == "Draining"
    assert process.returncode == 0
    serving = next(line for line in log.splitlines() if "] serving" in line)
    for said in ("address=127.0.0.1:", "encryption=none", "model='mean 1.0 (", "version="):
        assert said in serving


def test_a_certificate_is_renewed_without_a_restart_and_sighup_ends_nothing(tmp_path: Path) -> None:
    """The metric has the expiry of the certificate that is in use."""
    here = ("CN=x", "subjectAltName=IP:127.0.0.1")
    for name, days in (("live", 2), ("new", 9)):
        (tmp_path / name).mkdir()
        make_pki(tmp_path / name, days=days, service=here)
    live, new, pages = tmp_path / "live", tmp_path / "new", f"127.0.0.1:{free_ports(1)[0]}"
    trusted = [TlsFiles(ca=folder / "ca.pem") for folder in (live, new)]
    credentials = [grpc.ssl_channel_credentials(*files.current().contents) for files in trusted]
    config = write_toml(
        tmp_path / "cloud.toml",
        {"tls__cert": str(live / "service.pem"), "tls__key": str(live / "service.key")},
    )

    def expires_s() -> float:
        name = 'overread_cloud_certificate_expiry_timestamp_seconds{setting="tls.cert"} '
        return float(get(pages, "/metrics")[1].partition(name)[2].split()[0])

    with run_process(tmp_path, "--config", str(config), "--metrics-address", pages) as running:
        process, address, _ = running
        for step, (serves, within_days) in (
            (lambda: None, (0, (1, 2))),
            (lambda: shutil.copy(new / "service.pem", live), (0, (1, 2))),
            (lambda: shutil.copy(new / "service.key", live), (1, (8, 9))),
        ):
            step()
            process.send_signal(signal.SIGHUP)
            for number, credential in enumerate(credentials):
                with contextlib.ExitStack() as refused:
                    if number != serves:
                        refused.enter_context(pytest.raises(Unreachable))
                    fetch_description(address, credentials=credential, timeout_s=20.0)
            first, last = within_days
            assert first < (expires_s() - time.time()) / 86_400 <= last
        assert process.poll() is None


def test_a_failed_batcher_stops_the_service(tmp_path: Path) -> None:
    roi = make_roi(1, voxels=np.zeros((4, 4, 4), np.uint8))
    with run_process(tmp_path, program=BROKEN) as (process, _, stub):
        call = stub.Read(iter(make_stream(roi, budget_s=300.0)), timeout=60)
        assert end_of(call) == "Draining"
        _, log = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "batcher failed, stopping" in log
    assert "in broken" in log
    assert log.splitlines()[-1].startswith("BatcherFailed: ")


def send_roi(stub: Any) -> Any:
    """Send a study of one ROI on which the reader hangs."""
    roi = make_roi(1, voxels=np.full((4, 4, 4), 200, np.uint8))
    return stub.Read(iter(make_stream(roi)), timeout=60)


def test_a_hanging_model_ends_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Health says so, its callers get an error, and the supervisor can start it again."""
    monkeypatch.setenv("MIN_HUNG_S", "0.5")
    with (
        run_process(tmp_path) as (process, address, stub),
        grpc.insecure_channel(address) as channel,
    ):
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == SERVING
        call = send_roi(stub)
        assert next(watched).status == NOT_SERVING
        assert end_of(call) in ("Draining", "Unreachable")
        _, log = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the model hangs: a batch of 1 ROIs takes more than" in log
    assert "the process ends without it" in log


def test_a_service_that_loads_its_model_is_alive_and_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, said = tmp_path / "go", list[Any]()
    monkeypatch.setenv("GO", str(go))
    pages = f"127.0.0.1:{free_ports(1)[0]}"

    def look() -> None:
        end_s = time.monotonic() + 300
        while not said and time.monotonic() < end_s:
            with contextlib.suppress(OSError):
                said.extend(get(pages, page) for page in ("/healthz", "/readyz"))
        go.touch()

    looking = threading.Thread(target=look)
    looking.start()
    with run_process(tmp_path, "--metrics-address", pages):
        looking.join()
        assert get(pages, "/readyz")[0] == 200
    assert said[0] == (200, {"status": "ok", "checks": {"event loop": "ok"}})
    checks = {"service": "the model is being loaded"}
    assert said[1] == (503, {"status": "failed", "checks": checks})


# The same, with an event loop that stands still from the first `Describe` until a file is there.
STANDING = f"""
import os
import time
import cloud.run as command_line
from cloud.service import OverreadService
command_line.UNREADY_S, command_line.STALLED_S = 3.0, 4.0

async def stand(*_):
    while not os.path.exists(os.environ["STANDS"]):
        time.sleep(0.01)
    raise ZeroDivisionError

OverreadService.Describe = stand
{PROCESS}"""


def test_an_event_loop_that_stands_still_is_not_ready_and_then_not_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDS", str(tmp_path / "go"))
    pages = f"127.0.0.1:{free_ports(1)[0]}"
    with run_process(tmp_path, "--metrics-address", pages, program=STANDING) as (_, _, stub):
        until(lambda: get(pages, "/readyz")[0] == get(pages, "/healthz")[0] == 200)
        call = stub.Describe.future(pb.DescribeRequest(), timeout=60)
        until(lambda: get(pages, "/readyz")[0] == 503)
        assert "no progress for" in get(pages, "/readyz")[1]["checks"]["service"]
        until(lambda: get(pages, "/healthz")[0] == 503)
        (tmp_path / "go").touch()
        assert call.exception(timeout=60) is not None
        until(lambda: get(pages, "/readyz")[0] == get(pages, "/healthz")[0] == 200)


def test_one_signal_ends_a_service_with_a_hanging_model(tmp_path: Path) -> None:
    """Before the watchdog has found it: Python alone would wait for its thread without end."""
    with run_process(tmp_path, "--grace-s", "0.5") as (process, _, stub):
        call = send_roi(stub)
        assert accepted_of(call) == 1
        process.send_signal(signal.SIGTERM)
        assert end_of(call) in ("Draining", "Unreachable")
        _, log = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the process ends without it" in log
