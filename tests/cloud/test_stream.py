"""Whom a batch may wait for."""

from __future__ import annotations

from cloud.stream import Company


def test_what_was_announced_and_has_not_come() -> None:
    """Each that comes, and each that never will, is waited for no longer."""
    company = Company()
    company.announce(3)
    company.announce(2)
    company.left()
    assert company.coming == 4
    company.left(4)
    assert company.coming == 0
