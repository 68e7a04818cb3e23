"""Times of a request that several batches read."""

import pytest

from cloud.inference_protocol.inference import Statistics
from cloud.scheduling.scheduler import RoiResult
from tests.plain_readings import plain

READING = plain([0.5], [5.0])[0]


def read(batch: int, began_s: float, compute_s: float) -> RoiResult:
    """One of two ROIs of a batch, of a request that arrived at 10 s."""
    return RoiResult(READING, began_s - 10.0, compute_s, batch, began_s, 2)


@pytest.mark.parametrize(
    ("results", "queue_s", "compute_s"),
    [
        ([read(1, 10.5, 0.25)], 0.5, 0.25),
        ([read(1, 10.5, 0.25), read(1, 10.5, 0.25)], 0.5, 0.25),
        ([read(2, 11.0, 0.5), read(1, 10.5, 0.25)], 0.75, 0.75),
        ([read(1, 10.5, 1.0), read(2, 11.0, 0.25), read(3, 11.25, 0.75)], 0.5, 1.5),
    ],
)
def test_queue_and_compute_time_of_a_request_do_not_overlap(
    results: list[RoiResult], queue_s: float, compute_s: float
) -> None:
    statistics = Statistics()
    statistics.succeeded(results, input_s=0.0, output_s=0.0, total_s=3.0)
    said = statistics.message("m", "1")
    assert said.inference_stats.queue.ns == round(1e9 * queue_s)
    assert said.inference_stats.compute_infer.ns == round(1e9 * compute_s)
    assert said.execution_count == len({one.batch for one in results})
    assert said.inference_count == len(results)
