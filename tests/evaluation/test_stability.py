"""Changes of lung boxes, the logits before and after them, and the command."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.accuracy.truth import read_truth
from evaluation.stability import (
    CUT,
    CUT_MM,
    EDGE,
    MIRROR,
    NOISE,
    NOISE_HU,
    SECOND,
    SHIFT,
    Difference,
    Location,
    Readers,
    Sample,
    cut_around,
    differences,
    mirrored,
    noisy,
    part_of,
    read_sample,
    robustness,
    shifted_grid,
    summaries,
)
from imaging.dicom.writer import write_series
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import FloatArray, Geometry, Triple, UInt8Array, triple
from models.runtime.detection import Candidate, sigmoid
from models.runtime.screener import MIN_LOGIT
from models.runtime.second_reader import Readings
from tests.evaluation.plain_chest import LUNG_HU, TISSUE_HU, chest, in_lung
from tests.imaging.volumes import to_window
from tests.plain_readings import plain

LUNG = int(to_window(np.array([LUNG_HU]))[0])
HU_PER_LEVEL = 1400 / 255


def centre_of_tissue(box: Preprocessed) -> FloatArray:
    """World point of the middle of what is denser than lung."""
    dense = np.clip(box.voxels.astype(float) - LUNG - 3, 0, None)
    at = np.stack(np.meshgrid(*map(np.arange, dense.shape), indexing="ij"), -1)
    return box.geometry.to_world((at * dense[..., None]).sum((0, 1, 2)) / dense.sum())


@pytest.mark.parametrize("spacing", [(2.0, 1.5, 1.5), (2.5, 0.7, 0.7)])
def test_a_grid_that_is_not_shifted_gives_the_lung_box_again(spacing: Triple) -> None:
    """Equal but for one level: the edge rounds after each axis."""
    volume = chest(spacing)
    box = preprocess(volume)
    again = shifted_grid(volume, box, 0, 0.0)
    assert again.geometry.origin_mm == pytest.approx(box.geometry.origin_mm)
    assert np.abs(again.voxels.astype(int) - box.voxels).max() <= 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_grid_shows_the_same_point_at_another_index(axis: int) -> None:
    volume = chest()
    z, y, x = (int(v) for v in np.rint(volume.geometry.to_index(in_lung(0))))
    volume.hu[z - 3 : z + 4, y - 4 : y + 5, x - 4 : x + 5] = TISSUE_HU
    box = preprocess(volume)
    shifted = shifted_grid(volume, box, axis, 0.5)
    point = box.geometry.to_world([[40.0, 40.0, 40.0]])
    assert (box.geometry.to_index(point) - shifted.geometry.to_index(point))[0] == pytest.approx(
        np.eye(3)[axis] * 0.5, abs=0.01
    )
    found = []
    for one in (box, shifted):
        near = np.rint(one.geometry.to_index(volume.geometry.to_world([z, y, x])))
        found.append(centre_of_tissue(part_of(one, near - 12, near + 13)))
    assert found[0] == pytest.approx(found[1], abs=0.05)
    assert not np.array_equal(box.voxels, shifted.voxels)


def test_a_location_is_cut_out_with_its_surroundings() -> None:
    box = preprocess(chest())
    location = Location((40.0, 45.0, 60.0), 8.0)
    cut = cut_around(box, location)
    assert max(cut.voxels.shape) == CUT_MM
    index = cut.geometry.to_index(box.geometry.to_world(location.index_zyx))
    assert index == pytest.approx([25.0, 25.0, 25.0])
    assert cut.voxels[25, 25, 25] == box.voxels[40, 45, 60]
    assert cut.lungs is box.lungs
    assert cut.inside(index[None])[0] == box.inside(np.array([location.index_zyx]))[0]
    assert cut_around(box, Location((5.0, 45.0, 60.0), 8.0)).voxels.shape == (30, 50, 50)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_mirror_image_keeps_points_and_lungs(axis: int) -> None:
    box = preprocess(chest())
    image = mirrored(box, axis)
    for index in ((40, 45, 30), (10, 20, 33), (2, 3, 4)):
        there = image.geometry.to_index(box.geometry.to_world(index))
        z, y, x = (int(v) for v in np.rint(there))
        assert there == pytest.approx([z, y, x])
        assert image.voxels[z, y, x] == box.voxels[index]
        assert image.inside(there[None]) == box.inside(np.array([index], float))


def test_noise_has_its_deviation_and_stays_in_the_window() -> None:
    for level, mean, deviation in ((LUNG, 0.0, NOISE_HU), (0, 1.45, 0.58 * NOISE_HU)):
        box = Preprocessed(np.full((50, 50, 50), level, np.uint8), Geometry())
        added = noisy(box, np.random.default_rng(1)).voxels.astype(float) - level
        assert added.mean() == pytest.approx(mean, abs=0.1)
        assert added.std() * HU_PER_LEVEL == pytest.approx(deviation, rel=0.02)


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
    """A chest with a nodule of 10 mm in one lung."""
    volume = chest((2.0, 1.5, 1.5))
    z, y, x = (int(v) for v in np.rint(volume.geometry.to_index(PLACES[0])))
    volume.hu[z - 2 : z + 3, y - 3 : y + 4, x - 3 : x + 4] = TISSUE_HU
    folder = tmp_path_factory.mktemp("scans") / "somebody"
    write_series(volume, folder)
    box = preprocess(read_study(folder).volume, folder)
    at = triple(box.geometry.to_index(PLACES[0]))
    return Sample(folder, box, (Location(at, 10.0),))


def changed(found: Sequence[Difference], change: str, reader: str) -> list[float | None]:
    return [d.logit for d in found if (d.change, d.reader) == (change, reader)]


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


def test_a_location_without_a_candidate_after_a_change_falls_to_the_least_logit(
    scan: Sample,
) -> None:
    """The second reader still reads the location itself."""
    found = list(differences(scan, Brightness(*PLACES, smallest=51).readers))
    cut = next(d for d in found if (d.change, d.reader) == (CUT, EDGE))
    at = np.rint(scan.locations[0].index_zyx).astype(int)
    assert cut.logit == pytest.approx(MIN_LOGIT - brightness(scan.box.voxels, at))
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


def found(
    values: Sequence[float | None], *, change: str = CUT, lost: bool = False
) -> list[Difference]:
    """Changes of the edge's logit, each of another patient."""
    return [Difference(EDGE, change, f"p{i}", value, lost) for i, value in enumerate(values)]


def one_row(rows: Sequence[Difference]) -> dict[str, Any]:
    """The figures of differences of one reader and change."""
    (row,) = summaries(rows)
    return row


def test_median_and_p95_are_of_the_size_and_the_mean_keeps_its_sign() -> None:
    """What is lost is a share of what was found; what tells nothing has no row."""
    row = one_row(found([-0.4, 0.2, 0.1, None]))
    assert row["count"] == 3
    figures = [row[name]["value"] for name in ("median", "p95", "mean", "lost")]
    assert figures == pytest.approx([0.2, 0.38, -0.1 / 3, 0.0])
    assert row["median"]["low"] <= 0.2 <= row["median"]["high"]
    assert one_row([*found([-5.0], lost=True), *found([0.0] * 3)])["lost"]["value"] == 0.25
    assert one_row([Difference(SECOND, CUT, "p", 4)])["lost"] is None
    assert list(summaries(found([None, None]))) == []


@pytest.mark.parametrize(
    ("values", "change", "within"),
    [
        ([0.2] * 20, CUT, True),
        ([0.4] * 20, CUT, False),
        ([0.2] * 18 + [1.2] * 2, CUT, False),
        ([0.4] * 20, NOISE, None),
    ],
)
def test_limits_hold_for_nodules_under_their_changes(
    values: list[float | None], change: str, within: bool | None
) -> None:
    assert one_row(found(values, change=change))["within"] is within


@pytest.mark.long
def test_the_shipped_readers_are_measured_on_a_real_scan(shared_data: Path) -> None:
    lidc = shared_data / "lidc"
    line = ["--scans", str(lidc / "lidc_0005"), "--marks", str(lidc / "marks.csv")]
    ended = CliRunner().invoke(app, ["robustness", *line, "--json"])
    assert ended.exit_code == 0, ended.output
    said = json.loads(ended.stdout)
    assert (said["scans"], said["nodules"]) == (["lidc_0005"], 2)
    rows = {(row["reader"], row["change"]): row for row in said["changes"]}
    assert rows[EDGE, "shift"]["count"] == 18
    # a cut changes the edge's whole input, and only the rim of the region that the reader sees;
    # the bounds hold for bf16 too, which some processors use
    assert rows[EDGE, CUT]["median"]["value"] > 0.3
    assert rows[SECOND, CUT]["median"]["value"] == pytest.approx(0.0, abs=0.1)
    assert len(robustness.table("changes").of(said).cells) == len(rows)
