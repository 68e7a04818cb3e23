"""What pruning lost: nodule by nodule against the control, with intervals; the page's section."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.compression.prune_figures import RATES, compared, hits, lost_points, section, verdict
from models.training import screening
from models.training.screening import summary

TIME = {"int8_ms": 60.0, "int8_ratio": 1.0, "fp32_ms": 200.0, "fp32_ratio": 1.0}


def run(way: str, share: float, found: list[float], alarms: list[float]) -> dict[str, Any]:
    """What one run leaves: 1000 parameters of which the share is gone."""
    return {
        "way": way, "share": share, "whole": 1000, "parameters": round(1000 * (1 - share)),
        "multiply_adds": 2e9, "scans": 1, "found": found, "alarms": alarms,
        "after": summary(np.array(found), np.array(alarms), 1),
    }  # fmt: skip


@pytest.fixture
def result() -> dict[str, Any]:
    """A control that finds nine of ten and channels that lose one of them."""
    runs = [
        run("control", 0.0, [3.0] * 9 + [-9.0], [1.0]),
        run("channels", 0.42, [3.0] * 8 + [-9.0] * 2, [1.0, -2.0]),
    ]
    head = {"minutes": 1.5, "rounds": 10, "box": [1, 2, 3], "engine": "openvino", "cpu": "a CPU"}
    times = [TIME, TIME | {"int8_ms": 45.0, "int8_ratio": 0.75}]
    return {"command": "overread-models prune compare", **head, **compared(runs, times)}


def test_the_loss_is_told_in_points(result: dict[str, Any]) -> None:
    """A tenth at three rates and two at a fourth, where the control finds all; CPM is over 7."""
    control, channels = result["runs"]
    assert control["cpm_lost"] == {"value": 0, "low": 0, "high": 0}
    assert channels["cpm_lost"]["value"] == pytest.approx(100 * (3 * 0.1 + 0.2) / 7)
    assert channels["at_8_lost"]["value"] == 0
    assert channels["gone"] == pytest.approx(0.42)


def test_hits_agree_with_what_is_judged() -> None:
    """Their means are the sensitivities that the task's judge gives."""
    rng = np.random.default_rng(0)
    found, alarms = rng.normal(1, 2, 50), rng.normal(-1, 2, 30)
    own = hits(run("weights", 0.2, found.tolist(), alarms.tolist())).mean(0)
    judged = summary(found, alarms, 1)
    assert own.mean() == pytest.approx(judged["cpm"])
    assert own[-1] == pytest.approx(judged["at_8"])
    assert RATES == screening.RATES


def test_an_interval_holds_the_value() -> None:
    """A loss of two nodules in a hundred is told with its doubt."""
    lost = lost_points(np.array([1.0] * 2 + [0.0] * 98))
    assert lost["value"] == pytest.approx(2.0)
    assert lost["low"] < 2.0 < lost["high"] < 7.0


def test_the_page_puts_the_claim_beside_the_figures(result: dict[str, Any]) -> None:
    """A row for each run; nothing is written without a measurement."""
    text = section({"pruning": result})
    row = next(line for line in text.splitlines() if line.startswith("| whole channels"))
    assert "| 42.0% |" in row
    assert "| 45 | 0.75 |" in row
    assert "42% fewer parameters at no more than 1.2 points lost" in verdict(result)
    assert section({}) == ""
