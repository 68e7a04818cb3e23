from dataclasses import replace
from mmap import PAGESIZE, mmap

from edge.budget import LedgerEntry
from edge.findings import SecondReading
from edge.link.estimate import LinkEstimate
from edge.report.model import Rejection, Status
from edge.telemetry import EdgeTelemetry
from tests.edge.builders import SHAPE, plan_of
from tests.edge.fake_cloud import FakeCloud, escalator, read
from tests.edge.report.reports import REPORT

LATE = replace(
    REPORT,
    decisions=plan_of(0.95, 0.5, 0.05, 0.04).decisions,
    ledger=(LedgerEntry("read", 10.0, 12.0),),
    second_reading=SecondReading.PARTIAL,
)


def test_a_report_is_counted_by_its_outcome() -> None:
    """A rejected study has no second reading."""
    telemetry, rejection = EdgeTelemetry(), Rejection("NotCt", "MR")
    telemetry.count_report(LATE)
    telemetry.count_report(replace(LATE, status=Status.REJECTED, rejection=rejection))
    value = telemetry.registry.get_sample_value
    assert value("overread_edge_studies_total", {"status": "final"}) == 1
    assert value("overread_edge_studies_total", {"status": "rejected"}) == 1
    assert value("overread_edge_second_readings_total", {"second_reading": "partial"}) == 1
    assert value("overread_edge_stage_seconds_sum", {"stage": "read"}) == 2 * 12.0
    assert value("overread_edge_late_reports_total") == 2


def test_a_stage_has_the_memory_that_it_took() -> None:
    """Not that of the stage before, though it took more; and the child that read has its own."""
    telemetry = EdgeTelemetry()
    telemetry.observe_reading(lambda: 100.0)
    telemetry.begin_stage("read")
    with mmap(-1, 100_000_000) as taken:  # from the system: malloc may hold free memory
        for page in range(0, len(taken), PAGESIZE):
            taken[page] = 1
    telemetry.begin_stage("screen")
    telemetry.count_report(LATE)
    value = telemetry.registry.get_sample_value

    def peak(stage: str) -> float:
        return value("overread_edge_memory_peak_bytes", {"stage": stage}) or 0.0

    assert peak("read") > peak("screen") + 90e6
    assert peak("screen") > 10e6
    assert peak("read child") == 100 * 2**20


def test_the_traffic_of_all_clouds_is_counted() -> None:
    """Bytes are those of the messages, which hold more than voxels."""
    telemetry = EdgeTelemetry()
    value = telemetry.registry.get_sample_value
    with FakeCloud() as cloud, escalator(cloud.address) as second:
        telemetry.traffic.traffic = second.traffic
        read(second, 0.5, 0.4)
    sent, received = (
        value("overread_edge_cloud_bytes_total", {"direction": one}) or 0
        for one in ("sent", "received")
    )
    voxels = 2 * SHAPE[0] * SHAPE[1] * SHAPE[2]
    assert voxels < sent < voxels + 500
    assert 0 < received < 1000
    assert 0 < (value("overread_edge_cloud_coding_seconds_total") or 0) < 10


def test_the_backlog_and_the_link_are_reported_as_they_are_now() -> None:
    telemetry, available = EdgeTelemetry(), [True]
    telemetry.observe_link(lambda: LinkEstimate(available=available[0]))
    value = telemetry.registry.get_sample_value
    gauges = ("claimed_studies", "suspended_studies", "pending_studies", "pending_oldest_seconds")
    for backlog in ((3, 1, 20, 86_400.0), (0, 0, 0, 0.0)):
        telemetry.set_backlog(*backlog)
        assert tuple(value(f"overread_edge_{name}") for name in gauges) == backlog
    assert value("overread_edge_cloud_available") == 1
    available[0] = False
    assert value("overread_edge_cloud_available") == 0
