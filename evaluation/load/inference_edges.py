"""Simulated edges that speak the Open Inference Protocol: one ROI a request, to any server of it.

A study of n ROIs is n requests at once. The parameter ``timeout`` has the study's budget,
``priority`` is 1 for a stat study, and the call itself ends at the deadline.
"""

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from evaluation.load.generator import LATE, Arrival, Edges, Outcome, Outcomes
from protos import inference_pb2 as pb
from protos.errors import from_status, status_of
from protos.inference_pb2_grpc import GRPCInferenceServiceStub
from protos.messages import Priority
from protos.metadata import SITE_KEY

if TYPE_CHECKING:
    from protos.inference_pb2_grpc import GRPCInferenceServiceAsyncStub

STAT_LEVEL, ROUTINE_LEVEL = 1, 2


class InferenceEdges(Edges):
    """Simulated edges that ask ``model`` for a probability alone.

    A server that counts only the time in its queue against ``timeout`` gets ``margin_s`` less of
    it, the time of its largest batch.
    """

    def __init__(
        self,
        address: str,
        roi_shape: tuple[int, int, int],
        count: int,
        model: str,
        margin_s: float = 0.0,
    ) -> None:
        super().__init__(address, roi_shape, count)
        self._roi_shape, self._model, self._margin_s = roi_shape, model, margin_s
        self._calls: list[GRPCInferenceServiceAsyncStub] = []
        self._made: dict[tuple[int, float, Priority], pb.ModelInferRequest] = {}

    def _add(self, channel: grpc.aio.Channel) -> None:
        self._calls.append(GRPCInferenceServiceStub(channel))

    async def _study(self, arrival: Arrival, outcomes: Outcomes) -> None:
        async with asyncio.TaskGroup() as requests:
            for number in range(arrival.rois):
                requests.create_task(self._read(number, arrival, outcomes))

    async def _read(self, number: int, arrival: Arrival, outcomes: Outcomes) -> None:
        error = ""
        try:
            await self._calls[arrival.edge % len(self._calls)].ModelInfer(
                self._request(number, arrival.budget_s, arrival.priority),
                timeout=arrival.budget_s,
                metadata=((SITE_KEY, f"edge-{arrival.edge}"),),
            )
        except grpc.aio.AioRpcError as failed:
            error = reason_of(failed)
        at_s = time.monotonic() - outcomes.began_s
        took_s = at_s - arrival.at_s
        if not error and took_s > arrival.budget_s:
            error = LATE
        stat = arrival.priority is Priority.STAT
        outcomes.rois.append(Outcome(arrival.edge, stat, took_s, at_s, error))

    def _request(self, number: int, budget_s: float, priority: Priority) -> pb.ModelInferRequest:
        """Return a request with noise, made once, so that making it takes no time here."""
        key = (number, budget_s, priority)
        if key not in self._made:
            voxels = np.random.default_rng(number).integers(0, 256, self._roi_shape, np.uint8)
            request = pb.ModelInferRequest(model_name=self._model)
            request.inputs.add(name="ROI", datatype="UINT8", shape=(1, *self._roi_shape))
            request.outputs.add(name="PROBABILITY")
            request.raw_input_contents.append(voxels.tobytes())
            level = STAT_LEVEL if priority is Priority.STAT else ROUTINE_LEVEL
            request.parameters["priority"].int64_param = level
            timeout_us = round(1e6 * max(budget_s - self._margin_s, 1e-6))
            request.parameters["timeout"].int64_param = timeout_us
            self._made[key] = request
        return self._made[key]


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Return `LATE`, the class of an error of Overread, or a status with its details.

    What stands in brackets, as the number of a request, is left out, so that equal reasons count
    together.
    """
    metadata: Any = error.trailing_metadata()  # pairs, though its type does not say so
    if status_of(metadata) is not None:
        return from_status(error.code(), error.details(), metadata).kind
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return LATE
    details = re.sub(r"\[.*?\]|\(.*?\)", "", error.details() or "")
    return f"{error.code().name}: {' '.join(details.split())[:60]}"
