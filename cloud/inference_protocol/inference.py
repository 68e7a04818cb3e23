"""Answers requests of the Open Inference Protocol, whichever way they came.

Their ROIs wait in the same queue as those of studies, under the same rules: site, priority,
deadline, shares and refusal on arrival.
"""

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import structlog

from cloud.callers import INTERNAL, Caller, deadline_of
from cloud.inference_protocol.tensors import (
    decode_rois,
    encode_readings,
    input_of,
    outputs_of,
    requested,
)
from cloud.limits import REQUESTS
from cloud.scheduling.batcher import MAX_BATCH_DELAY_S
from cloud.scheduling.waiting import RoiResult
from cloud.stream import CLOSE_AFTER_S, Backend
from cloud.telemetry import CANCELLED
from imaging.volume import UInt8Array
from protos import inference_pb2 as pb
from protos.deadline import Deadline
from protos.errors import (
    DeadlinePassed,
    DeadlineUnmeetable,
    Draining,
    InvalidRequest,
    ModelFailed,
    NothingOffered,
    OverreadError,
    ServiceFault,
)
from protos.messages import Priority

SERVER_NAME = "overread-cloud"
EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "parameters",
    "schedule_policy",
    "statistics",
)
PLATFORM = "overread_second_reader"
STAT_LEVEL, ROUTINE_LEVEL = 1, 2
"""Levels of the parameter ``priority``: 1 is the highest, as in Triton."""
REMEMBERED_BATCHES = 4096
"""Batches that may still be counted for the first time by a request that shares them."""

_log = structlog.get_logger(__name__)


class Inference:
    """The model of a service as the protocol shows it; each request counts as an open stream."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._open, self.settings = backend, backend.streams, backend.settings
        self.bounds, self.refusals = backend.bounds, backend.refusals
        self._clock = backend.batcher.clock
        ((self._name, self._own_version),) = backend.limits.models.items()
        self._version = protocol_version(self._own_version)
        self._roi_shape = backend.limits.roi_shape
        self._statistics = Statistics()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return not self._open.is_draining

    def check_model(self, name: str, version: str) -> None:
        """Raise `NothingOffered` unless this is the model; an empty version is any.

        The version may be the number of `protocol_version`, or as overread.v1 names it.
        """
        if not self._has(name, version):
            raise NothingOffered(
                f"model {name!r:.100} version {version!r:.100} is not served; served is"
                f" {self._name!r} version {self._version!r}"
            )

    def serves(self, name: str, version: str) -> bool:
        """Tell whether requests for this model are taken."""
        return self.ready and self._has(name, version)

    def server_metadata(self) -> pb.ServerMetadataResponse:
        """Return what the service is."""
        version = self._backend.limits.service_version
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=version, extensions=EXTENSIONS)

    def metadata(self, name: str, version: str) -> pb.ModelMetadataResponse:
        """Return what the model reads and answers; raise `NothingOffered` as `check_model`."""
        self.check_model(name, version)
        return pb.ModelMetadataResponse(
            name=self._name,
            versions=[self._version],
            platform=PLATFORM,
            inputs=[input_of(self._roi_shape).metadata()],
            outputs=[tensor.metadata() for tensor in outputs_of(self._roi_shape)],
        )

    def config(self, name: str, version: str) -> pb.ModelConfig:
        """Return how the model is served; raise `NothingOffered` as `check_model`."""
        self.check_model(name, version)
        given = input_of(self._roi_shape)
        return pb.ModelConfig(
            name=self._name,
            platform=PLATFORM,
            backend=self._backend.limits.engine,
            max_batch_size=self.settings.max_batch,
            input=[pb.ModelInput(name=given.name, data_type=given.data_type, dims=given.dims)],
            output=[
                pb.ModelOutput(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
                for tensor in outputs_of(self._roi_shape)
            ],
            dynamic_batching=pb.ModelDynamicBatching(
                max_queue_delay_microseconds=round(1e6 * MAX_BATCH_DELAY_S),
                priority_levels=ROUTINE_LEVEL,
                default_priority_level=ROUTINE_LEVEL,
            ),
            parameters={"version": pb.ModelParameter(string_value=self._own_version)},
            model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
        )

    def statistics(self, name: str, version: str) -> pb.ModelStatisticsResponse:
        """Return the statistics of the model, or for an empty name; raise as `check_model`."""
        self.check_model(name or self._name, version)
        counted = self._statistics.message(self._name, self._version)
        return pb.ModelStatisticsResponse(model_stats=[counted])

    def index(self, *, only_ready: bool) -> pb.RepositoryIndexResponse:
        """Return the models that there are."""
        model = pb.RepositoryIndexResponse.ModelIndex(
            name=self._name,
            version=self._version,
            state="READY" if self.ready else "UNAVAILABLE",
            reason="" if self.ready else "the service is being stopped",
        )
        return pb.RepositoryIndexResponse(models=[model] if self.ready or not only_ready else [])

    @contextlib.contextmanager
    def admitted(self, caller: Caller, peer: str) -> Iterator[None]:
        """Count a request of ``caller`` as open while entered.

        Raises:
            Draining: the service is being stopped.
            Overloaded: a quota is used up.
            ServiceFault: a fault of the program: the next request must be answered.
        """
        with contextlib.ExitStack() as stack:
            try:
                try:
                    stack.enter_context(self._open.opened(caller.site, REQUESTS))
                except OverreadError:
                    self._statistics.failed(0.0)
                    raise
                yield
            except OverreadError:
                raise
            except Exception:  # a fault of the program: the caller learns no more than that
                _log.exception("internal error", site=caller.site, peer=peer)
                raise ServiceFault(INTERNAL) from None

    async def infer(
        self, request: pb.ModelInferRequest, caller: Caller, left_s: float | None = None
    ) -> pb.ModelInferResponse:
        """Return the readings of a request's ROIs: all of them, or none.

        ``left_s`` are the seconds that the call itself has left, None without limit. Cancelling
        withdraws the ROIs.

        Raises:
            NothingOffered, InvalidRequest, TooLarge: the request is wrong.
            Overloaded, DeadlineUnmeetable: not all ROIs can be answered in time.
            DeadlinePassed, Draining, ModelFailed: it was not answered.
        """
        began_s, rois, priority = self._clock(), 0, Priority.ROUTINE
        self.check_model(request.model_name, request.model_version)
        telemetry = self._backend.telemetry
        try:
            priority = self._priority(request, caller)
            timeout_us = _number(request, "timeout")
            budget_s = 1e-6 * timeout_us if timeout_us else math.inf
            deadline = deadline_of(budget_s, left_s, self.bounds, self._clock)
            outputs = requested(request, self._roi_shape)
            voxels = decode_rois(request, self._roi_shape, self.settings.max_batch)
            rois, input_s = len(voxels), self._clock() - began_s
            self._open.check_priority(caller.site, priority)
            results = await self._read(voxels, deadline, priority, caller.site)
        except BaseException as error:
            self._statistics.failed(self._clock() - began_s)
            cancelled = isinstance(error, asyncio.CancelledError)
            outcome = CANCELLED if cancelled else type(error).__name__
            outcome = error.outcome if isinstance(error, OverreadError) else outcome
            telemetry.rois.labels(outcome, priority.value).inc(rois)
            raise
        read_s = self._clock()
        encoded, contents = encode_readings([one.reading for one in results], outputs)
        response = pb.ModelInferResponse(
            model_name=self._name,
            model_version=self._version,
            id=request.id,
            outputs=encoded,
            raw_output_contents=contents,
        )
        telemetry.rois.labels("verdict", priority.value).inc(rois)
        for one in results:
            telemetry.queue_s.observe(one.queue_s)
        end_s = self._clock()
        self._statistics.succeeded(
            results, input_s=input_s, output_s=end_s - read_s, total_s=end_s - began_s
        )
        return response

    def _has(self, name: str, version: str) -> bool:
        return name == self._name and version in ("", self._version, self._own_version)

    def _priority(self, request: pb.ModelInferRequest, caller: Caller) -> Priority:
        if _number(request, "priority") != STAT_LEVEL:
            return Priority.ROUTINE
        if caller.may_stat:
            return Priority.STAT
        self._backend.telemetry.demoted.inc()
        return Priority.ROUTINE

    async def _read(
        self, voxels: UInt8Array, deadline: Deadline, priority: Priority, site: str
    ) -> list[RoiResult]:
        """Have ROIs ``(n, z, y, x)`` read; whatever happens, none of them waits afterwards.

        Except a probe: it is read even if the request is refused for the sake of the others, since
        otherwise a high estimate after a stall would refuse every request of several ROIs.
        """
        batcher, count = self._backend.batcher, len(voxels)
        kept = batcher.reserve(deadline, priority, site, count)
        waiting: list[asyncio.Future[RoiResult]] = []
        try:
            if (fits := len(kept)) < count:
                if kept[0].is_probe:
                    probe = batcher.submit(lambda: voxels[0], deadline, priority, site, kept)
                    probe.add_done_callback(_take_exception)
                raise DeadlineUnmeetable(f"only {fits} of {count} ROIs can be answered in time")
            for i in range(count):
                roi = partial(voxels.__getitem__, i)
                waiting.append(batcher.submit(roi, deadline, priority, site, kept))
            answers = asyncio.gather(*waiting)
            answers.add_done_callback(_take_exception)
            wait_s = deadline.remaining_s + CLOSE_AFTER_S
            ends = (answers, self._open.stopped)
            await asyncio.wait(ends, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if any(one.cancelled() for one in waiting):
                raise ModelFailed("the batch ended without an answer")
            if answers.done():
                return answers.result()
            if self._open.stopped.done():
                raise Draining("the service stopped before this request was answered")
            raise DeadlinePassed(f"no answer {CLOSE_AFTER_S} s after the deadline")
        finally:
            batcher.queue.release(kept)
            for one in waiting:
                one.cancel()


def _take_exception(one: asyncio.Future[Any]) -> None:
    """Take the error of a future that nobody awaits: asyncio would log it."""
    if not one.cancelled():
        one.exception()


def protocol_version(version: str) -> str:
    """Return a model's version as a decimal number, if it is hexadecimal, else as it is.

    In Triton a version is a number, and its clients calculate with it.
    """
    try:
        number = int(version, 16)
    except ValueError:
        return version
    return str(number) if 0 <= number < 2**63 else version


def _number(request: pb.ModelInferRequest, name: str) -> int:
    """Return an integer parameter, 0 if it is not given."""
    if name not in request.parameters:  # reading it would add it
        return 0
    value = request.parameters[name]
    kind = value.WhichOneof("parameter_choice")
    number = getattr(value, kind) if kind in ("int64_param", "uint64_param") else -1
    if number < 0:
        raise InvalidRequest(f"parameter {name} is no integer of 0 or more")
    return int(number)


class Statistics:
    """Counts what happened to requests since the start.

    An inference is an ROI that was answered. An execution is a batch that answered at least one;
    a batch may hold ROIs of several requests, and of studies, and is counted once. A request's
    compute time is that in which at least one of its ROIs was read. Its queue time is the rest of
    the time until the last of them was: several batches may read one request.
    """

    def __init__(self) -> None:
        self._counted = pb.InferStatistics()
        self._batches: dict[int, pb.StatisticDuration] = {}  # by their size
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._inferences = self._last_ms = 0

    def succeeded(
        self, results: Sequence[RoiResult], *, input_s: float, output_s: float, total_s: float
    ) -> None:
        """Count a request: the times to decode it, to encode its answer, and from first to last."""
        self._inferences += len(results)
        self._last_ms = time.time_ns() // 1_000_000
        batches = {one.batch: one for one in results}
        for number, batch in batches.items():
            if number not in self._seen:
                self._seen[number] = None
                timed = self._batches.setdefault(batch.batch_rois, pb.StatisticDuration())
                _add(timed, batch.compute_s)
        while len(self._seen) > REMEMBERED_BATCHES:
            self._seen.popitem(last=False)
        counted = self._counted
        _add(counted.success, total_s)
        queue_s, compute_s = _shares(batches.values())
        _add(counted.queue, queue_s)
        _add(counted.compute_input, input_s)
        _add(counted.compute_infer, compute_s)
        _add(counted.compute_output, output_s)

    def failed(self, total_s: float) -> None:
        """Count a request that was refused, failed, or whose caller went away."""
        _add(self._counted.fail, total_s)

    def message(self, name: str, version: str) -> pb.ModelStatistics:
        """Return all of it, as that of the model."""
        return pb.ModelStatistics(
            name=name,
            version=version,
            last_inference=self._last_ms,
            inference_count=self._inferences,
            execution_count=sum(one.count for one in self._batches.values()),
            inference_stats=self._counted,
            batch_stats=[
                pb.InferBatchStatistics(batch_size=size, compute_infer=self._batches[size])
                for size in sorted(self._batches)
            ],
        )


def _shares(batches: Iterable[RoiResult]) -> tuple[float, float]:
    """Return the seconds in which none of a request's batches was read, and those in which one was.

    Both together last from its arrival to the end of the last batch.
    """
    in_order = sorted(batches, key=lambda one: one.began_s)
    arrived_s = in_order[0].began_s - in_order[0].queue_s
    compute_s, end_s = 0.0, arrived_s
    for batch in in_order:  # batches of several workers overlap
        batch_end_s = max(end_s, batch.began_s + batch.compute_s)
        compute_s += batch_end_s - max(end_s, batch.began_s)
        end_s = batch_end_s
    return end_s - arrived_s - compute_s, compute_s


def _add(duration: pb.StatisticDuration, seconds: float) -> None:
    duration.count += 1
    duration.ns += max(0, round(1e9 * seconds))
