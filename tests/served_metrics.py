"""The names of the time series that edge and cloud serve, as Prometheus finds them."""

import re
from pathlib import Path

from cloud.telemetry import CloudTelemetry
from tools.reference import edge_registry

ROOT = Path(__file__).resolve().parents[1]


def served() -> set[str]:
    """All names, those of the parts of histograms too."""
    names: set[str] = set()
    for registry in (edge_registry(), CloudTelemetry().registry):
        for metric in registry.collect():
            endings = {"counter": ("_total",), "histogram": ("", "_bucket", "_sum", "_count")}
            names |= {metric.name + end for end in endings.get(metric.type, ("",))}
    # gauges of the queue, which a running service adds
    queue = (ROOT / "cloud" / "server.py").read_text()
    return names | {f"overread_cloud_{name}" for name in re.findall(r'add\("(\w+)"', queue)}
