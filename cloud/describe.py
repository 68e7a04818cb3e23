"""Asks a running service what it serves: for an operator, and for scripts that wait for it."""

from __future__ import annotations

from typing import cast

import grpc

from protos import codec, overread_pb2_grpc
from protos import overread_pb2 as pb
from protos.errors import from_status
from protos.messages import Description


def describe(
    address: str, *, credentials: grpc.ChannelCredentials | None = None, timeout_s: float = 5.0
) -> Description:
    """What the service at ``address`` says of itself within ``timeout_s`` seconds.

    Raises:
        OverreadError: it cannot be reached, or does not answer as this contract says.
    """
    with _channel(address, credentials) as channel:
        stub = overread_pb2_grpc.OverreadStub(channel)
        try:
            return codec.decode_description(stub.Describe(pb.DescribeRequest(), timeout=timeout_s))
        except grpc.RpcError as error:
            status = cast(grpc.Call, error)  # a blocking call's error is its own status
            raise from_status(status.code(), status.details(), status.trailing_metadata()) from None


def _channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(address)
    return grpc.secure_channel(address, credentials)
