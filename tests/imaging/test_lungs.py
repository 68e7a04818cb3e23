"""The lungs of a synthetic chest, whole and ill, and of real ones."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from imaging.lungs import MARGIN_MM, Lungs, find_lungs
from imaging.volume import HuArray, Triple
from tests.imaging.bodies import SHAPE, SPACING_MM, Mask, ellipsoid, read_series

RIGHT = ellipsoid((0, 0, -75), (110, 75, 55))
LEFT = ellipsoid((0, 0, 75), (110, 75, 55))


@pytest.fixture
def chest(fresh_chest: HuArray) -> HuArray:
    """A copy of the synthetic chest, to be changed as a test likes."""
    return fresh_chest.copy()


@pytest.fixture(scope="module")
def fresh_chest() -> HuArray:
    """A chest of ellipsoids: body, two lungs, windpipe, spine, heart, stomach gas and a table."""
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
    """Both lungs are inside the region, and the box ends about the margin beyond them."""
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
    """The skin, the table and the air around the patient are outside the region."""
    lungs = find_lungs(chest, SPACING_MM, "chest")
    body = ellipsoid((0, 0, 0), (1000, 115, 170))
    wall = body & ~ellipsoid((0, 0, 0), (1000, 100, 155))
    assert covered(lungs, wall) < 0.001
    assert covered(lungs, ~body) == 0.0


def test_windpipe_does_not_stretch_the_box_into_the_neck(chest: HuArray) -> None:
    """The box ends near the top of the lungs although the windpipe goes on."""
    lungs = find_lungs(chest, SPACING_MM, "chest")
    top = int(np.argwhere(RIGHT | LEFT)[:, 0].max())
    assert lungs.stop[0] - top <= 5


def test_mask_is_uint8_on_isotropic_cells_over_the_whole_volume(chest: HuArray) -> None:
    """The mask's cells are cubes of ``cell_mm``, to within rounding to whole numbers."""
    lungs = find_lungs(chest, SPACING_MM, "chest")
    extent_mm = np.array(SHAPE) * SPACING_MM
    assert lungs.mask.dtype == np.uint8
    assert np.allclose(extent_mm / lungs.mask.shape, lungs.cell_mm, rtol=0.02)


def test_places_outside_the_volume_are_outside_the_lungs(chest: HuArray) -> None:
    """An index beyond the array is answered with no, not with an error."""
    lungs = find_lungs(chest, SPACING_MM, "chest")
    inside = lungs.contains([[-5, 75, 60], [48, 75, 58], [4000, 75, 60], [48, -1, 58]])
    assert inside.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    "centre_mm",
    [(0, 0, -100), (30, 20, 95), (0, 45, -75), (-30, -45, 75), (20, 20, -45), (45, 5, 70)],
    ids=["wall right", "wall left", "back", "front", "mediastinum", "upper"],
)
def test_mass_of_60_mm_is_not_cut_away(chest: HuArray, centre_mm: Triple) -> None:
    """A soft-tissue mass of 60 mm on a wall of the lung stays inside the region."""
    mass = ellipsoid(centre_mm, (30, 30, 30))
    chest[mass] = 30
    lungs = find_lungs(chest, SPACING_MM, "chest")
    assert covered(lungs, mass & (RIGHT | LEFT)) > 0.99
    assert boxed(lungs, mass & (RIGHT | LEFT))


def lower_half(lung: Mask) -> Mask:
    """The half of a lung towards the feet."""
    part = lung.copy()
    part[SHAPE[0] // 2 :] = False
    return part


def back_half(lung: Mask) -> Mask:
    """The half of a lung towards the back."""
    part = lung.copy()
    part[:, : SHAPE[1] // 2] = False
    return part


def whole(lung: Mask) -> Mask:
    """All of a lung."""
    return lung


@pytest.mark.parametrize("part", [lower_half, back_half, whole])
@pytest.mark.parametrize("lung", [RIGHT, LEFT], ids=["right", "left"])
def test_opaque_part_of_one_lung_stays_inside(
    chest: HuArray, part: Callable[[Mask], Mask], lung: Mask
) -> None:
    """Fluid in half of one lung, or all of it, stays inside the region and the box."""
    chest[part(lung)] = 10
    lungs = find_lungs(chest, SPACING_MM, "chest")
    assert covered(lungs, RIGHT | LEFT) > 0.95
    assert boxed(lungs, RIGHT | LEFT)


@pytest.mark.parametrize("lung", [RIGHT, RIGHT | LEFT], ids=["one", "both"])
def test_ground_glass_stays_inside(chest: HuArray, lung: Mask) -> None:
    """Lungs whose density is raised by 300 HU are still lungs."""
    chest[lung & (chest < -500)] += 300
    lungs = find_lungs(chest, SPACING_MM, "chest")
    assert covered(lungs, RIGHT | LEFT) > 0.999


@pytest.mark.parametrize(("first", "last"), [(45, 192), (0, 147), (45, 147)])
def test_lung_cut_by_the_field_of_view_is_found(chest: HuArray, first: int, last: int) -> None:
    """A lung that reaches the edge of the picture is not taken for the air outside."""
    cut = np.ascontiguousarray(chest[:, :, first:last])
    lungs = find_lungs(cut, SPACING_MM, "chest")
    assert covered(lungs, (RIGHT | LEFT)[:, :, first:last]) > 0.98


def test_lung_cut_by_a_round_field_of_view_is_found(chest: HuArray) -> None:
    """Lung that ends at the padding around a round picture is not taken for air outside."""
    y, x = np.ogrid[: SHAPE[1], : SHAPE[2]]
    seen = (y - 74.5) ** 2 + (x - 95.5) ** 2 < 54**2
    chest[:, ~seen] = -1024
    lungs = find_lungs(chest, SPACING_MM, "chest")
    assert covered(lungs, (RIGHT | LEFT) & seen) > 0.98


def test_table_is_no_lung_although_it_is_as_dense_as_one(chest: HuArray) -> None:
    """A table of foam that ends at the edges of the picture stays outside the box."""
    assert find_lungs(chest, SPACING_MM, "chest").stop[1] < 139


def test_noise_of_80_hu_changes_little(chest: HuArray) -> None:
    """The region of a very noisy scan differs from the clean one's by less than 2 percent."""
    noise = np.random.default_rng(1).normal(0, 80, SHAPE)
    noisy = np.clip(chest + noise, -1024, 3071).astype(np.int16)
    clean, found = (find_lungs(hu, SPACING_MM, "chest").mask for hu in (chest, noisy))
    assert np.mean(clean != found) < 0.02 * clean.mean()
    assert covered(find_lungs(noisy, SPACING_MM, "chest"), RIGHT | LEFT) > 0.999


def test_thick_slices(chest: HuArray) -> None:
    """Slices of 6 mm lose no lung."""
    lungs = find_lungs(chest[::2], (6.0, 2.0, 2.0), "chest")
    assert covered(lungs, (RIGHT | LEFT)[::2]) > 0.999


@pytest.mark.parametrize("first", [12, 20, 44, 70, 75])
def test_slab_of_27_mm_is_enough(chest: HuArray, first: int) -> None:
    """Nine slices anywhere in the lungs are found, up to the first and the last slice."""
    lungs = find_lungs(chest[first : first + 9], SPACING_MM, "slab")
    assert covered(lungs, (RIGHT | LEFT)[first : first + 9]) > 0.99
    assert (lungs.start[0], lungs.stop[0]) == (0, 9)


def test_patient_lying_prone_and_views_with_negative_strides(chest: HuArray) -> None:
    """Turning the patient over, table below, loses no lung."""
    lungs = find_lungs(chest[:, ::-1, ::-1], SPACING_MM, "chest")
    assert covered(lungs, (RIGHT | LEFT)[:, ::-1, ::-1]) > 0.9999


def lesion(folder: Path, name: str) -> tuple[npt.NDArray[np.float64], float]:
    """Centre ``(x, y, z)`` mm and diameter of the known lesion of scan ``name``."""
    with (folder / "scans.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["scan"] == name)
    return np.array([float(row[k]) for k in "xyz"]), float(row["diameter_mm"])


@pytest.mark.parametrize("name", ["qin_lsc_0014", "qin_lsc_0088", "cmb_crc_01068"])
def test_lesion_of_a_real_scan_lies_inside(shared_data: Path, name: str) -> None:
    """The whole sphere of the known lesion lies in the region and in the box of a real chest."""
    volume = read_series(shared_data / "ct" / name)
    lungs = find_lungs(volume.hu, volume.geometry.spacing_mm, name)
    centre_mm, diameter_mm = lesion(shared_data / "ct", name)
    ball = np.random.default_rng(0).uniform(-1, 1, (4000, 3)) * diameter_mm / 2
    points_mm = centre_mm + ball[np.linalg.norm(ball, axis=1) < diameter_mm / 2]
    index = volume.geometry.to_index(points_mm)
    assert lungs.contains(index).all()
    assert np.all((index >= np.array(lungs.start) - 0.5) & (index <= np.array(lungs.stop) - 0.5))
