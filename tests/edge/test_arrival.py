"""What verdicts tell of link and cloud."""

from __future__ import annotations

import pytest

from edge.arrival import Arrival, down_s, read_now, reading_s

REMEMBERED = Arrival(1000, 0.2, 0.0, 0.0, received_bytes=100)
FIRST = Arrival(2000, 0.5, 0.1, 0.2, received_bytes=200)
SECOND = Arrival(3000, 0.6, 0.1, 0.2, received_bytes=300)


def test_what_the_cloud_remembered_was_not_read() -> None:
    """It costs the cloud nothing, and says nothing of what another region would."""
    assert read_now([REMEMBERED, FIRST, SECOND]) == [FIRST, SECOND]


def test_a_batch_counts_once() -> None:
    """Two regions that were read together took the time of one batch."""
    assert reading_s([FIRST, SECOND]) == pytest.approx(0.2)


def test_answers_need_company_to_tell_of_throughput() -> None:
    """Of one alone it is not known when it left."""
    assert down_s([FIRST]) is None
    assert down_s([FIRST, SECOND]) == (0.6 - 0.5) / 100
