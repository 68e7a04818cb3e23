"""What the service takes."""

from __future__ import annotations

import pytest

from cloud.admission import compatible


@pytest.mark.parametrize(
    ("expected", "served", "taken"),
    [
        ("", "1.0", True),
        ("1.0", "1.0", True),
        ("1.4.2", "1.0", True),
        ("1", "1.0", True),
        ("2.0", "1.0", False),
        ("10.0", "1.0", False),
    ],
)
def test_a_version_goes_with_its_own_major_one(expected: str, served: str, taken: bool) -> None:
    """A caller that names no version takes any; another major version answers on another scale."""
    assert compatible(expected, served) is taken
