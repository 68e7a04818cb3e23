from edge.guarantee import NOT_CALIBRATED, Guarantee
from edge.reader import EdgeReader
from tests.edge.builders import GUARANTEE, SETTINGS, TERMS, THRESHOLDS, WEIGHTS, FixedScreener, box


def test_reader_takes_its_rules_from_the_model_s_manifest() -> None:
    reader = EdgeReader.of(FixedScreener([]))
    assert (reader.thresholds, reader.weights) == (THRESHOLDS, WEIGHTS)


def test_guarantee_is_that_of_the_manifest_or_none() -> None:
    calibrated = FixedScreener([], settings={**SETTINGS, "guarantee": GUARANTEE})
    assert EdgeReader.of(calibrated).guarantee == Guarantee(TERMS, "", permanent=False)
    unread = {**GUARANTEE, "screening": "1"}
    otherwise = EdgeReader.of(FixedScreener([], settings={**SETTINGS, "guarantee": unread}))
    assert "not 1, reading" in otherwise.guarantee.reason
    assert EdgeReader.of(FixedScreener([])).guarantee == NOT_CALIBRATED


def test_candidates_are_the_network_s() -> None:
    reader = EdgeReader.of(FixedScreener([0.9, 0.2]))
    assert [c.score for c in reader.screen(box())] == [0.9, 0.2]
    assert reader.label == "fixed 1 (none)"
