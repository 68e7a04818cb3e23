"""The random sample of scans without anything to ask about."""

from __future__ import annotations

import pytest

from edge.audit import audited
from edge.outcome import new_study_key

KEYS = [f"{number:032x}" for number in range(4000)]


def test_the_sample_has_the_size_of_its_rate() -> None:
    """Of 4,000 keys about a tenth at 10 %; none at 0, all at 1."""
    counts = [sum(audited(key, rate) for key in KEYS) for rate in (0.0, 0.1, 1.0)]
    assert counts[0] == 0
    assert 340 <= counts[1] <= 460
    assert counts[2] == len(KEYS)


def test_a_study_read_again_meets_the_same_fate() -> None:
    """The key decides, and a higher rate takes in whoever a lower one did."""
    key = new_study_key()
    assert audited(key, 0.3) == audited(key, 0.3)
    assert all(audited(key, 0.4) for key in KEYS if audited(key, 0.2))


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    """A share lies between 0 and 1."""
    with pytest.raises(ValueError, match="rate"):
        audited("k", rate)
