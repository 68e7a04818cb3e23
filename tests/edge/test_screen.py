from __future__ import annotations

import pytest

from edge.errors import UnfitModel
from edge.guarantee import NOT_CALIBRATED, Guarantee
from edge.screen import EdgeReader
from tests.edge.cases import GUARANTEE, SETTINGS, TERMS, THRESHOLDS, WEIGHTS, FixedScreener, box


def test_reader_takes_its_rules_from_the_model_s_manifest() -> None:
    """Thresholds and weights are those that were fitted with the network."""
    reader = EdgeReader.of(FixedScreener([]))
    assert (reader.thresholds, reader.weights) == (THRESHOLDS, WEIGHTS)


def test_guarantee_is_that_of_the_manifest_or_none() -> None:
    """The report's guarantee is the manifest's, and says that there is none where it gives none."""
    calibrated = FixedScreener([], settings={**SETTINGS, "guarantee": GUARANTEE})
    assert EdgeReader.of(calibrated).guarantee == Guarantee(TERMS, "", permanent=False)
    unread = {**GUARANTEE, "screening": "1"}
    otherwise = EdgeReader.of(FixedScreener([], settings={**SETTINGS, "guarantee": unread}))
    assert "not 1, reading" in otherwise.guarantee.reason
    assert EdgeReader.of(FixedScreener([])).guarantee == NOT_CALIBRATED


def test_model_without_thresholds_is_unfit() -> None:
    """A network is not used with thresholds that nobody fitted."""
    with pytest.raises(UnfitModel):
        EdgeReader.of(FixedScreener([], settings={}))


def test_candidates_are_the_network_s() -> None:
    """The candidates come as the network gives them, and the model is named in one line."""
    reader = EdgeReader.of(FixedScreener([0.9, 0.2]))
    assert [c.score for c in reader.screen(box())] == [0.9, 0.2]
    assert reader.label == "fixed 1 (none)"
