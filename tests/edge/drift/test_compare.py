"""Drift is an alarm only where a change is large and beyond chance."""

from dataclasses import replace

import numpy as np
import pytest

from edge.drift.compare import (
    BASELINE,
    LAST_IMAGES,
    MIN_RECENT,
    PROMISED,
    RECENT,
    Level,
    compare,
    rates,
)
from edge.drift.observe import BINS, EDGES, Observation
from models.calibration import fit


def studies(count: int, seed: int, *, shift: float = 0.0, uncertain: float = 10.0,
            changed: float = 0.2, found: float = 0.4) -> list[Observation]:  # fmt: skip
    """Studies whose candidates resemble each other within a study, as real ones do."""
    chance = np.random.default_rng(seed)
    made = []
    for number in range(count):
        logits = chance.normal(-2.5 + shift + chance.normal(0, 0.4), 1.2, 100)
        bins = np.searchsorted(EDGES, 1 / (1 + np.exp(-logits)), side="right")
        read = int(chance.poisson(uncertain))
        made.append(
            Observation(
                f"{seed}-{number}",
                "m 1",
                scores=tuple(np.bincount(bins, minlength=BINS).tolist()),
                kept=read + 1,
                uncertain=read,
                is_read_again=True,
                findings=int(chance.random() < found),
                possible=2,
                read_again=read,
                changed=int(chance.binomial(read, changed)),
            )
        )
    return made


def test_the_same_kind_of_studies_is_no_drift() -> None:
    pairs = [(studies(BASELINE, 2 * n), studies(RECENT, 2 * n + 1)) for n in range(20)]
    levels = [compare("m 1", *pair).level for pair in pairs]
    assert Level.ALARM not in levels
    assert levels.count(Level.WATCH) <= 1


@pytest.mark.parametrize(
    ("change", "measure"),
    [({"shift": 0.8}, "scores"), ({"uncertain": 20.0}, "uncertain"), ({"changed": 0.5}, "changed"),
     ({"found": 0.8}, "with_findings")],
)  # fmt: skip
def test_a_large_change_is_an_alarm_of_its_measure_alone(
    change: dict[str, float], measure: str
) -> None:
    drift = compare("m 1", studies(BASELINE, 0), studies(RECENT, 1, **change))
    (found,) = (m for m in drift.measures if m.level is Level.ALARM)
    assert (found.name, drift.level) == (measure, Level.ALARM)
    assert found.effect >= found.alarm
    assert found.chance <= 0.001
    assert found.recent > found.baseline


def test_a_smaller_change_is_watched() -> None:
    drift = compare("m 1", studies(BASELINE, 0), studies(RECENT, 1, changed=0.32))
    (changed,) = (m for m in drift.measures if m.name == "changed")
    assert changed.level is Level.WATCH


def test_a_few_studies_are_not_compared() -> None:
    for first, last in ((BASELINE - 1, MIN_RECENT), (BASELINE, LAST_IMAGES - 1)):
        assert not compare("m 1", studies(first, 0), studies(last, 1)).is_complete
    few = compare("m 1", studies(BASELINE, 0), studies(MIN_RECENT - 1, 1, shift=3.0))
    assert {one.name for one in few.measures} == {"kernel", "thickness"}
    assert few.level is Level.STEADY
    assert compare("m 1", studies(BASELINE, 0), studies(MIN_RECENT, 1)).is_complete


def test_studies_without_candidates_are_compared() -> None:
    nothing = [Observation(str(n), "m 1") for n in range(BASELINE + RECENT)]
    assert compare("m 1", nothing[:BASELINE], nothing[BASELINE:]).level is Level.STEADY


def test_the_promised_rates_are_those_of_the_fit() -> None:
    assert PROMISED == {
        "sent": fit.REGIONS,
        "listed": fit.FALSE_LISTED,
        "findings": fit.FALSE_FINDINGS,
    }


def test_rates_are_means_over_the_studies_that_tell_them() -> None:
    """Where no study was read by the edge alone, nothing is said of it."""
    baseline = studies(BASELINE, 0)
    drift = compare("m 1", baseline, [])
    sent, listed, findings, alone = rates(drift)
    assert sent.before == pytest.approx(np.mean([one.kept for one in baseline]))
    assert sent.now is None
    assert listed.before == pytest.approx(2 + np.mean([one.findings for one in baseline]))
    assert findings.before == pytest.approx(np.mean([one.findings for one in baseline]))
    assert alone.before is None
    lone = [replace(one, is_read_again=False) for one in baseline]
    assert rates(compare("m 1", lone, []))[3].before == findings.before
