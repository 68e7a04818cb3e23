import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.stability.command import robustness, summaries
from evaluation.stability.readings import (
    CUT,
    EDGE,
    FALSE_POSITIVE,
    NODULE,
    NOISE,
    SECOND,
    Difference,
)


def found(
    values: Sequence[float | None], *, change: str = CUT, kind: str = NODULE, lost: bool = False
) -> list[Difference]:
    """Changes of the edge's logit, each of another patient."""
    return [Difference(EDGE, change, kind, f"p{i}", value, lost) for i, value in enumerate(values)]


def one_row(rows: Sequence[Difference]) -> dict[str, Any]:
    """The figures of differences of one reader and change."""
    (row,) = summaries(rows)
    return row


def test_median_and_p95_are_of_the_size_and_the_mean_keeps_its_sign() -> None:
    row = one_row([*found([-0.4, 0.2, 0.1, None]), *found([0.3, -0.5], kind=FALSE_POSITIVE)])
    assert (row["count"], row["beside"]) == (3, pytest.approx(0.4))
    assert row["median"]["value"] == pytest.approx(0.2)
    assert row["p95"]["value"] == pytest.approx(0.38)
    assert row["mean"]["value"] == pytest.approx(-0.1 / 3)
    assert row["median"]["low"] <= 0.2 <= row["median"]["high"]


def test_lost_locations_are_a_share_of_those_that_were_found() -> None:
    rows = [*found([-5.0], lost=True), *found([0.0] * 3), Difference(EDGE, CUT, NODULE, "p", 4)]
    row = one_row(rows)
    assert row["count"] == 5
    assert row["lost"]["value"] == 0.25
    assert one_row([Difference(SECOND, CUT, NODULE, "p", 4)])["lost"] is None


@pytest.mark.parametrize(
    ("values", "change", "within"),
    [
        ([0.2] * 20, CUT, True),
        ([0.4] * 20, CUT, False),
        ([0.2] * 18 + [1.2] * 2, CUT, False),
        ([0.4] * 20, NOISE, None),
    ],
)
def test_limits_hold_for_nodules_under_their_changes(
    values: list[float | None], change: str, within: bool | None
) -> None:
    assert one_row(found(values, change=change))["within"] is within


def test_what_tells_nothing_has_no_row() -> None:
    assert list(summaries(found([None, None]))) == []


def test_the_shipped_readers_are_measured_on_a_real_scan(shared_data: Path) -> None:
    lidc = shared_data / "lidc"
    line = ["--scans", str(lidc / "lidc_0005"), "--marks", str(lidc / "marks.csv")]
    ended = CliRunner().invoke(app, ["robustness", *line, "--json"])
    assert ended.exit_code == 0, ended.output
    said = json.loads(ended.stdout)
    assert (said["scans"], said["nodules"]) == (["lidc_0005"], 2)
    rows = {(row["reader"], row["change"]): row for row in said["changes"]}
    assert rows[EDGE, "shift"]["count"] == 18
    # a cut changes the edge's whole input, and only the rim of the region that the reader sees;
    # the bounds hold for bf16 too, which some processors use
    assert rows[EDGE, CUT]["median"]["value"] > 0.3
    assert rows[SECOND, CUT]["median"]["value"] == pytest.approx(0.0, abs=0.1)
    assert len(robustness.table("changes").of(said).cells) == len(rows)
