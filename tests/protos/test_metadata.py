from __future__ import annotations

import pytest

from protos.metadata import ACCEPTED_KEY, Load, accepted_metadata, accepted_of, load_of


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
def test_metadata_without_a_valid_load_is_none(
    metadata: tuple[tuple[str, str], ...] | None,
) -> None:
    assert load_of(metadata) is None


def test_accepted_rois_are_read_among_other_metadata() -> None:
    assert accepted_of((("other", "1"), *accepted_metadata(3))) == 3
    assert accepted_of(((ACCEPTED_KEY, b"12"),)) == 12


@pytest.mark.parametrize("text", ["", "-1", "1.5", "many", "٣", "9" * 20])
def test_invalid_accepted_metadata_is_none(text: str) -> None:
    """All ROIs are then sent."""
    assert accepted_of(((ACCEPTED_KEY, text),)) is None
    assert accepted_of(None) is None
