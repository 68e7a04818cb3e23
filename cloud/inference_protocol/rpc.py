"""The Open Inference Protocol over gRPC: turns errors into status codes, and nothing else."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog

from cloud.callers import INTERNAL, caller_of
from cloud.inference_protocol.inference import Inference
from cloud.settings import CloudSettings
from protos import inference_pb2 as pb
from protos import inference_pb2_grpc
from protos.errors import OverreadError, ServiceFault, to_status

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_log = structlog.get_logger(__name__)


class InferenceService(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Implements the protocol's service for one model."""

    def __init__(self, inference: Inference, settings: CloudSettings) -> None:
        self._inference, self._settings = inference, settings

    async def ServerLive(  # noqa: N802 - named by the protocol, as all below
        self,
        request: pb.ServerLiveRequest,  # noqa: ARG002 - it is empty
        context: Context,  # noqa: ARG002 - not needed
    ) -> pb.ServerLiveResponse:
        """Answer that the service runs."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self,
        request: pb.ServerReadyRequest,  # noqa: ARG002 - it is empty
        context: Context,  # noqa: ARG002 - not needed
    ) -> pb.ServerReadyResponse:
        """Answer whether requests are taken."""
        return pb.ServerReadyResponse(ready=self._inference.ready)

    async def ServerMetadata(  # noqa: N802
        self,
        request: pb.ServerMetadataRequest,  # noqa: ARG002 - it is empty
        context: Context,  # noqa: ARG002 - not needed
    ) -> pb.ServerMetadataResponse:
        """Answer with name, version and extensions."""
        return self._inference.server_metadata()

    async def ModelReady(  # noqa: N802
        self,
        request: pb.ModelReadyRequest,
        context: Context,  # noqa: ARG002 - not needed
    ) -> pb.ModelReadyResponse:
        """Answer whether there is the model, and requests for it are taken."""
        return pb.ModelReadyResponse(ready=self._inference.serves(request.name, request.version))

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        """Answer with the model's inputs and outputs."""
        try:
            return self._inference.metadata(request.name, request.version)
        except OverreadError as error:
            await context.abort(*to_status(error))

    async def ModelConfig(  # noqa: N802
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        """Answer with how the model is served."""
        try:
            config = self._inference.config(request.name, request.version)
        except OverreadError as error:
            await context.abort(*to_status(error))
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """Answer with what was counted since the start."""
        try:
            return self._inference.statistics(request.name, request.version)
        except OverreadError as error:
            await context.abort(*to_status(error))

    async def RepositoryIndex(  # noqa: N802
        self,
        request: pb.RepositoryIndexRequest,
        context: Context,  # noqa: ARG002 - not needed
    ) -> pb.RepositoryIndexResponse:
        """Answer with the one model."""
        return self._inference.index(only_ready=request.ready)

    async def ModelInfer(  # noqa: N802
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        """Answer with the readings of the request's ROIs."""
        try:
            return await self._answer(request, context)
        except OverreadError as error:
            await context.abort(*to_status(error))

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
        caller = caller_of(context, self._settings)
        who = {"site": caller.site, "peer": context.peer()}
        try:
            with self._inference.admitted(caller):
                left_s = context.time_remaining()
                return await self._inference.infer(request, caller, left_s)
        except OverreadError as error:
            _log.info("inference request failed", error=error.kind, reason=error.reason, **who)
            raise
        except Exception:  # a fault of the program: the next request must be answered
            _log.exception("internal error", **who)
            raise ServiceFault(INTERNAL) from None
