from dataclasses import replace

from edge.budget import LedgerEntry
from edge.findings import SecondReading
from edge.link.estimate import LinkEstimate
from edge.report.model import Rejection, Status
from edge.telemetry import Telemetry
from tests.edge.builders import plan_of
from tests.edge.report.reports import REPORT

LATE = replace(
    REPORT,
    decisions=plan_of(0.95, 0.5, 0.05, 0.04).decisions,
    ledger=(LedgerEntry("read", 10.0, 12.0),),
    second_reading=SecondReading.PARTIAL,
)


def test_a_report_is_counted_by_its_outcome() -> None:
    telemetry = Telemetry()
    telemetry.count_report(LATE)
    value = telemetry.registry.get_sample_value
    assert value("overread_edge_studies_total", {"status": "final"}) == 1
    assert value("overread_edge_second_readings_total", {"second_reading": "partial"}) == 1
    assert value("overread_edge_stage_seconds_sum", {"stage": "read"}) == 12.0
    assert value("overread_edge_late_reports_total") == 1


def test_a_rejected_study_has_no_second_reading() -> None:
    telemetry = Telemetry()
    rejection = Rejection("NotCt", "MR")
    telemetry.count_report(replace(LATE, status=Status.REJECTED, rejection=rejection))
    value = telemetry.registry.get_sample_value
    assert value("overread_edge_studies_total", {"status": "rejected"}) == 1
    assert value("overread_edge_second_readings_total", {"second_reading": "partial"}) is None


def test_the_backlog_and_the_link_are_reported_as_they_are_now() -> None:
    telemetry, available = Telemetry(), [True]
    telemetry.observe_link(lambda: LinkEstimate(available=available[0]))
    value = telemetry.registry.get_sample_value
    gauges = ("claimed_studies", "suspended_studies", "pending_studies", "pending_oldest_seconds")
    for backlog in ((3, 1, 20, 86_400.0), (0, 0, 0, 0.0)):
        telemetry.set_backlog(*backlog)
        assert tuple(value(f"overread_edge_{name}") for name in gauges) == backlog
    assert value("overread_edge_cloud_available") == 1
    available[0] = False
    assert value("overread_edge_cloud_available") == 0
