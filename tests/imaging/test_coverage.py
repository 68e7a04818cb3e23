"""What of the lungs is lost: where a volume ends inside them, and how much is not aerated."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from edge.limitations import MAX_OPAQUE_SHARE, MIN_SIDE_SHARE
from imaging.coverage import Coverage, coverage_of
from imaging.lungs import find_lungs, opaque_share
from imaging.phantom.phantom import PhantomSpec, make_phantom
from imaging.preprocess import preprocess
from imaging.read import read_study
from imaging.volume import HuArray, Triple
from tests.imaging.diffuse import with_patches

SPACING_MM = (2.5, 1.5, 1.5)

WHOLE = [
    *(f"ct/{name}" for name in ("qin_lsc_0014", "qin_lsc_0028", "qin_lsc_0049", "qin_lsc_0088")),
    "ct/qin_lung_01_0007",
    *(f"lidc/lidc_{n}" for n in ("0001", "0003", "0004", "0005", "0021", "0028", "0063", "0295")),
    "lidc/lidc_0306",
]
CUT = {
    "ct/cmb_crc_01068": ["base"],
    "ct/lungfcp_01_0001": ["base"],
    "ct/lidc_slabs/LIDC-IDRI-0001": ["apex", "base"],
    "ct/lidc_slabs/LIDC-IDRI-0003": ["apex", "base"],
}


@pytest.fixture(scope="module")
def chest() -> HuArray:
    """A whole chest of 300 mm; its lungs end 20 mm and more from the ends."""
    return make_phantom(PhantomSpec(seed=2, spacing_mm=SPACING_MM, nodule_count=0)).volume.hu


@cache
def real(path: Path) -> tuple[Coverage | None, float | None, float | None]:
    """Coverage, opaque share and smaller lung of a real scan; reading one takes a second or two."""
    box = preprocess(read_study(path).volume)
    return box.coverage, box.opaque_share, box.smaller_share


def coverage(hu: HuArray, spacing_mm: Triple = SPACING_MM) -> Coverage:
    return coverage_of(find_lungs(np.ascontiguousarray(hu), spacing_mm, "chest"), spacing_mm[0])


def sides(found: Coverage) -> list[str]:
    return [cut.side for cut in found.cuts]


def test_a_whole_chest_is_complete(chest: HuArray) -> None:
    found = coverage(chest)
    assert found.cuts == ()
    assert 200 < found.lung_height_mm < 290


def test_half_a_chest_a_slab_and_the_bases_alone_are_told_to_be_cut(chest: HuArray) -> None:
    assert sides(coverage(chest[60:])) == ["base"]
    assert sides(coverage(chest[:60])) == ["apex"]
    slab = coverage(chest[60:69])
    assert sides(slab) == ["apex", "base"]
    assert all(cut.area_cm2 > 150 for cut in slab.cuts)
    assert slab.lung_height_mm == pytest.approx(22.5)


@pytest.mark.parametrize("away", [2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize("end", ["apex", "base"])
def test_every_cut_8_mm_or_more_inside_the_lungs_is_told(
    chest: HuArray, end: str, away: int
) -> None:
    lungs = find_lungs(chest, SPACING_MM, "chest")
    lung = np.flatnonzero((lungs.air & (lungs.hu > -930)).sum(axis=(1, 2)) > 9)
    cell = len(chest) / lungs.air.shape[0]
    if end == "base":
        part = chest[round((lung[0] + away) * cell) :]
    else:
        part = chest[: round((lung[-1] + 1 - away) * cell)]
    assert sides(coverage(part)) == [end]


def test_a_small_field_of_view_is_told_with_its_side(chest: HuArray) -> None:
    width = chest.shape[2]
    assert sides(coverage(chest[:, :, : int(0.66 * width)])) == ["left"]
    assert sides(coverage(chest[:, :, int(0.3 * width) :])) == ["right"]
    assert sides(coverage(chest[:, int(0.4 * width) :])) == ["front"]


def test_a_round_field_of_view_cuts_only_when_it_is_small(chest: HuArray) -> None:
    half = chest.shape[1] / 2
    y, x = np.ogrid[: chest.shape[1], : chest.shape[2]]
    away = np.hypot(y + 0.5 - half, x + 0.5 - half)
    assert coverage(np.where(away < 0.9 * half, chest, -1024)).cuts == ()
    assert sides(coverage(np.where(away < 0.7 * half, chest, -1024))) == ["right", "left"]


def test_empty_lungs_are_told_to_be_cut_too(chest: HuArray) -> None:
    empty = np.where((chest > -960) & (chest < -700), -945, chest).astype(np.int16)
    noisy = empty + np.random.default_rng(0).normal(0, 15, empty.shape)
    part = np.clip(noisy, -1024, 3071).astype(np.int16)[60:]
    assert sides(coverage(part)) == ["base"]


@pytest.mark.parametrize("scan", WHOLE)
@pytest.mark.long
def test_whole_real_scans_are_complete(shared_data: Path, scan: str) -> None:
    found, _, _ = real(shared_data / scan)
    assert found is not None
    assert found.cuts == ()
    assert found.lung_height_mm > 180


@pytest.mark.parametrize("scan", CUT)
@pytest.mark.long
def test_partial_real_scans_are_told(shared_data: Path, scan: str) -> None:
    found, _, _ = real(shared_data / scan)
    assert found is not None
    assert sides(found) == CUT[scan]


@pytest.fixture(scope="module")
def nodular_chest() -> HuArray:
    """A chest with nodules of up to 30 mm, which are not diffuse disease."""
    return make_phantom(PhantomSpec(seed=2, spacing_mm=SPACING_MM, nodule_count=8)).volume.hu


def share(hu: HuArray, spacing_mm: Triple = SPACING_MM) -> float:
    return opaque_share(find_lungs(hu, spacing_mm, "chest"))


def test_lungs_with_nodules_are_aerated(nodular_chest: HuArray) -> None:
    assert share(nodular_chest) < 0.01


@pytest.mark.parametrize(("hu_of_patch", "least"), [(-600.0, 0.05), (-680.0, 0.03)])
def test_ground_glass_is_measured(nodular_chest: HuArray, hu_of_patch: float, least: float) -> None:
    ill = with_patches(nodular_chest, SPACING_MM, count=10, radius_mm=22.0, hu_of_patch=hu_of_patch)
    assert share(ill) > max(least, MAX_OPAQUE_SHARE)


def test_consolidation_between_aerated_lung_is_measured(nodular_chest: HuArray) -> None:
    ill = with_patches(nodular_chest, SPACING_MM, count=14, radius_mm=24.0, hu_of_patch=20.0)
    assert share(ill) > MAX_OPAQUE_SHARE


@pytest.mark.parametrize("scan", [*WHOLE, *CUT])
@pytest.mark.long
def test_no_real_scan_counts_as_diffuse_disease(shared_data: Path, scan: str) -> None:
    """With masses of 36 mm, metastases, and atelectasis behind the lungs."""
    _, found, _ = real(shared_data / scan)
    assert found is not None
    assert found < 0.015


@pytest.mark.parametrize("scan", WHOLE)
@pytest.mark.long
def test_no_whole_scan_lacks_half_of_a_lung(shared_data: Path, scan: str) -> None:
    _, _, smaller = real(shared_data / scan)
    assert smaller is not None
    assert smaller > MIN_SIDE_SHARE + 0.1


@pytest.mark.long
def test_ground_glass_drawn_into_a_real_scan_is_measured(shared_data: Path) -> None:
    volume = read_study(shared_data / "lidc" / "lidc_0063").volume
    spacing_mm = volume.geometry.spacing_mm
    ill = with_patches(volume.hu, spacing_mm, count=10, radius_mm=20.0, hu_of_patch=-600.0)
    assert share(ill, spacing_mm) > MAX_OPAQUE_SHARE
