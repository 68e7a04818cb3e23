"""tritonclient in a process of its own, and a reader whose every answer differs."""

import contextlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imaging.volume import UInt8Array
from models.runtime.second_reader import Readings
from tests.cloud.running import SHAPE, MeanReader, RunningCloud, run_cloud

SCRIPT = Path(__file__).with_name("triton_process.py")

KINDS = ("grpc", "http")
BOTH = {"inference_address": "127.0.0.1:0", "http_address": "127.0.0.1:0"}


class DetailedReader(MeanReader):
    """A mean reader that answers malignancy, texture and outline too."""

    def read(self, batch: UInt8Array) -> Readings:
        mean = batch.reshape(len(batch), -1).mean(axis=1)
        said = super().read(batch)
        return replace(
            said, malignancy=mean / 510, texture=mean.astype(np.int64) % 3, mask=batch > 100
        )


@dataclass
class Caller:
    process: subprocess.Popen[str]

    def send(self, name: str, /, **arguments: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        """The result of the call that was begun; `Refused` if it failed."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "tritonclient ended"
        said = json.loads(line)
        if "error" in said:
            raise Refused(said["error"], said["status"])
        return said["result"]

    def __call__(self, name: str, /, **arguments: Any) -> Any:
        self.send(name, **arguments)
        return self.receive()

    def refused(self, **arguments: Any) -> tuple[str, str]:
        """Status and words of the error with which an inference fails."""
        with pytest.raises(Refused) as caught:
            self("infer", **arguments)
        return caught.value.status, str(caught.value)


class Refused(Exception):
    """A call failed, with the status of gRPC or HTTP."""

    def __init__(self, words: str, status: str) -> None:
        super().__init__(words)
        self.status = status.removeprefix("StatusCode.")


@contextlib.contextmanager
def tritonclient(kind: str, address: str, *files: Path) -> Iterator[Caller]:
    """A tritonclient for gRPC or HTTP; ``files``: authority, key and certificate for TLS."""
    if importlib.util.find_spec("tritonclient") is None:  # it must not be imported here
        pytest.skip("needs tritonclient, of the extra dev")
    command = [sys.executable, str(SCRIPT), kind, address, *map(str, files)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            caller = Caller(process)
            assert caller.receive() == "ready"
            yield caller
        finally:
            process.kill()


def address_of(cloud: RunningCloud, kind: str) -> str:
    """Where the cloud serves the protocol."""
    return cloud.server.inference_address if kind == "grpc" else cloud.server.http_address


@contextlib.contextmanager
def called(
    kind: str, reader: MeanReader | None = None, **settings: Any
) -> Iterator[tuple[RunningCloud, Caller]]:
    """A cloud, and a tritonclient that calls it."""
    with (
        run_cloud(reader or DetailedReader(), **BOTH, **settings) as cloud,
        tritonclient(kind, address_of(cloud, kind)) as caller,
    ):
        yield cloud, caller


def rois(*values: int) -> list[Any]:
    """An ROI of each value, as nested lists."""
    return [np.full(SHAPE, value, np.uint8).tolist() for value in values]
