from __future__ import annotations

from typing import Any

from evaluation.demo_result import Result, matches, second_readings
from imaging.volume import Nodule


def test_nearest_of_two_nodules_is_hit() -> None:
    """Where two overlap, a finding is put down to the nearer one; a hit is nearer than d/2."""
    pair = (Nodule((0.0, 0.0, 0.0), 20.0), Nodule((8.0, 0.0, 0.0), 20.0))
    findings: list[dict[str, Any]] = [{"centre_mm": [x, 0.0, 0.0]} for x in (7.0, 1.0, 18.0)]
    assert matches(findings, pair) == [1, 0, None]


def test_the_way_to_the_cloud_is_told_of_each_finding_that_it_decided() -> None:
    """Both readers, the merged probability, and the times; a finding of the edge is not among."""
    verdict = {"probability": 0.96, "compute_s": 0.027}
    scores = {"edge_score": 0.51, "probability": 0.69}
    undecided = {"number": 2, "route": "escalate", "decided_by": "cloud", "verdict": verdict}
    report = {
        "findings": [{"number": 1, "route": "report", "verdict": verdict}, undecided | scores],
        "small_nodules": [],
        "candidates": [{"route": route} for route in ("report", "escalate", "escalate", "dismiss")],
        "ledger": [{"stage": "escalate", "took_s": 0.1014}],
    }
    way, finding = second_readings(Result(report, ()))
    assert "101 ms; candidates that the edge was unsure of: 2, reported: 1" in way
    assert finding == (
        "[bold]finding 2[/]  decided by the cloud: edge 0.51 (unsure), cloud 0.96 (read in 27 ms), "
        "together 0.69"
    )
