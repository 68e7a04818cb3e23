"""The bounds of each gRPC call before its handler: how its messages are received, and its errors.

gRPC receives the message of a unary call before the handler runs, however long that takes. Here
each call has a stream of requests, which on the wire is the same: its site's share is checked
before its message is received, and the message must arrive in time. Studies have their own bounds.
"""

import asyncio
import contextlib
import inspect
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from cloud.callers import INTERNAL, caller_of, connection_of
from cloud.connections import Connections
from cloud.settings import CloudSettings
from process.logs import Sparse
from protos.errors import InvalidRequest, Overloaded, OverreadError, ServiceFault, to_status

RECEIVING = 128
"""Messages of other calls than studies that may be received at once."""

REFLECTION = "/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.ServerReflection/"
"""The method's prefix, and that of the same method in the version that grpcio-reflection has."""

_log = structlog.get_logger(__name__)


class BoundedCalls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # it takes none
    """Puts bounds around all methods; of ``study`` it only decodes the messages."""

    def __init__(
        self, settings: CloudSettings, idle_s: float, study: str, said: Sparse, open_: Connections
    ) -> None:
        self._settings, self._idle_s, self._study = settings, idle_s, study
        self._connections = open_
        self._refusals, self._receiving = said, Counter[str]()

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Return the handler of a call within bounds; None for an unknown method."""
        method = details.method.replace(*REFLECTION)
        known = type(details)(method, details.invocation_metadata)
        if (handler := await continuation(known)) is None:
            return None
        make: Any = grpc.stream_unary_rpc_method_handler
        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler
        is_study = details.method == self._study
        return make(self._handle(handler, is_study), None, handler.response_serializer)

    def _handle(self, handler: Any, is_study: bool) -> Any:
        answer = handler.unary_unary or handler.unary_stream or handler.stream_stream

        async def handle(stream: AsyncIterator[bytes], context: Any) -> Any:
            site = "" if is_study else caller_of(context, self._settings).site
            try:
                await self._connections.admit(context.peer(), connection_of(context))
                request: Any = self._messages(stream, handler.request_deserializer, site)
                if (
                    not handler.request_streaming
                    and (request := await anext(request, None)) is None
                ):
                    raise InvalidRequest("the call ended before its message")
                answers = answer(request, context)
                if inspect.isawaitable(answers):
                    return await answers
                async with contextlib.aclosing(answers):
                    async for one in answers:
                        await context.write(one)
            except OverreadError as error:
                if (more := self._refusals.more("call rejected", error.kind)) is not None:
                    said = {"error": error.kind, "reason": error.reason, "site": site}
                    _log.info("call rejected", **said, peer=context.peer(), **more)
                await context.abort(*to_status(error))
            except grpc.aio.BaseError:
                raise
            except Exception:  # a fault of the program: the caller learns no more than that
                _log.exception("internal error", peer=context.peer(), site=site)
                await context.abort(*to_status(ServiceFault(INTERNAL)))

        return handle

    async def _messages(
        self, stream: AsyncIterator[bytes], decode: Any, site: str
    ) -> AsyncIterator[Any]:
        """Yield the messages of a call; those of a ``site`` within its share and in time."""
        with contextlib.suppress(StopAsyncIteration):
            while True:
                encoded = await (self._received(stream, site) if site else anext(stream))
                try:
                    message = decode(encoded)
                except DecodeError:
                    what = f"a message of {len(encoded)} bytes is not of the method's type"
                    raise InvalidRequest(what) from None
                yield message

    async def _received(self, stream: AsyncIterator[bytes], site: str) -> bytes:
        # a site may take as much as is then left: alone a half, beside another one a third
        if (own := self._receiving[site]) >= RECEIVING - self._receiving.total():
            raise Overloaded(f"{own} messages of site {site} are being received")
        self._receiving[site] += 1
        try:
            async with asyncio.timeout(self._idle_s):
                return await anext(stream)
        except TimeoutError:
            raise InvalidRequest(f"no whole message arrived within {self._idle_s} s") from None
        finally:
            self._receiving -= Counter((site,))
