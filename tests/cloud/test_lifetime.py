"""A service as a real process: ready file, one signal, two signals."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from cloud.describe import describe
from imaging.volume import WINDOW_HU
from protos import codec, overread_pb2_grpc
from protos import overread_pb2 as pb
from protos.errors import Draining, OverreadError, from_status
from protos.messages import Header, Roi

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

command.open_second_reader = lambda name, *, engine, threads: Mean()
command.main()
"""

# The same, and the loop that forms batches ends by a bug with the first ROI.
BROKEN = f"""
from cloud.forming import Former

async def broken(self):
    await self._arrived.wait()
    raise ZeroDivisionError("a bug")

Former.batch = broken
{PROCESS}"""


@contextlib.contextmanager
def _process(
    folder: Path, *options: str, program: str = PROCESS
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address, once the ready file is there."""
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
        yield process, ready.read_text()
    finally:
        process.kill()
        process.communicate()


def _ended(call: Any) -> OverreadError | None:
    """What ended a study; None for a good end."""
    try:
        list(call)
    except grpc.RpcError as caught:
        error: Any = caught
        return from_status(error.code(), error.details(), error.trailing_metadata())
    return None


def test_one_signal_stops_a_service_that_is_idle(tmp_path: Path) -> None:
    """SIGTERM ends it cleanly; the ready file has told where it listened."""
    with _process(tmp_path) as (process, address):
        assert describe(address, timeout_s=20.0).models == {"mean": "1.0"}
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "draining" in log
    assert "stopped" in log


def test_a_second_signal_does_not_wait_for_open_studies(tmp_path: Path) -> None:
    """After one signal an open study holds the service, after two its caller meets Draining."""
    hold = threading.Event()

    def requests(wait: bool) -> Iterator[pb.ReadRequest]:
        yield codec.encode_header(Header("k", "", 300.0, 1))
        if wait:
            hold.wait(60)

    with (
        _process(tmp_path, "--grace-s", "300") as (process, address),
        grpc.insecure_channel(address) as channel,
    ):
        stub = overread_pb2_grpc.OverreadStub(channel)
        call = stub.Read(requests(wait=True), timeout=60)
        list(stub.Read(requests(wait=False), timeout=60))  # by then the first is open too
        process.send_signal(signal.SIGTERM)
        while not isinstance(_ended(stub.Read(requests(wait=False), timeout=60)), Draining):
            time.sleep(0.02)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert isinstance(_ended(call), Draining)
        hold.set()
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_service_that_cannot_read_any_more_stops_and_says_why(tmp_path: Path) -> None:
    """The open study meets Draining, the log has the traceback, the status is 1."""
    roi = Roi(1, np.zeros((4, 4, 4), np.uint8), (1.0, 1.0, 1.0), WINDOW_HU, 0.5)
    requests = [codec.encode_header(Header("k", "", 300.0, 1)), codec.encode_roi(roi)]
    with (
        _process(tmp_path, program=BROKEN) as (process, address),
        grpc.insecure_channel(address) as channel,
    ):
        call = overread_pb2_grpc.OverreadStub(channel).Read(iter(requests), timeout=60)
        assert isinstance(_ended(call), Draining)
        _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "batches are read no more" in log
    assert "in broken" in log
    assert log.splitlines()[-1].startswith("ReadingEnded: ")
