"""Counting multiply-adds of artifacts."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.cost import multiply_adds
from models.networks.screening import ScreeningSpec
from models.runtime.artifacts import find


def by_hand(spec: ScreeningSpec, side: int) -> int:
    """The screening network's, from its spec alone."""
    half, quarter, eighth, sixteenth = spec.widths
    grids = [(side // n) ** 3 for n in (2, 4, 8, 16)]
    total = grids[0] * 8 * half + grids[1] * 8 * half * quarter
    total += grids[2] * 8 * quarter * eighth + grids[3] * 8 * eighth * sixteenth
    for grid, width, count in zip(grids[1:], spec.widths[1:], spec.blocks, strict=True):
        total += count * grid * 12 * width**2
    total += grids[3] * sixteenth * eighth + grids[2] * eighth * quarter
    return total + grids[1] * (12 * quarter**2 + 5 * quarter)


def test_the_count_is_the_one_by_hand() -> None:
    """Of the shipped screening network, in FP32 and in INT8."""
    spec = ScreeningSpec(blocks=(1, 3, 4))
    for name in ("screening-fp32", "screening-int8"):
        assert multiply_adds(find(name), 48) == by_hand(spec, 48)


def test_a_region_of_the_student_costs_at_most_22_per_cent() -> None:
    """The command says how much less than the second reader's."""
    done = CliRunner().invoke(app, ["cost", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["saved"] >= 0.78
