"""The Open Inference Protocol over gRPC; `cloud.calls` turns errors into status codes."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from cloud.callers import caller_of
from cloud.inference_protocol.inference import Inference
from protos import inference_pb2 as pb
from protos import inference_pb2_grpc
from protos.errors import OverreadError

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


def _answers(answer: Callable[[Inference, Any], Any]) -> Any:
    """Return the handler of a call that is answered at once."""

    async def handle(service: "InferenceService", request: Any, _: Context) -> Any:
        return answer(service.inference, request)

    return handle


class InferenceService(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Implements the protocol's service for one model."""

    def __init__(self, inference: Inference) -> None:
        self.inference = inference

    ServerLive = _answers(lambda *_: pb.ServerLiveResponse(live=True))
    ServerReady = _answers(lambda one, _: pb.ServerReadyResponse(ready=one.ready))
    ServerMetadata = _answers(lambda one, _: one.server_metadata())
    ModelReady = _answers(
        lambda one, of: pb.ModelReadyResponse(ready=one.serves(of.name, of.version))
    )
    ModelMetadata = _answers(lambda one, of: one.metadata(of.name, of.version))
    ModelConfig = _answers(
        lambda one, of: pb.ModelConfigResponse(config=one.config(of.name, of.version))
    )
    ModelStatistics = _answers(lambda one, of: one.statistics(of.name, of.version))
    RepositoryIndex = _answers(lambda one, of: one.index(only_ready=of.ready))

    async def ModelInfer(  # noqa: N802 - named by the protocol, as below
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        """Answer with the readings of the request's ROIs."""
        return await self._answer(request, context)

    async def ModelStreamInfer(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer requests one after the other; an error is that of one request alone."""
        async for request in request_iterator:
            try:
                response = await self._answer(request, context)
            except OverreadError as error:
                # Triton names the failed request in an otherwise empty response
                failed = pb.ModelInferResponse(id=request.id)
                yield pb.ModelStreamInferResponse(error_message=error.reason, infer_response=failed)
            else:
                yield pb.ModelStreamInferResponse(infer_response=response)

    async def _answer(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        caller = caller_of(context, self.inference.settings)
        with self.inference.admitted(caller, context.peer()):
            return await self.inference.infer(request, caller, context.time_remaining())
