"""What an operator sees."""

from importlib.metadata import version
from itertools import pairwise

from prometheus_client import generate_latest

from cloud.telemetry import CloudTelemetry
from protos.messages import Priority
from tests.cloud.running import make_roi, make_stream, refused, run_cloud, until


def test_refusals_begin_at_0() -> None:
    """To Prometheus an increase from nothing is none; a full service refuses before the header."""
    registry = CloudTelemetry().registry
    for priority in ("unknown", "routine", "stat"):
        labels = {"end": "Overloaded", "priority": priority}
        assert registry.get_sample_value("overread_cloud_streams_total", labels) == 0


def test_a_histogram_tells_5_from_200_ms() -> None:
    """Within that range no bound is more than twice the one before it."""
    telemetry = CloudTelemetry()
    for histogram in (telemetry.queue_s, telemetry.compute_s):
        bounds = [one for one in histogram._upper_bounds if 0.005 <= one <= 0.2]
        assert (bounds[0], bounds[-1]) == (0.005, 0.2)
        assert all(after <= 2 * before for before, after in pairwise(bounds))


def test_a_study_is_counted_once_by_end_and_priority_whoever_sends_it() -> None:
    """Site and study key are in no label: a caller chooses them freely."""
    with run_cloud(trusted_proxies=("*",)) as cloud, cloud.stub() as stub:
        for number, priority in enumerate((Priority.STAT, Priority.ROUTINE, Priority.ROUTINE)):
            study = make_stream(make_roi(1), study_key=f"key-{number}", priority=priority)
            site = (("overread-site", f"site-{number}"),)
            list(stub.Read(iter(study), timeout=20, metadata=site))
        refused(cloud, make_stream(roi_count=9999))
        until(lambda: cloud.count("streams_total", end="TooLarge", priority="unknown") == 1)
        for priority, number in (("stat", 1), ("routine", 2)):
            labels = {"end": "complete", "priority": priority}
            assert cloud.count("streams_total", **labels) == number
            assert cloud.count("study_seconds_count", **labels) == number
            assert cloud.count("rois_total", outcome="verdict", priority=priority) == number
        assert cloud.count("study_seconds_count", end="failed", priority="unknown") == 1
        assert cloud.count("model_info", model="mean", version="2.1", engine="numpy") == 1
        text = generate_latest(cloud.telemetry.registry).decode()
    assert [word for word in ("site-0", "key-0", "127.0.0.1") if word in text] == []
    assert f'overread_cloud_build_info{{version="{version("overread")}"}} 1.0\n' in text
    assert "\nprocess_resident_memory_bytes " in text
    assert "\noverread_cloud_queued_rois 0.0\n" in text


def test_the_bytes_of_messages_are_counted() -> None:
    with run_cloud() as cloud, cloud.stub() as stub:
        header, roi = make_stream(make_roi(1))
        answers = list(stub.Read(iter([header, roi]), timeout=20))
        sizes = {"received": roi.ByteSize(), "sent": sum(one.ByteSize() for one in answers)}
        assert cloud.counts("bytes", "direction") == sizes
