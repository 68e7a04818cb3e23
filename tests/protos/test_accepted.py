"""How many ROIs a cloud has room for, as it travels."""

from __future__ import annotations

import pytest

from protos.accepted import KEY, accepted_of, to_metadata


def test_what_is_told_is_read() -> None:
    """Beside whatever else stands in the metadata."""
    assert accepted_of((("other", "1"), *to_metadata(3))) == 3
    assert accepted_of(((KEY, b"12"),)) == 12


@pytest.mark.parametrize("text", ["", "-1", "1.5", "many", "٣", "9" * 20])
def test_what_cannot_be_read_is_not_told(text: str) -> None:
    """A cloud that says nothing sensible is asked for everything."""
    assert accepted_of(((KEY, text),)) is None
    assert accepted_of(None) is None
