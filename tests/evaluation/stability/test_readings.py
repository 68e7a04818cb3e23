from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from evaluation.stability.locations import FALSE_POSITIVE, NODULE, Location, Sample
from evaluation.stability.readings import (
    CANDIDATE,
    CENTRE,
    CUT,
    EDGE,
    ERASE,
    FLIP,
    MIRROR,
    NOISE,
    PASTE,
    SHIFT,
    Difference,
    Readers,
    differences,
    logits,
    pairs,
)
from imaging.preprocess import Preprocessed
from imaging.volume import Triple, UInt8Array, triple
from models.runtime.detection import Candidate
from models.runtime.screener import LEAST_LOGIT
from models.runtime.second_reader import Readings
from models.runtime.sigmoid import sigmoid
from tests.evaluation.plain_chest import donor
from tests.evaluation.stability.test_changes import MIDDLE, cube
from tests.plain_readings import plain

BESIDE: Triple = (25.0, 25.0, 8.0)


class Brightness:
    """Both readers: they answer by the mean level of the 27 voxels at a location, 40 a logit.

    The edge proposes each of ``locations`` ``(z, y, x)`` of the unchanged cube that it is shown.
    """

    roi_shape = (12, 12, 12)

    def __init__(self, *locations: Triple, smallest: int = 0) -> None:
        self.locations, self.smallest = locations, smallest

    def screen(self, box: Preprocessed) -> list[Candidate]:
        if min(box.voxels.shape) < self.smallest:
            return []
        found = []
        for z, y, x in self.locations:
            index = box.geometry.to_index((x, y, z))
            score = float(sigmoid(brightness(box.voxels, np.rint(index).astype(int))))
            found.append(Candidate((x, y, z), triple(index), 6.0, score))
        return found

    def read(self, batch: UInt8Array) -> Readings:
        middle = np.array(self.roi_shape) // 2
        levels = np.array([brightness(roi, middle) for roi in batch])
        return plain(sigmoid(levels), np.full(len(batch), 6.0))

    @property
    def readers(self) -> Readers:
        return Readers(self.screen, self)


def brightness(voxels: UInt8Array, at: np.ndarray) -> float:
    z, y, x = at
    return float(voxels[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2].mean()) / 40


def sample(*kinds: str) -> Sample:
    """A nodule in the middle, another beside it, and one location of each kind."""
    locations = tuple(
        Location(at, 6.0, kind) for at, kind in zip((MIDDLE, BESIDE), kinds, strict=False)
    )
    nodules = (Location(MIDDLE, 6.0), Location(BESIDE, 6.0))
    return Sample("val/1", "p", cube(*nodules), nodules, (), locations)


def changed(found: Sequence[Difference], change: str, reader: str) -> list[float | None]:
    return [one.logit for one in found if (one.change, one.reader) == (change, reader)]


def test_readers_that_see_the_location_alone_change_under_noise_only() -> None:
    """Mirror, cut, shift and what happens nearby leave the 27 voxels as they are."""
    one, reader = sample(NODULE), Brightness(MIDDLE)
    found = list(differences(one, reader.readers, [donor(6.0)], 0))
    for change, count in ((MIRROR, 1), (FLIP, 2), (SHIFT, 9), (CUT, 1), (ERASE, 1), (PASTE, 1)):
        for name in (EDGE, CENTRE, CANDIDATE):
            assert changed(found, change, name) == [pytest.approx(0.0, abs=1e-9)] * count, change
    assert not any(one.lost for one in found if one.reader == EDGE)
    (noisy,) = [pair.after for pair in pairs(one, [], 0) if pair.change == NOISE]
    at = np.array([25, 25, 25])
    expected = brightness(noisy.voxels, at) - brightness(one.box.voxels, at)
    assert expected != 0
    for name in (EDGE, CENTRE, CANDIDATE):
        assert changed(found, NOISE, name) == [pytest.approx(expected)]


def test_the_other_nodule_is_erased_and_the_location_that_was_one_is_lost() -> None:
    """A reader that answers by the neighbour changes by its brightness when it is erased."""
    one = sample(NODULE)

    class Neighbour(Brightness):
        def screen(self, box: Preprocessed) -> list[Candidate]:
            (candidate,) = super().screen(box)
            index = tuple(np.rint(box.geometry.to_index(BESIDE[::-1])).astype(int))
            return [replace(candidate, score=float(sigmoid(box.voxels[index] / 40)))]

    found = list(differences(one, Neighbour(MIDDLE).readers, [], 0))
    levels = one.box.voxels
    fall = (int(levels[5, 5, 5]) - int(levels[25, 25, 8])) / 40
    assert changed(found, ERASE, EDGE) == [pytest.approx(fall)]
    assert changed(found, ERASE, CENTRE) == [pytest.approx(0.0, abs=1e-9)]


def test_a_location_without_a_candidate_after_a_change_falls_to_the_least_logit() -> None:
    """The second reader still reads the location itself, and no candidate."""
    one = sample(NODULE)
    found = list(differences(one, Brightness(MIDDLE, smallest=50).readers, [], 0))
    (cut,) = [d for d in found if d.change == CUT and d.reader == EDGE]
    level = float(one.box.voxels[25, 25, 25]) / 40
    assert cut.logit == pytest.approx(LEAST_LOGIT - level)
    assert cut.lost
    assert changed(found, CUT, CENTRE) == [pytest.approx(0.0, abs=1e-9)]
    assert changed(found, CUT, CANDIDATE) == [None]


def test_a_location_that_is_never_proposed_tells_nothing_of_the_edge() -> None:
    found = list(differences(sample(NODULE), Brightness().readers, [], 0))
    of_edge = [one for one in found if one.reader == EDGE]
    assert all(one.logit is None and one.lost is None for one in of_edge)
    assert all(one.logit is not None for one in found if one.reader == CENTRE)


def test_a_candidate_beyond_half_the_diameter_is_another_location() -> None:
    """At least 4 mm count: 3.9 mm beside the middle of a nodule of 6 mm is the nodule."""
    for beside, seen in ((3.9, True), (4.1, False)):
        reader = Brightness((25.0, 25.0, 25.0 + beside))
        found = list(differences(sample(NODULE), reader.readers, [], 0))
        assert (changed(found, MIRROR, EDGE) != [None]) is seen


def test_each_location_keeps_its_kind() -> None:
    """A cut, a paste and an erased neighbour are made for each location on its own."""
    one = sample(NODULE, FALSE_POSITIVE)
    found = list(differences(one, Brightness(MIDDLE, BESIDE).readers, [donor(6.0)], 0))
    for change in (CUT, PASTE, ERASE, MIRROR, NOISE):
        kinds = [d.kind for d in found if d.change == change and d.reader == EDGE]
        assert kinds == [NODULE, FALSE_POSITIVE], change


def test_the_same_seed_makes_the_same_changes() -> None:
    one = sample(NODULE)
    first, again, other = (
        [pair.after.voxels for pair in pairs(one, [donor(6.0)], seed)] for seed in (0, 0, 1)
    )
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


def test_a_nodule_of_the_same_patient_is_not_pasted() -> None:
    made = {pair.change for pair in pairs(sample(NODULE), [replace(donor(6.0), patient="p")], 0)}
    assert ERASE in made
    assert PASTE not in made


def test_logits_of_certain_scores_are_finite() -> None:
    assert logits(sigmoid(np.array([-7.0, 0.0, 12.5]))) == pytest.approx([-7.0, 0.0, 12.5])
    assert np.isfinite(logits(np.array([0.0, 1.0]))).all()
