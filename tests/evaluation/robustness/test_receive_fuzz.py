"""Hostile senders, a few of them: what sound senders send is acknowledged and reported."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from evaluation.__main__ import app


def test_a_sound_series_after_hostile_ones_is_acknowledged_and_reported() -> None:
    result = CliRunner().invoke(app, ["receive-fuzz", "--rounds", "25", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert sum(found["hostile"].values()) == 25
    assert found["sound_series"] == found["acknowledged"] == found["reported"] == 2
    assert found["left_on_their_way"] == 0
