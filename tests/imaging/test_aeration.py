"""How much of the lungs is not aerated, in health and with drawn pneumonia."""

from pathlib import Path

import pytest

from edge.limitations import MAX_OPAQUE_SHARE, MIN_SIDE_SHARE
from imaging.lung_tissue import opaque_share
from imaging.lungs import find_lungs
from imaging.phantom.phantom import PhantomSpec, make_phantom
from imaging.read import read_study
from imaging.volume import HuArray, Triple
from tests.imaging.diffuse import with_patches
from tests.imaging.test_coverage import CUT, WHOLE, real

SPACING_MM = (2.5, 1.5, 1.5)


@pytest.fixture(scope="module")
def chest() -> HuArray:
    """A chest with nodules of up to 30 mm, which are not diffuse disease."""
    return make_phantom(PhantomSpec(seed=2, spacing_mm=SPACING_MM, nodule_count=8)).volume.hu


def share(hu: HuArray, spacing_mm: Triple = SPACING_MM) -> float:
    return opaque_share(find_lungs(hu, spacing_mm, "chest"))


def test_lungs_with_nodules_are_aerated(chest: HuArray) -> None:
    assert share(chest) < 0.01


@pytest.mark.parametrize(("hu_of_patch", "least"), [(-600.0, 0.05), (-680.0, 0.03)])
def test_ground_glass_is_measured(chest: HuArray, hu_of_patch: float, least: float) -> None:
    ill = with_patches(chest, SPACING_MM, count=10, radius_mm=22.0, hu_of_patch=hu_of_patch)
    assert share(ill) > max(least, MAX_OPAQUE_SHARE)


def test_consolidation_between_aerated_lung_is_measured(chest: HuArray) -> None:
    ill = with_patches(chest, SPACING_MM, count=14, radius_mm=24.0, hu_of_patch=20.0)
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
