"""The cloud's own word on its load."""

from __future__ import annotations

import pytest

from protos.load import Load, load_of


def test_load_survives_the_metadata() -> None:
    """Queue and compute time come back to the microsecond."""
    assert load_of(Load(0.125, 1.5).to_metadata()) == Load(0.125, 1.5)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        (),
        (("overread-queue-s", "1.0"),),
        (("overread-queue-s", "x"), ("overread-compute-s", "1")),
        (("overread-queue-s", "nan"), ("overread-compute-s", "1")),
        (("overread-queue-s", "inf"), ("overread-compute-s", "1")),
        (("overread-queue-s", "-0.5"), ("overread-compute-s", "1")),
        (("overread-queue-s", "1"), ("overread-compute-s", "nan")),
        (("overread-queue-s", "1"), ("overread-compute-s", "-1")),
    ],
)
def test_metadata_without_a_load_tells_none(
    metadata: tuple[tuple[str, str], ...] | None,
) -> None:
    """A service that says nothing of its load, or nonsense, is not guessed at."""
    assert load_of(metadata) is None
