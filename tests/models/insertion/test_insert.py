from dataclasses import replace

import numpy as np
import pytest

from evaluation.lesion_insertion.scans import PreparedHost
from imaging.preprocess import preprocess
from imaging.volume import FloatArray, Triple, Volume
from models.insertion.donors import Donor
from models.insertion.insert import (
    APART_MM,
    MASS_MM,
    FreeSpace,
    Insertion,
    Occupied,
    insert,
    plan_masses,
    plan_nodules,
)
from tests.evaluation.plain_chest import LUNG_HU, RADIUS_MM, TISSUE_HU, chest, donor, host, in_lung


def inserted(before: Volume, centre_mm: Triple, scale: float = 1.0) -> Volume:
    """The volume with a nodule of 10 mm, made larger, at that place."""
    one = Insertion(0, donor(), scale, centre_mm=centre_mm, lung_hu=LUNG_HU)
    return insert(before, [one])


def dense(volume: Volume, before: Volume) -> tuple[float, FloatArray]:
    """Volume in mm^3 and centre (x, y, z) of what became dense, partial voxels by their share."""
    share = (volume.hu.astype(float) - before.hu) / (TISSUE_HU - LUNG_HU)
    at = np.argwhere(share > 0.02)
    weight = share[share > 0.02]
    centre = (at * weight[:, None]).sum(0) / weight.sum()
    voxel = float(np.prod(volume.geometry.spacing_mm))
    return float(weight.sum()) * voxel, volume.geometry.to_world(centre)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8)])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_place_and_size_are_exact(spacing: tuple[float, float, float], scale: float) -> None:
    before, point = chest(spacing), in_lung(1, 1.3)
    size, centre = dense(inserted(before, point, scale), before)
    assert centre == pytest.approx(np.array(point), abs=0.3)
    assert size == pytest.approx(np.pi / 6 * (10 * scale) ** 3, rel=0.2)


def test_no_seam_where_lungs_differ() -> None:
    """Lung of -900 HU becomes the host's -850; nothing around the nodule is darker."""
    before = chest((1.0, 1.0, 1.0))
    after = inserted(before, in_lung(0))
    changed = after.hu != before.hu
    assert changed.any()
    assert after.hu[changed].min() >= LUNG_HU - 8


def test_a_wall_is_never_made_less_dense() -> None:
    """A mass at the wall leaves the wall as it is, and the original untouched."""
    before = chest((1.0, 1.0, 1.0))
    copy = before.hu.copy()
    after = inserted(before, in_lung(0, -36.0), 3.0)
    assert (after.hu[copy == TISSUE_HU] >= TISSUE_HU - 1).all()
    assert (before.hu == copy).all()


def test_vessels_end_in_a_solid_nodule() -> None:
    """A thin vessel of 200 HU is not to be seen inside the nodule, and goes on outside it."""
    before = chest((1.0, 1.0, 1.0))
    z, y, x = (round(float(v)) for v in before.geometry.to_index(in_lung(0)))
    before.hu[z, y, x - 15 : x + 15] = 200
    after = inserted(before, in_lung(0))
    assert after.hu[z, y, x] == pytest.approx(TISSUE_HU, abs=6)
    assert after.hu[z, y, x + 12] == 200


def test_a_candidate_hits_in_half_the_diameter_or_in_the_outline() -> None:
    """Of a nodule of two lobes the centre lies between them."""
    lobes = donor(10.0)
    lobes = replace(lobes, cover=np.maximum(*(np.roll(lobes.cover, n, 2) for n in (-9, 9))))
    one = Insertion(0, lobes, 2.0, centre_mm=(10.0, 20.0, 30.0), lung_hu=LUNG_HU)
    assert one.hit_by((10.0, 20.0, 39.9))  # LUNA16's rule
    assert one.hit_by((28.0, 20.0, 30.0))
    assert one.hit_by((-8.0, 20.0, 30.0))
    assert not one.hit_by((10.0, 38.0, 30.0))
    assert not one.hit_by((10.0, 20.0, 300.0))


def test_an_insertion_beside_the_scan_changes_nothing() -> None:
    before = chest()
    assert (inserted(before, (5000.0, 0.0, 0.0)).hu == before.hu).all()


@pytest.fixture(scope="module")
def ready() -> PreparedHost:
    """The plain chest, with an occupied place in its right lung."""
    space = FreeSpace.of(preprocess(host().volume))
    return PreparedHost(host(), space, (Occupied(in_lung(0), 10.0),), {})


def donors(*diameters_mm: float) -> list[Donor]:
    return [donor(mm, f"test/{i}") for i, mm in enumerate(diameters_mm)]


def test_every_nodule_is_inserted_once(ready: PreparedHost) -> None:
    scans, not_placed = plan_nodules([ready], donors(*[6.0] * 7), 3, np.random.default_rng(0))
    assert not not_placed
    assert [len(scan.insertions) for scan in scans] == [3, 3, 1]
    assert sorted(one.donor_id for scan in scans for one in scan.insertions) == list(range(7))
    for scan in scans:
        places = [np.array(one.centre_mm) for one in scan.insertions]
        for number, place in enumerate(places):
            assert np.linalg.norm(place - in_lung(0)) > 13
            others = places[:number] + places[number + 1 :]
            assert all(np.linalg.norm(place - other) > APART_MM + 6 for other in others)


def test_masses_are_scaled_up_and_never_down(ready: PreparedHost) -> None:
    """Nodules of 15 mm and more become 30 to 60 mm, each in a scan of its own if there is room."""
    rng = np.random.default_rng(0)
    scans, not_placed = plan_masses([ready], donors(10.0, 20.0), rng)
    assert scans
    placed = [one for scan in scans for one in scan.insertions]
    assert len(placed) == len(scans)
    assert all(one.mass for one in placed)
    found = sorted([*placed, *not_placed], key=lambda one: one.diameter_mm)
    assert [one.donor_id for one in found] == [1] * len(MASS_MM)
    assert [one.diameter_mm for one in found] == pytest.approx(list(MASS_MM))


def test_the_same_seed_gives_the_same_scans(ready: PreparedHost) -> None:
    plans = [
        plan_nodules([ready], donors(6.0, 8.0), 2, np.random.default_rng(5))[0] for _ in range(2)
    ]
    places = [[one.centre_mm for scan in plan for one in scan.insertions] for plan in plans]
    assert places[0] == places[1]


@pytest.fixture(scope="module")
def space() -> FreeSpace:
    return FreeSpace.of(preprocess(chest()))


def test_the_middle_of_a_lung_is_farthest_from_its_wall(space: FreeSpace) -> None:
    """A lung of 80 mm has 40 mm of free lung in its middle."""
    z, y, x = (round(float(v) / 2) for v in space.box.geometry.to_index(in_lung(0)))
    assert space.clear_mm[z, y, x] == pytest.approx(RADIUS_MM, abs=4)
    assert space.clear_mm.max() == pytest.approx(RADIUS_MM, abs=4)


def test_places_lie_in_lung_and_keep_away(space: FreeSpace) -> None:
    """Twenty places are 8 mm from the wall and 25 mm from what is occupied."""
    occupied = (Occupied(in_lung(0), 20.0),)
    rng = np.random.default_rng(0)
    for _ in range(20):
        place = space.find(8.0, 5.0, occupied, rng)
        assert place is not None
        to_lungs = [np.linalg.norm(np.subtract(place, in_lung(side))) for side in (0, 1)]
        assert min(to_lungs) < RADIUS_MM - 5
        assert to_lungs[0] > 25


def test_none_is_found_without_room(space: FreeSpace) -> None:
    rng = np.random.default_rng(0)
    assert space.find(50.0, 50.0, (), rng) is None
    assert space.find(5.0, 5.0, (Occupied(in_lung(0), 300.0),), rng) is None


def test_the_lung_around_a_place_is_measured(space: FreeSpace) -> None:
    """The median of what is aerated, to within the window's rounding."""
    assert space.lung_hu(in_lung(1), 10.0) == pytest.approx(LUNG_HU, abs=6)
