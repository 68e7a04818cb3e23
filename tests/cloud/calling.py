"""The service as a blocking caller meets it, and what a test sees of its inside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import grpc
import pytest

from protos import codec
from protos import overread_pb2 as pb
from protos.errors import OverreadError, from_status
from protos.messages import Refusal, Roi, Summary, Verdict
from tests.cloud.running import RunningCloud

StartCloud = Callable[..., AbstractContextManager[RunningCloud]]
MakeRoi = Callable[..., Roi]
MakeStream = Callable[..., list[pb.ReadRequest]]
Until = Callable[[Callable[[], bool]], None]


def read(cloud: RunningCloud, requests: list[pb.ReadRequest]) -> list[Verdict | Refusal | Summary]:
    """All that a study's stream gives; raises what the edge would raise."""
    with cloud.stub() as stub, typed():
        return [codec.decode_response(r) for r in stub.Read(iter(requests), timeout=20)]


@contextlib.contextmanager
def typed() -> Iterator[None]:
    """Raises a status as its error, as the edge does."""
    try:
        yield
    except grpc.RpcError as caught:
        error: Any = caught  # a call's error is its own status
        raise from_status(error.code(), error.details(), error.trailing_metadata()) from None


def taken(cloud: RunningCloud) -> int:
    """How many ROIs the model was given so far."""
    return sum(map(len, cloud.reader.batches))


def in_queue(cloud: RunningCloud) -> int:
    """How many ROIs wait for the model."""
    return int(cloud.count("overread_cloud_queued_rois"))


def refused(cloud: RunningCloud, requests: list[pb.ReadRequest]) -> OverreadError:
    """The error that ends a study's stream."""
    with pytest.raises(OverreadError) as caught:
        read(cloud, requests)
    return caught.value
