"""What was not read is not called read: each recipe is refused or limited, and says why."""

from __future__ import annotations

from pathlib import Path

from tests.edge.recipes import Scan, base, outcome

__all__ = ["base"]


def test_the_scan_itself_has_no_limitation_and_its_guarantee(base: Scan, tmp_path: Path) -> None:
    found = outcome(base.copied(tmp_path / "scan").folder)
    assert found.refusal is None
    assert found.texts == ()
    assert found.guarantee.given
