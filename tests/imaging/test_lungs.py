"""Where the lungs of a volume lie, what is no lung, and which candidates lie at lung tissue."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from imaging.errors import NoLung
from imaging.lung_tissue import at_lung
from imaging.lungs import MARGIN_MM, Lungs, find_lungs
from imaging.morphology import closed
from imaging.preprocess import preprocess
from imaging.read import read_study
from imaging.volume import HuArray, Triple

SPACING_MM = (3.0, 2.0, 2.0)
SHAPE = (96, 150, 192)
Mask = npt.NDArray[np.bool_]


def ellipsoid(centre_mm: Triple, radii_mm: Triple) -> Mask:
    """The voxels of the synthetic chest inside an ellipsoid, ``(z, y, x)`` mm from its middle."""
    grid = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    middle = [(n - 1) / 2 for n in SHAPE]
    parts = zip(grid, middle, SPACING_MM, centre_mm, radii_mm, strict=True)
    return np.asarray(sum((((g - m) * s - c) / r) ** 2 for g, m, s, c, r in parts) < 1)


RIGHT = ellipsoid((0, 0, -75), (110, 75, 55))
LEFT = ellipsoid((0, 0, 75), (110, 75, 55))


@pytest.fixture
def chest(fresh_chest: HuArray) -> HuArray:
    """A copy of the synthetic chest, to be changed as a test likes."""
    return fresh_chest.copy()


@pytest.fixture(scope="module")
def fresh_chest() -> HuArray:
    """A chest of ellipsoids: body, two lungs, trachea, spine, heart, stomach gas and a table."""
    rng = np.random.default_rng(7)
    hu = np.full(SHAPE, -1000.0, dtype=np.float32)
    hu[ellipsoid((0, 0, 0), (1000, 115, 170))] = 20
    hu[RIGHT | LEFT] = -850
    hu[ellipsoid((0, -20, 30), (60, 45, 45))] = 40
    hu[ellipsoid((0, 70, 0), (1000, 18, 20))] = 250
    hu[ellipsoid((140, -15, 0), (130, 9, 9))] = -1000
    hu[ellipsoid((-128, -40, 60), (14, 25, 30))] = -1000
    hu[:, 139:146] = -905
    return np.asarray(
        np.clip(hu + 20 * rng.standard_normal(SHAPE, dtype=np.float32), -1024, 3071).astype(
            np.int16
        )
    )


@pytest.fixture(scope="module")
def lungs(fresh_chest: HuArray) -> Lungs:
    """Those of the synthetic chest as it is."""
    return find_lungs(fresh_chest, SPACING_MM, "chest")


def covered(lungs: Lungs, region: Mask) -> float:
    """The share of the voxels of ``region`` (every seventh) that lie in the lung region."""
    return float(lungs.contains(np.argwhere(region)[::7]).mean())


def boxed(lungs: Lungs, region: Mask) -> bool:
    """Whether all of ``region`` lies in the lung box."""
    points = np.argwhere(region)
    return bool(np.all((points >= lungs.start) & (points < lungs.stop)))


def test_lungs_lie_wholly_inside_with_their_margin(lungs: Lungs) -> None:
    """The box ends above them, although the trachea goes on."""
    assert covered(lungs, RIGHT | LEFT) > 0.9999
    points = np.argwhere(RIGHT | LEFT)
    before = points.min(axis=0) - lungs.start
    after = np.array(lungs.stop) - 1 - points.max(axis=0)
    margins_mm = np.array([before, after]) * SPACING_MM
    assert np.all((margins_mm >= MARGIN_MM - 4.5) & (margins_mm <= MARGIN_MM + 8))


def test_chest_wall_table_and_air_lie_outside(lungs: Lungs) -> None:
    body = ellipsoid((0, 0, 0), (1000, 115, 170))
    wall = body & ~ellipsoid((0, 0, 0), (1000, 100, 155))
    assert covered(lungs, wall) < 0.001
    assert covered(lungs, ~body) == 0.0


def test_places_outside_the_volume_are_outside_the_lungs(lungs: Lungs) -> None:
    inside = lungs.contains([[-5, 75, 60], [48, 75, 58], [4000, 75, 60], [48, -1, 58]])
    assert inside.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    "centre_mm",
    [(0, 0, -100), (30, 20, 95), (0, 45, -75), (-30, -45, 75), (20, 20, -45), (45, 5, 70)],
    ids=["wall right", "wall left", "back", "front", "mediastinum", "upper"],
)
def test_mass_of_60_mm_is_not_cut_away(chest: HuArray, centre_mm: Triple) -> None:
    mass = ellipsoid(centre_mm, (30, 30, 30))
    chest[mass] = 30
    lungs = find_lungs(chest, SPACING_MM, "chest")
    assert covered(lungs, mass & (RIGHT | LEFT)) > 0.99
    assert boxed(lungs, mass & (RIGHT | LEFT))


LOWER, BACK = np.s_[: SHAPE[0] // 2], np.s_[:, SHAPE[1] // 2 :]


@pytest.mark.parametrize("part", [LOWER, BACK, np.s_[:]], ids=["lower half", "back half", "whole"])
@pytest.mark.parametrize("lung", [RIGHT, LEFT], ids=["right", "left"])
def test_opaque_part_of_one_lung_stays_inside(
    chest: HuArray, part: slice | tuple[slice, ...], lung: Mask
) -> None:
    chest[part][lung[part]] = 10
    lungs = find_lungs(chest, SPACING_MM, "chest")
    assert covered(lungs, RIGHT | LEFT) > 0.95
    assert boxed(lungs, RIGHT | LEFT)


@pytest.mark.parametrize("lung", [RIGHT, RIGHT | LEFT], ids=["one", "both"])
def test_ground_glass_stays_inside(chest: HuArray, lung: Mask) -> None:
    chest[lung & (chest < -500)] += 300
    assert covered(find_lungs(chest, SPACING_MM, "chest"), RIGHT | LEFT) > 0.999


def test_closing_fills_a_dent_but_not_a_wide_hollow() -> None:
    block = np.zeros((20, 40, 60), np.uint8)
    block[:, 10:30, 5:55] = 1
    block[:, 10:18, 10:14] = 0
    block[:, 10:18, 20:50] = 0
    filled = closed(block, 5)
    assert filled[:, 13:18, 10:14].all()
    assert not filled[:, 10:16, 30:40].any()


@pytest.mark.parametrize(("first", "last"), [(45, 192), (0, 147), (45, 147)])
def test_lung_cut_by_the_field_of_view_is_found(chest: HuArray, first: int, last: int) -> None:
    cut = np.ascontiguousarray(chest[:, :, first:last])
    lungs = find_lungs(cut, SPACING_MM, "chest")
    assert covered(lungs, (RIGHT | LEFT)[:, :, first:last]) > 0.98


def test_lung_cut_by_a_round_field_of_view_is_found(chest: HuArray) -> None:
    y, x = np.ogrid[: SHAPE[1], : SHAPE[2]]
    seen = (y - 74.5) ** 2 + (x - 95.5) ** 2 < 54**2
    chest[:, ~seen] = -1024
    assert covered(find_lungs(chest, SPACING_MM, "chest"), (RIGHT | LEFT) & seen) > 0.98


def test_noise_of_80_hu_changes_little(chest: HuArray) -> None:
    noise = np.random.default_rng(1).normal(0, 80, SHAPE)
    noisy = np.clip(chest + noise, -1024, 3071).astype(np.int16)
    clean, found = (find_lungs(hu, SPACING_MM, "chest").mask for hu in (chest, noisy))
    assert np.mean(clean != found) < 0.02 * clean.mean()
    assert covered(find_lungs(noisy, SPACING_MM, "chest"), RIGHT | LEFT) > 0.999


@pytest.mark.parametrize("first", [12, 20, 44, 70, 75])
def test_slab_of_27_mm_is_enough(chest: HuArray, first: int) -> None:
    lungs = find_lungs(chest[first : first + 9], SPACING_MM, "slab")
    assert covered(lungs, (RIGHT | LEFT)[first : first + 9]) > 0.99
    assert (lungs.start[0], lungs.stop[0]) == (0, 9)


def test_patient_lying_prone_and_views_with_negative_strides(chest: HuArray) -> None:
    lungs = find_lungs(chest[:, ::-1, ::-1], SPACING_MM, "chest")
    assert covered(lungs, (RIGHT | LEFT)[:, ::-1, ::-1]) > 0.9999


def head(body: Mask) -> HuArray:
    """A skull-sized ball with sinuses and mastoid cells."""
    hu = np.where(ellipsoid((0, 0, 0), (100, 95, 75)), 40, -1000)
    hu[ellipsoid((-30, -50, 20), (18, 15, 15)) | ellipsoid((-30, -50, -20), (18, 15, 15))] = -990
    hu[ellipsoid((-30, 20, 60), (12, 12, 8)) | ellipsoid((-30, 20, -60), (12, 12, 8))] = -600
    return np.where(body, hu, -1000).astype(np.int16)


def abdomen(body: Mask) -> HuArray:
    """A trunk with gas in stomach and bowel."""
    hu = np.where(body, 40, -1000)
    hu[ellipsoid((20, -50, 50), (40, 35, 50)) | ellipsoid((-60, -40, -80), (60, 25, 25))] = -1000
    return hu.astype(np.int16)


def water(body: Mask) -> HuArray:
    """A cylinder of water in air."""
    return np.where(body, 0, -1000).astype(np.int16)


def air(body: Mask) -> HuArray:
    """Nothing but air."""
    return np.full(body.shape, -1000, dtype=np.int16)


@pytest.mark.parametrize(
    ("scene", "litres"), [(head, "0.0"), (abdomen, "0.3"), (water, "0.0"), (air, "0.0")]
)
@pytest.mark.parametrize("noise_hu", [0, 30])
def test_volume_without_lung_is_refused_with_its_largest_air_filled_region(
    scene: Callable[[Mask], HuArray], litres: str, noise_hu: int
) -> None:
    noise = np.random.default_rng(3).normal(0, noise_hu, SHAPE)
    hu = scene(ellipsoid((0, 0, 0), (1000, 115, 170))) + noise
    with pytest.raises(NoLung, match=f"no lung in the volume: .* holds {litres}") as caught:
        find_lungs(np.clip(hu, -1024, 3071).astype(np.int16), SPACING_MM, "series/7")
    assert str(caught.value.file) == "series/7"


@dataclass(frozen=True)
class Gas:
    """A bubble, or a tube along an axis, ``(z, y, x)`` mm from the middle of the body."""

    centre_mm: Triple
    radius_mm: float
    along: int | None = None

    def share(self, grid_mm: list[npt.NDArray[np.float64]], blur_mm: float) -> npt.NDArray[Any]:
        """The share of gas in each voxel, which falls over ``blur_mm`` at the wall."""
        parts = zip(range(3), grid_mm, self.centre_mm, strict=True)
        squares = ((g - c) ** 2 for axis, g, c in parts if axis != self.along)
        distance_mm = np.sqrt(sum(squares, np.zeros([g.size for g in grid_mm])))
        return np.clip(0.5 - (distance_mm - self.radius_mm) / blur_mm, 0, 1)


def trunk(
    loops: list[Gas], spacing_mm: Triple, gas_hu: float = -1000, noise_hu: float = 0
) -> HuArray:
    """The trunk below the lungs, 340 mm wide and 200 mm long, with gas in its bowel and a spine."""
    size_mm = (200.0, 250.0, 360.0)
    grid = np.ogrid[tuple(slice(0, round(n / s)) for n, s in zip(size_mm, spacing_mm, strict=True))]
    z, y, x = ((g - (g.size - 1) / 2) * s for g, s in zip(grid, spacing_mm, strict=True))
    share = np.zeros(np.broadcast_shapes(z.shape, y.shape, x.shape))
    for loop in loops:
        share = np.maximum(share, loop.share([z, y, x], max(2.0, spacing_mm[0])))
    hu = 40 + (gas_hu - 40) * share
    hu = np.where((y - 70) ** 2 + x**2 < 18**2, 250, hu)
    hu = np.where((y / 95) ** 2 + (x / 150) ** 2 > 1, -90, hu)
    hu = np.where((y / 115) ** 2 + (x / 170) ** 2 > 1, -1000, hu)
    noise = np.random.default_rng(5).standard_normal(hu.shape, dtype=np.float32) * noise_hu
    return np.clip(hu + noise, -1024, 3071).astype(np.int16)


STOMACH_MM = (0.0, -20.0, 50.0)
_LOOP = some.builds(
    Gas,
    centre_mm=some.tuples(*(some.floats(-n, n) for n in (60, 30, 80))),
    radius_mm=some.floats(15, 70),
    along=some.sampled_from([None, 0, 1, 2]),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@example([Gas((0, 0, 0), 60, along=0)], 1.25, -955, 35)
@example([Gas((-40, 0, x), 15, along=0) for x in (-80.0, 0.0, 80.0)], 1.25, -1000, 0)
@example([Gas((0, 0, 0), 40)], 1.25, -1000, 0)
@example([Gas(STOMACH_MM, 41.5)], 1.25, -1000, 0)
@example([Gas(STOMACH_MM, 58.5)], 1.25, -1000, 0)
@given(
    loops=some.lists(_LOOP, min_size=1, max_size=4),
    slice_mm=some.sampled_from([1.25, 2.5, 5.0, 10.0]),
    gas_hu=some.floats(-1000, -955),
    noise_hu=some.floats(0, 35),
)
def test_bowel_gas_of_any_size_is_not_lung(
    loops: list[Gas], slice_mm: float, gas_hu: float, noise_hu: float
) -> None:
    """The bubbles of 268, 300 and 830 ml, and the three loops, once passed for lungs."""
    hu = trunk(loops, (slice_mm, 2.0, 2.0), gas_hu, noise_hu)
    with pytest.raises(NoLung):
        find_lungs(hu, (slice_mm, 2.0, 2.0), "abdomen")


@pytest.mark.parametrize("wall_mm", [12.0, 20.0])
def test_folds_of_an_inflated_colon_do_not_make_it_lung(wall_mm: float) -> None:
    """A colon of 50 mm with a fold of 3 mm from both walls every 20 mm, as for colonography."""
    hu = trunk([Gas((0, -20, x), 25, along=0) for x in (-100.0, 100.0)], (1.0, 1.5, 1.5))
    for z in range(10, 200, 20):
        fold = hu[z : z + 3]
        rows = np.abs((np.arange(hu.shape[1]) - (hu.shape[1] - 1) / 2) * 1.5 + 20) > 25 - wall_mm
        fold[:, rows] = np.where(fold[:, rows] < -800, 40, fold[:, rows])
    with pytest.raises(NoLung):
        find_lungs(hu, (1.0, 1.5, 1.5), "colonography")


def test_bowel_gas_below_the_lungs_stays_outside(chest: HuArray) -> None:
    low = np.pad(chest, ((40, 0), (0, 0), (0, 0)), mode="edge")
    grid = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    loops = np.zeros(low.shape, dtype=bool)
    for x in (40, 75, 115, 150):
        loops[2:30] |= ((grid[1] - 60) * 2) ** 2 + ((grid[2] - x) * 2) ** 2 < 20**2
    low[loops] = -990
    lungs = find_lungs(low, SPACING_MM, "chest and abdomen")
    assert covered(lungs, loops) == 0
    assert lungs.start[0] > 30


@pytest.mark.parametrize("median_hu", [-930, -950, -965])
@pytest.mark.long
def test_lungs_with_severe_emphysema_are_found(shared_data: Path, median_hu: int) -> None:
    """The air of a real lung made emptier, its vessels left as they are."""
    volume = read_study(shared_data / "lidc/lidc_0295").volume
    hu = volume.hu.astype(np.float32)
    median = np.median(hu[(hu < -700) & (hu > -930)])
    hu += (median_hu - median) * np.clip((-500 - hu) / 300, 0, 1)
    spacing_mm = volume.geometry.spacing_mm
    before = find_lungs(volume.hu, spacing_mm, "lidc_0295")
    after = find_lungs(np.clip(hu, -1024, 3071).astype(np.int16), spacing_mm, "lidc_0295")
    assert np.mean(before.mask != after.mask) < 0.02 * before.mask.mean()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 8, 8), (1, 512, 512)])
def test_volume_too_small_for_lungs_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(NoLung):
        find_lungs(np.full(shape, -850, dtype=np.int16), (1.0, 0.7, 0.7), "tiny")


@pytest.mark.parametrize(
    ("scan", "slices", "together"),
    [
        ("ct/qin_lsc_0028", 14, 1),
        ("lidc/lidc_0001", 20, 1),
        ("lidc/lidc_0005", 29, 1),
        ("lidc/lidc_0021", 37, 1),
        ("lidc/lidc_0063", 33, 1),
        # the folds of a colon fill slices of 7.5 and 10 mm with what looks like lung
        ("lidc/lidc_0005", 27, 3),
        ("lidc/lidc_0005", 28, 4),
    ],
)
@pytest.mark.long
def test_abdomen_of_a_real_scan_is_refused(
    shared_data: Path, scan: str, slices: int, together: int
) -> None:
    """The slices below the lungs, some with 200 ml of gas in bowel and stomach."""
    volume = read_study(shared_data / scan).volume
    thick = volume.hu[:slices].reshape(-1, together, *volume.shape[1:]).mean(axis=1)
    z, y, x = volume.geometry.spacing_mm
    with pytest.raises(NoLung):
        find_lungs(thick.astype(np.int16), (together * z, y, x), scan)


@pytest.mark.parametrize("scan", ["lidc/lidc_0001", "lidc/lidc_0028", "ct/qin_lsc_0014"])
@pytest.mark.long
def test_slab_of_22_mm_of_a_real_scan_is_lung(shared_data: Path, scan: str) -> None:
    """Every slab from the bases to the apices that holds 50 ml of the lungs' air."""
    volume = read_study(shared_data / scan).volume
    spacing_mm = volume.geometry.spacing_mm
    lungs = find_lungs(volume.hu, spacing_mm, scan)
    depth = int(np.ceil(22 / spacing_mm[0]))
    for first in range(0, volume.shape[0] - depth, depth):
        slab = volume.hu[first : first + depth]
        index = np.argwhere((slab > -930) & (slab < -600))[::11]
        index[:, 0] += first
        air_ml = float(lungs.contains(index).sum() * 11 * np.prod(spacing_mm) / 1000)
        if air_ml > 50:
            find_lungs(slab, spacing_mm, f"{scan} from {first}")


MIDDLE = np.array([47.5, 74.5, 95.5])


def accepted(hu: HuArray, centre_mm: tuple[float, float, float], diameter_mm: float) -> bool:
    """Whether a candidate counts; ``centre_mm`` ``(z, y, x)`` is from the middle of the chest."""
    lungs = find_lungs(hu, SPACING_MM, "chest")
    index = MIDDLE + np.asarray(centre_mm) / SPACING_MM
    return bool(at_lung(lungs, SPACING_MM, index[None], np.array([diameter_mm]))[0])


def test_a_candidate_in_the_heart_does_not_count(chest: HuArray) -> None:
    chest[ellipsoid((0, -20, 0), (70, 60, 60))] = 40
    assert not accepted(chest, (0, -20, 0), 8.0)
    assert not accepted(chest, (0, -20, 0), 40.0)
    assert accepted(chest, (0, -20, 72), 8.0)


def test_a_polyp_in_a_bowel_under_the_lung_does_not_count(chest: HuArray) -> None:
    """Also where the gas and the lung are one region: no wall is seen between them."""
    chest[ellipsoid((-130, 0, 75), (36, 40, 40))] = -990
    chest[ellipsoid((-128, 0, 75), (6, 6, 6))] = 30
    lungs = find_lungs(chest, SPACING_MM, "chest")
    assert lungs.contains([MIDDLE + np.array([-120, 10, 75]) / SPACING_MM])[0]
    assert not accepted(chest, (-128, 0, 75), 12.0)


@pytest.mark.parametrize("diameter_mm", [4.0, 10.0, 30.0, 60.0])
def test_a_mass_of_any_size_at_the_pleura_counts(chest: HuArray, diameter_mm: float) -> None:
    radius = diameter_mm / 2
    chest[ellipsoid((0, 0, 120), (radius, radius, radius))] = 30
    assert accepted(chest, (0, 0, 120), diameter_mm)


def test_a_nodule_in_the_wall_of_a_bulla_counts(chest: HuArray) -> None:
    chest[ellipsoid((40, 0, -75), (30, 30, 30))] = -995
    chest[ellipsoid((5, 0, -75), (5, 5, 5))] = 30
    assert accepted(chest, (5, 0, -75), 10.0)


def test_bowel_with_stool_is_no_second_lung(chest: HuArray) -> None:
    rng = np.random.default_rng(1)
    colon = ellipsoid((-128, 20, 0), (14, 35, 150)) & ~ellipsoid((0, 0, 75), (115, 80, 60))
    colon &= ~ellipsoid((0, 0, -75), (115, 80, 60))
    grains = rng.random((96, 50, 64)).repeat(3, axis=1).repeat(3, axis=2)
    chest[colon] = np.where(grains < 0.7, -950, 0)[colon]
    lungs = find_lungs(chest, SPACING_MM, "chest")
    cells = np.floor((np.argwhere(colon) + 0.5) * lungs.air.shape / lungs.shape).astype(int)
    assert lungs.air[tuple(cells.T)].mean() < 0.05


@pytest.mark.long
def test_every_marked_nodule_of_the_whole_scans_counts(shared_data: Path) -> None:
    """Marked by readers, by a collection or by eye: from 4.6 to 36.5 mm."""
    marks = [
        (folder, row)
        for folder in ("lidc", "ct")
        for row in csv.DictReader((shared_data / folder / "marks.csv").read_text().splitlines())
        if row["kind"] in ("nodule", "lesion")
    ]
    lost, boxes = [], {}
    for folder, row in marks:
        if row["scan"] not in boxes:
            study = read_study(shared_data / folder / row["scan"])
            boxes = {row["scan"]: preprocess(study.volume)}
        box = boxes[row["scan"]]
        index = box.geometry.to_index([float(row[axis]) for axis in "xyz"])[None]
        if not box.inside(index, np.array([float(row["diameter_mm"])]))[0]:
            lost.append(row)
    assert len(marks) == 26
    assert lost == []
