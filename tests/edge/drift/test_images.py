"""A change of the images themselves is an alarm within ten studies, and a mixed site has none."""

from dataclasses import replace

import numpy as np
import pytest

import overread
from edge.drift.compare import BASELINE, LAST_IMAGES, Level, compare
from edge.drift.observe import Observation, observe
from imaging.phantom.phantom import PhantomSpec
from tests.conftest import Draw


def studies(
    count: int,
    seed: int,
    *,
    offset_hu: float = 0.0,
    contrast: float = 0.4,
    louder: float = 1.0,
    kernel: str = "",
    slices: float = 0.0,
) -> list[Observation]:
    """Studies of two scanners, which take turns of ten, with and without contrast medium."""
    chance, made = np.random.default_rng(seed), list[Observation]()
    for number in range(count):
        if number % 10 == 0:
            second = chance.random() < 0.35
        air = chance.normal(-1016 if second else -998, 3)
        blood = chance.normal(220, 70) if chance.random() < contrast else chance.normal(42, 6)
        noise = chance.lognormal(np.log(18 if second else 12), 0.25)
        thickness = 1.25 if second else float(chance.choice([1.0, 3.0]))
        made.append(
            Observation(
                f"{seed}-{number}",
                "m 1",
                air_hu=air + offset_hu if chance.random() < 0.95 else None,
                blood_hu=blood + offset_hu,
                noise_hu=noise * louder,
                kernel=kernel or ("STANDARD" if second else "B31f"),
                thickness_mm=slices or thickness,
            )
        )
    return made


def levels(first: list[Observation], last: list[Observation]) -> dict[str, Level]:
    return {one.name: one.level for one in compare("m 1", first, last).measures}


def test_a_mixed_site_has_no_alarm() -> None:
    """Nor does a day with one scanner and contrast medium in every study."""
    for seed in range(6):
        first, later = studies(BASELINE, seed), studies(40, 100 + seed)
        windows = [later[at : at + LAST_IMAGES] for at in range(0, 40, 10)]
        windows.append(studies(LAST_IMAGES, 200 + seed, contrast=1.0))
        for last in windows:
            assert set(levels(first, last).values()) == {Level.STEADY}


@pytest.mark.parametrize(
    ("change", "measures"),
    [
        ({"offset_hu": 50.0}, {"air"}),
        ({"offset_hu": 50.0, "contrast": 0.0}, {"air"}),
        ({"offset_hu": -50.0, "contrast": 0.0}, {"air", "blood"}),
        ({"louder": 3.0}, {"noise"}),
        ({"kernel": "Br64"}, {"kernel"}),
        ({"slices": 2.0}, {"thickness"}),
    ],
)
def test_a_change_is_an_alarm_within_ten_studies(
    change: dict[str, float | str], measures: set[str]
) -> None:
    for seed in range(4):
        first, changed = studies(BASELINE, seed), studies(LAST_IMAGES, 50 + seed, **change)  # type: ignore[arg-type]
        found = levels(first, changed)
        assert {name for name, level in found.items() if level is Level.ALARM} == measures


def test_half_of_ten_studies_are_enough() -> None:
    first, before = studies(BASELINE, 0), studies(LAST_IMAGES, 1)
    changed = studies(LAST_IMAGES, 2, kernel="Br64")
    steps = [levels(first, [*before[n:], *changed[:n]])["kernel"] for n in (2, 3, 5)]
    assert steps == [Level.STEADY, Level.WATCH, Level.ALARM]


def test_what_is_not_measured_is_not_compared() -> None:
    first, last = studies(BASELINE, 0), studies(LAST_IMAGES, 1)
    assert levels(first[1:], last) == levels(first, last[1:]) == {}
    blind = [replace(one, air_hu=None, blood_hu=None, noise_hu=None) for one in first]
    assert set(levels(blind, last)) == {"kernel", "thickness"}
    blind = [replace(one, air_hu=None) for one in last]
    assert levels(first, blind)["air"] is Level.STEADY


def test_a_wrong_hu_scale_of_the_phantom_is_an_alarm_of_the_air(drawn: Draw) -> None:
    """From its voxels over the report to the level."""
    spec = PhantomSpec(seed=4, spacing_mm=(2.5, 1.5, 1.5), size_mm=(280.0, 320.0, 320.0))
    volume, seen = drawn(spec).volume, list[Observation]()
    with overread.Screener() as screener:
        for offset in (0, 50):
            report = screener.screen(volume.hu + offset, spacing_mm=spec.spacing_mm)
            seen.append(observe("k", report, finding=0.5))
    before, after = seen
    assert after.air_hu == pytest.approx((before.air_hu or 0) + 50, abs=3)
    assert after.blood_hu == pytest.approx((before.blood_hu or 0) + 50, abs=3)
    assert after.noise_hu == pytest.approx(before.noise_hu, abs=1)
    chance = np.random.default_rng(0)
    first, last = (
        [replace(one, air_hu=(one.air_hu or 0) + chance.normal(0, 3)) for _ in range(count)]
        for one, count in ((before, BASELINE), (after, LAST_IMAGES))
    )
    assert levels(first, last)["air"] is Level.ALARM
