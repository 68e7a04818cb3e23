"""The client of `Describe`, for operators and for scripts that wait for a service."""

from typing import cast

import grpc

from protos import codec, overread_pb2_grpc
from protos import overread_pb2 as pb
from protos.errors import from_status
from protos.messages import Description


def fetch_description(
    address: str, *, credentials: grpc.ChannelCredentials | None = None, timeout_s: float = 5.0
) -> Description:
    """Return what the service at ``address`` offers; wait at most ``timeout_s`` seconds.

    Raises:
        OverreadError: the service is unreachable, or its answer does not follow the contract.
    """
    with (
        grpc.insecure_channel(address)
        if credentials is None
        else grpc.secure_channel(address, credentials)
    ) as channel:
        stub = overread_pb2_grpc.OverreadStub(channel)
        try:
            return codec.decode_description(stub.Describe(pb.DescribeRequest(), timeout=timeout_s))
        except grpc.RpcError as error:
            status = cast(grpc.Call, error)  # the error of a blocking call is its own status
            raise from_status(status.code(), status.details(), status.trailing_metadata()) from None
