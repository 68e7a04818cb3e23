from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from imaging.errors import NoLung
from imaging.lungs import CELL_MM, MARGIN_MM, Lungs, find_lungs
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


def covered(lungs: Lungs, region: Mask) -> float:
    """The share of the voxels of ``region`` (every seventh) that lie in the lung region."""
    return float(lungs.contains(np.argwhere(region)[::7]).mean())


def boxed(lungs: Lungs, region: Mask) -> bool:
    """Whether all of ``region`` lies in the lung box."""
    points = np.argwhere(region)
    return bool(np.all((points >= lungs.start) & (points < lungs.stop)))


def test_lungs_lie_wholly_inside_with_their_margin(chest: HuArray) -> None:
    lungs = find_lungs(chest, SPACING_MM, "chest")
    assert covered(lungs, RIGHT | LEFT) > 0.9999
    points = np.argwhere(RIGHT | LEFT)
    before_mm = (points.min(axis=0) - lungs.start) * SPACING_MM
    after_mm = (np.array(lungs.stop) - 1 - points.max(axis=0)) * SPACING_MM
    assert np.all(before_mm >= MARGIN_MM - 4.5)
    assert np.all(after_mm >= MARGIN_MM - 4.5)
    assert np.all(before_mm <= MARGIN_MM + 8)
    assert np.all(after_mm <= MARGIN_MM + 8)


def test_chest_wall_table_and_air_lie_outside(chest: HuArray) -> None:
    lungs = find_lungs(chest, SPACING_MM, "chest")
    body = ellipsoid((0, 0, 0), (1000, 115, 170))
    wall = body & ~ellipsoid((0, 0, 0), (1000, 100, 155))
    assert covered(lungs, wall) < 0.001
    assert covered(lungs, ~body) == 0.0


def test_trachea_does_not_stretch_the_box_into_the_neck(chest: HuArray) -> None:
    lungs = find_lungs(chest, SPACING_MM, "chest")
    top = int(np.argwhere(RIGHT | LEFT)[:, 0].max())
    assert lungs.stop[0] - top <= 5


def test_mask_is_uint8_on_isotropic_cells_over_the_whole_volume(chest: HuArray) -> None:
    lungs = find_lungs(chest, SPACING_MM, "chest")
    extent_mm = np.array(SHAPE) * SPACING_MM
    assert lungs.mask.dtype == np.uint8
    assert np.allclose(extent_mm / lungs.mask.shape, CELL_MM, rtol=0.02)


def test_places_outside_the_volume_are_outside_the_lungs(chest: HuArray) -> None:
    lungs = find_lungs(chest, SPACING_MM, "chest")
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
    lungs = find_lungs(chest, SPACING_MM, "chest")
    assert covered(lungs, RIGHT | LEFT) > 0.999


@pytest.mark.parametrize(("first", "last"), [(45, 192), (0, 147), (45, 147)])
def test_lung_cut_by_the_field_of_view_is_found(chest: HuArray, first: int, last: int) -> None:
    cut = np.ascontiguousarray(chest[:, :, first:last])
    lungs = find_lungs(cut, SPACING_MM, "chest")
    assert covered(lungs, (RIGHT | LEFT)[:, :, first:last]) > 0.98


def test_lung_cut_by_a_round_field_of_view_is_found(chest: HuArray) -> None:
    y, x = np.ogrid[: SHAPE[1], : SHAPE[2]]
    seen = (y - 74.5) ** 2 + (x - 95.5) ** 2 < 54**2
    chest[:, ~seen] = -1024
    lungs = find_lungs(chest, SPACING_MM, "chest")
    assert covered(lungs, (RIGHT | LEFT) & seen) > 0.98


def test_noise_of_80_hu_changes_little(chest: HuArray) -> None:
    """The region of a very noisy scan differs from the clean one's by less than 2 percent."""
    noise = np.random.default_rng(1).normal(0, 80, SHAPE)
    noisy = np.clip(chest + noise, -1024, 3071).astype(np.int16)
    clean, found = (find_lungs(hu, SPACING_MM, "chest").mask for hu in (chest, noisy))
    assert np.mean(clean != found) < 0.02 * clean.mean()
    assert covered(find_lungs(noisy, SPACING_MM, "chest"), RIGHT | LEFT) > 0.999


def test_thick_slices(chest: HuArray) -> None:
    lungs = find_lungs(chest[::2], (6.0, 2.0, 2.0), "chest")
    assert covered(lungs, (RIGHT | LEFT)[::2]) > 0.999


@pytest.mark.parametrize("first", [12, 20, 44, 70, 75])
def test_slab_of_27_mm_is_enough(chest: HuArray, first: int) -> None:
    lungs = find_lungs(chest[first : first + 9], SPACING_MM, "slab")
    assert covered(lungs, (RIGHT | LEFT)[first : first + 9]) > 0.99
    assert (lungs.start[0], lungs.stop[0]) == (0, 9)


def test_patient_lying_prone_and_views_with_negative_strides(chest: HuArray) -> None:
    lungs = find_lungs(chest[:, ::-1, ::-1], SPACING_MM, "chest")
    assert covered(lungs, (RIGHT | LEFT)[:, ::-1, ::-1]) > 0.9999


@pytest.mark.parametrize("name", ["qin_lsc_0014", "qin_lsc_0088", "cmb_crc_01068"])
def test_lesion_of_a_real_scan_lies_inside(shared_data: Path, name: str) -> None:
    volume = read_study(shared_data / "ct" / name).volume
    lungs = find_lungs(volume.hu, volume.geometry.spacing_mm, name)
    with (shared_data / "ct/scans.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["scan"] == name)
    centre_mm, diameter_mm = [float(row[axis]) for axis in "xyz"], float(row["diameter_mm"])
    ball = np.random.default_rng(0).uniform(-1, 1, (4000, 3)) * diameter_mm / 2
    points_mm = np.array(centre_mm) + ball[np.linalg.norm(ball, axis=1) < diameter_mm / 2]
    index = volume.geometry.to_index(points_mm)
    assert lungs.contains(index).all()
    assert np.all((index >= np.array(lungs.start) - 0.5) & (index <= np.array(lungs.stop) - 0.5))


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


@pytest.mark.parametrize("scene", [head, abdomen, water, air])
@pytest.mark.parametrize("noise_hu", [0, 30])
def test_volume_without_lung_is_refused(scene: Callable[[Mask], HuArray], noise_hu: int) -> None:
    noise = np.random.default_rng(3).normal(0, noise_hu, SHAPE)
    hu = scene(ellipsoid((0, 0, 0), (1000, 115, 170))) + noise
    with pytest.raises(NoLung, match="no lung in the volume") as caught:
        find_lungs(np.clip(hu, -1024, 3071).astype(np.int16), SPACING_MM, "series/7")
    assert str(caught.value.file) == "series/7"


def test_refusal_says_what_was_found() -> None:
    """The reason gives the size of the largest air-filled region, here bowel gas of 0.29 l."""
    hu = abdomen(ellipsoid((0, 0, 0), (1000, 115, 170)))
    with pytest.raises(NoLung, match=r"largest air-filled region holds 0\.(2|3)\d l"):
        find_lungs(hu, SPACING_MM, "abdomen")


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 8, 8), (1, 512, 512)])
def test_volume_too_small_for_lungs_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(NoLung):
        find_lungs(np.full(shape, -850, dtype=np.int16), (1.0, 0.7, 0.7), "tiny")


def test_abdomen_of_a_real_scan_is_refused(shared_data: Path) -> None:
    volume = read_study(shared_data / "ct" / "qin_lsc_0028").volume
    with pytest.raises(NoLung):
        find_lungs(volume.hu[:14], volume.geometry.spacing_mm, "qin_lsc_0028")
