from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.accuracy.truth import read_truth
from evaluation.stability.readings import (
    CUT,
    EDGE,
    FALSE_POSITIVE,
    MIRROR,
    NODULE,
    NOISE,
    SECOND,
    SHIFT,
    Ball,
    Difference,
    Location,
    Readers,
    Sample,
    differences,
    logits,
    read_sample,
    with_false_positives,
)
from imaging.dicom.writer import write_series
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import Triple, UInt8Array, triple
from models.runtime.detection import Candidate, sigmoid
from models.runtime.screener import LEAST_LOGIT
from models.runtime.second_reader import Readings
from tests.evaluation.plain_chest import TISSUE_HU, chest, in_lung
from tests.evaluation.stability.test_changes import MIDDLE, cube
from tests.plain_readings import plain


def candidate(score: float, z: float, y: float = 25.0, x: float = 25.0) -> Candidate:
    return Candidate((x, y, z), (z, y, x), 5.0, score)


def in_cube(name: str) -> Sample:
    nodule = Location(MIDDLE, 6.0)
    return Sample(Path(name), cube(), (nodule,), (Ball((25.0, 25.0, 12.0), 4.0),), (nodule,))


def test_the_strongest_false_positives_are_taken_as_many_as_there_are_nodules() -> None:
    seen = [[candidate(0.9, 12), candidate(0.4, 14)], [candidate(0.3, 12), candidate(0.8, 38)]]
    first, second = with_false_positives([in_cube("a"), in_cube("b")], seen)
    assert [location.kind for location in first.locations] == [NODULE, FALSE_POSITIVE]
    assert first.locations[1].index_zyx == (12.0, 25.0, 25.0)
    assert second.locations[1].index_zyx == (38.0, 25.0, 25.0)
    few, none = with_false_positives([in_cube("a"), in_cube("b")], [seen[0], []])
    assert (len(few.locations), len(none.locations)) == (3, 1)


@pytest.mark.parametrize("at", [(17.5, 25.0, 25.0), (25.0, 25.0, 18.5)])
def test_what_is_within_5_mm_of_a_mark_is_no_false_positive(at: Triple) -> None:
    assert in_cube("a").false_positives([candidate(0.9, *at)]) == []
    assert in_cube("a").false_positives([candidate(0.9, 9.0)])


def test_nodules_and_lesions_of_a_scan_are_locations_and_doubtful_ones_are_not(
    tmp_path: Path,
) -> None:
    """A mark outside of the lung box cannot be read there."""
    table = tmp_path / "marks.csv"
    rows = [
        f"scan,{kind},{','.join(str(v) for v in point)},8"
        for kind, point in (
            ("nodule", in_lung(0)), ("lesion", in_lung(1)), ("doubtful", in_lung(0, 15.0)),
            ("nodule", (0.0, 0.0, 900.0)),
        )
    ]  # fmt: skip
    table.write_text("\n".join(["scan,kind,x,y,z,diameter_mm", *rows]) + "\n")
    write_series(chest(), tmp_path / "scan")
    found = read_sample(tmp_path / "scan", read_truth(table)["scan"])
    assert [location.kind for location in found.locations] == [NODULE, NODULE]
    assert len(found.excluded) == 1
    points = [found.box.geometry.to_world(location.index_zyx) for location in found.locations]
    assert points == [pytest.approx(in_lung(0)), pytest.approx(in_lung(1))]


class Brightness:
    """Both readers: they answer by the mean level of the 27 voxels at a location, 40 a logit.

    The edge proposes each of ``places`` ``(x, y, z)`` in mm, in boxes of this size or larger.
    """

    roi_shape = (12, 12, 12)

    def __init__(self, *places: Triple, smallest: int = 0) -> None:
        self.places, self.smallest = places, smallest

    def screen(self, box: Preprocessed) -> list[Candidate]:
        if min(box.voxels.shape) < self.smallest:
            return []
        found = []
        for place in self.places:
            index = box.geometry.to_index(place)
            if (index < 2).any() or (index > np.array(box.voxels.shape) - 3).any():
                continue  # cut off
            score = float(sigmoid(brightness(box.voxels, np.rint(index).astype(int))))
            found.append(Candidate(place, triple(index), 6.0, score))
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


PLACES = in_lung(0), in_lung(1)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A chest with a nodule of 10 mm in one lung, and a false positive in the other."""
    volume = chest((2.0, 1.5, 1.5))
    z, y, x = (int(v) for v in np.rint(volume.geometry.to_index(PLACES[0])))
    volume.hu[z - 2 : z + 3, y - 3 : y + 4, x - 3 : x + 4] = TISSUE_HU
    folder = tmp_path_factory.mktemp("scans") / "patient"
    write_series(volume, folder)
    box = preprocess(read_study(folder).volume, folder)
    at = [triple(box.geometry.to_index(place)) for place in PLACES]
    locations = Location(at[0], 10.0), Location(at[1], 6.0, FALSE_POSITIVE)
    return Sample(folder, box, locations[:1], (), locations)


def changed(
    found: Sequence[Difference], change: str, reader: str, kind: str = NODULE
) -> list[float | None]:
    return [d.logit for d in found if (d.change, d.reader, d.kind) == (change, reader, kind)]


def test_readers_that_see_the_location_alone_change_under_noise_only(scan: Sample) -> None:
    """Mirror, cut and shift leave the middle of the nodule as it is."""
    found = list(differences(scan, Brightness(*PLACES).readers))
    for change, count in ((MIRROR, 1), (SHIFT, 9), (CUT, 1)):
        for name in (EDGE, SECOND):
            shown = changed(found, change, name)
            assert shown == [pytest.approx(0.0, abs=0.1)] * count, change
    assert not any(one.lost for one in found if one.reader == EDGE)
    assert all(one.lost is None for one in found if one.reader == SECOND)
    for name in (EDGE, SECOND):
        assert changed(found, NOISE, name) != [pytest.approx(0.0, abs=1e-6)]
    for change in (CUT, MIRROR, NOISE):
        assert len(changed(found, change, EDGE, FALSE_POSITIVE)) == 1, change


def test_a_location_without_a_candidate_after_a_change_falls_to_the_least_logit(
    scan: Sample,
) -> None:
    """The second reader still reads the location itself."""
    found = list(differences(scan, Brightness(*PLACES, smallest=51).readers))
    cut = next(d for d in found if (d.change, d.reader, d.kind) == (CUT, EDGE, NODULE))
    at = np.rint(scan.locations[0].index_zyx).astype(int)
    assert cut.logit == pytest.approx(LEAST_LOGIT - brightness(scan.box.voxels, at))
    assert cut.lost
    assert changed(found, CUT, SECOND) == [pytest.approx(0.0, abs=1e-9)]


def test_a_location_that_is_never_proposed_tells_nothing_of_the_edge(scan: Sample) -> None:
    found = list(differences(scan, Brightness().readers))
    of_edge = [one for one in found if one.reader == EDGE]
    assert all(one.logit is None and one.lost is None for one in of_edge)
    assert all(one.logit is not None for one in found if one.reader == SECOND)


def test_a_candidate_beyond_half_the_diameter_is_another_location(scan: Sample) -> None:
    """At least 4 mm count: 3.9 mm beside the middle of a location of 6 mm is the location."""
    small = replace(scan, locations=(Location(scan.locations[0].index_zyx, 6.0),))
    for beside, seen in ((3.9, True), (4.1, False)):
        x, y, z = PLACES[0]
        found = list(differences(small, Brightness((x + beside, y, z)).readers))
        assert (changed(found, MIRROR, EDGE) != [None]) is seen


def test_logits_of_certain_scores_are_finite() -> None:
    assert logits(sigmoid(np.array([-7.0, 0.0, 12.5]))) == pytest.approx([-7.0, 0.0, 12.5])
    assert np.isfinite(logits(np.array([0.0, 1.0]))).all()
