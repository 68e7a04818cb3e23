"""One candidate from its place to its final verdict: how long, and which part takes how much."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from evaluation.errors import ServiceFailed

BAR_MS = 85.0
LOOPBACK = "loopback"
PERCENTILES = (50, 95, 99)

Took = dict[str, Any]
"""What one candidate took: ``total_ms``, and ``parts_ms`` by name."""


class Asks(Protocol):
    """What is needed of the edge's process."""

    def ask(self, number: int) -> Took:
        """One candidate, read again."""


def ask_all(edge: Asks, numbers: Iterable[int], warm_up: int) -> list[Took]:
    """What each candidate of these numbers took, without the first ``warm_up``.

    Raises:
        ServiceFailed: one was not answered.
    """
    took = [edge.ask(number) for number in numbers]
    for one in took:
        if "reason" in one:
            raise ServiceFailed(f"the cloud did not answer: {one['reason']}")
    return took[warm_up:]


def row(link: str, took: Sequence[Took]) -> dict[str, Any]:
    """The figures of one link."""
    totals = [one["total_ms"] for one in took]
    parts = {name: [one["parts_ms"][name] for one in took] for name in took[0]["parts_ms"]}
    spread = _percentiles(totals)
    return {
        "link": link,
        "candidates": len(took),
        **spread,
        "longest_ms": max(totals),
        "kept": spread["p95_ms"] <= BAR_MS,
        "parts": {name: _percentiles(values) for name, values in parts.items()},
    }


def _percentiles(values_ms: Sequence[float]) -> dict[str, float]:
    return {f"p{q}_ms": float(np.percentile(values_ms, q)) for q in PERCENTILES}
