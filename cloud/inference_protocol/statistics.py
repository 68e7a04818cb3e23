"""The statistics of the requests of the Open Inference Protocol, as Triton's extension has them."""

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from cloud.scheduling.scheduler import RoiResult
from protos import inference_pb2 as pb

REMEMBERED_BATCHES = 4096
"""Batches that may still be counted for the first time by a request that shares them."""


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
        for one in batches.values():
            self._count_batch(one)
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

    def _count_batch(self, one: RoiResult) -> None:
        if one.batch in self._seen:
            return
        self._seen[one.batch] = None
        if len(self._seen) > REMEMBERED_BATCHES:
            self._seen.popitem(last=False)
        _add(self._batches.setdefault(one.batch_rois, pb.StatisticDuration()), one.compute_s)


def _shares(batches: Iterable[RoiResult]) -> tuple[float, float]:
    """Return the seconds in which none of a request's batches was read, and those in which one was.

    Both together last from its arrival to the end of the last batch.
    """
    in_order = sorted(batches, key=lambda one: one.began_s)
    arrived_s = in_order[0].began_s - in_order[0].queue_s
    compute_s, end_s = 0.0, arrived_s
    for one in in_order:  # batches of several workers overlap
        batch_end_s = max(end_s, one.began_s + one.compute_s)
        compute_s += batch_end_s - max(end_s, one.began_s)
        end_s = batch_end_s
    return end_s - arrived_s - compute_s, compute_s


def _add(duration: pb.StatisticDuration, seconds: float) -> None:
    duration.count += 1
    duration.ns += max(0, round(1e9 * seconds))
