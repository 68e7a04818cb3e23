"""What an operator sees."""

from __future__ import annotations

import urllib.request

from cloud.settings import CloudSettings
from cloud.telemetry import Telemetry


def test_metrics_are_served_while_entered() -> None:
    """A scrape shows the counts, and the port is free again afterwards."""
    telemetry = Telemetry()
    telemetry.streams.labels("complete").inc()
    telemetry.rois.labels("verdict").inc()
    telemetry.queue_s.observe(0.02)
    telemetry.batch_rois.observe(3)
    telemetry.add_gauge("queued_rois", "ROIs that wait", lambda: 7)
    with telemetry.serve(CloudSettings(metrics_port=0)) as address:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        assert 'overread_cloud_streams_total{end="complete"} 1.0' in lines
        assert 'overread_cloud_rois_total{outcome="verdict"} 1.0' in lines
        assert 'overread_cloud_queue_seconds_bucket{le="0.03"} 1.0' in lines
        assert 'overread_cloud_batch_rois_bucket{le="4.0"} 1.0' in lines
        assert "overread_cloud_queued_rois 7.0" in lines
    port = int(str(address).rpartition(":")[2])
    with telemetry.serve(CloudSettings(metrics_port=port)) as again:
        assert again == address
    with telemetry.serve(CloudSettings()) as off:
        assert off is None
