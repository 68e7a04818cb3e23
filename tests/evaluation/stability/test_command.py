import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.stability.command import MATERIAL, summaries, tables
from evaluation.stability.locations import FALSE_POSITIVE, NODULE
from evaluation.stability.readings import CANDIDATE, CENTRE, CUT, EDGE, SHIFT, Difference
from models.markdown import Rows


def found(
    values: Sequence[float | None],
    *,
    change: str = CUT,
    kind: str = NODULE,
    lost: bool = False,
    details: Sequence[str] = ("",),
) -> list[Difference]:
    """Changes of the edge's logit, each of another patient."""
    return [
        Difference(EDGE, change, details[i % len(details)], kind, f"p{i}", value, lost)
        for i, value in enumerate(values)
    ]


def one_row(rows: Sequence[Difference]) -> dict[str, Any]:
    """The figures of differences of one kind, reader and change."""
    one = rows[0]
    row: dict[str, Any] = summaries(rows, resamples=100, seed=0)[one.kind][one.reader][one.change]
    return row


def test_median_and_p95_are_of_the_size_and_the_mean_keeps_its_sign() -> None:
    row = one_row(found([-0.4, 0.2, 0.1, None]))
    assert (row["count"], row["compared"]) == (3, 4)
    assert row["median"]["value"] == pytest.approx(0.2)
    assert row["p95"]["value"] == pytest.approx(0.38)
    assert row["mean"]["value"] == pytest.approx(-0.1 / 3)
    assert row["median"]["low"] <= 0.2 <= row["median"]["high"]


def test_lost_locations_are_a_share_of_those_that_were_found() -> None:
    rows = [*found([-5.0], lost=True), *found([0.0] * 3), Difference(EDGE, CUT, "", NODULE, "p", 4)]
    row = one_row(rows)
    assert row["count"] == 5
    assert row["lost"]["value"] == 0.25


def test_locations_of_one_patient_are_drawn_together() -> None:
    """Two patients of many equal locations: the interval reaches from one to the other."""
    rows = [
        Difference(EDGE, CUT, "", NODULE, patient, value)
        for patient, value in (("a", 0.1), ("b", 0.9))
        for _ in range(30)
    ]
    row = one_row(rows)
    assert (row["median"]["low"], row["median"]["high"]) == (0.1, 0.9)
    assert row["lost"] is None


@pytest.mark.parametrize(
    ("values", "change", "kind", "within"),
    [
        ([0.2] * 20, CUT, NODULE, True),
        ([0.4] * 20, CUT, NODULE, False),
        ([0.2] * 18 + [1.2] * 2, CUT, NODULE, False),
        ([0.2] * 20, "erase", NODULE, False),
        ([0.1] * 18 + [1.2] * 2, "paste", NODULE, True),
        ([0.4] * 20, "noise", NODULE, None),
        ([0.4] * 20, CUT, FALSE_POSITIVE, None),
        ([None], CUT, NODULE, None),
    ],
)
def test_limits_hold_for_nodules_under_their_changes(
    values: list[float | None], change: str, kind: str, within: bool | None
) -> None:
    row = one_row(found(values, change=change, kind=kind))
    assert row["within"] is within


def test_each_amount_of_a_shift_has_its_own_figures() -> None:
    rows = found([0.1, 0.3, 0.1, 0.3], change=SHIFT, details=("0.25 mm", "0.5 mm"))
    row = one_row(rows)
    assert {name: one["median"]["value"] for name, one in row["parts"].items()} == {
        "0.25 mm": pytest.approx(0.1), "0.5 mm": pytest.approx(0.3)
    }  # fmt: skip


def test_the_tables_name_what_is_beyond_its_limits() -> None:
    rows = summaries(found([0.5, 0.6]), resamples=10, seed=0)
    none = summaries([], resamples=10, seed=0)
    shown = tables({"cubes": {"results": rows}, "scans": {"results": none}})
    assert isinstance(shown[0], Rows)
    assert shown[0].title == "cubes, nodules, edge"
    assert list(shown[0].cells[0][:2]) == ["cut", "2"]
    assert shown[-1] == "Beyond the limits: cut (cubes, edge)."
    assert (
        tables({name: {"results": none} for name in MATERIAL})[-1] == "Beyond the limits: nothing."
    )


def test_scans_need_marks() -> None:
    given = ["robustness", "--data", ".", "--split", "val", "--scans", "."]
    ended = CliRunner().invoke(app, given)
    assert ended.exit_code == 2
    assert "--marks" in ended.output


def test_the_shipped_readers_are_measured_on_a_real_cube(shared_data: Path) -> None:
    line = ["--data", str(shared_data / "nodules"), "--split", "val", "--most", "1"]
    ended = CliRunner().invoke(app, ["robustness", *line, "--resamples", "10", "--json"])
    assert ended.exit_code == 0, ended.output
    part = json.loads(ended.stdout)["cubes"]
    assert (len(part["samples"]), part["nodules"]) == (1, 1)
    rows = part["results"][NODULE]
    for reader in (EDGE, CENTRE, CANDIDATE):
        assert rows[reader][SHIFT]["compared"] == 9
    # a cut changes the edge's whole input, and only the rim of the region that the reader sees;
    # the bounds hold for bf16 too, which some processors use
    assert rows[EDGE][CUT]["median"]["value"] > 0.5
    assert rows[CENTRE][CUT]["median"]["value"] == pytest.approx(0.0, abs=0.1)
