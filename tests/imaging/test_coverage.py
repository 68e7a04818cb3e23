"""What of the lungs is lost: where a volume ends inside them, and how much is not aerated."""

from pathlib import Path

import numpy as np
import pytest

from edge.limitations import MAX_OPAQUE_SHARE
from imaging.coverage import Coverage, coverage_of
from imaging.lung_tissue import opaque_share
from imaging.lungs import find_lungs
from imaging.phantom.phantom import PhantomSpec
from imaging.preprocess import preprocess
from imaging.read import read_study
from imaging.volume import HuArray
from tests.conftest import Draw
from tests.imaging.volumes import with_patches

SPACING_MM = (2.5, 1.5, 1.5)


@pytest.fixture(scope="module")
def chest(drawn: Draw) -> HuArray:
    """A whole chest of 300 mm; its lungs end 20 mm and more from the ends."""
    return drawn(PhantomSpec(seed=2, spacing_mm=SPACING_MM, nodule_count=0)).volume.hu


def coverage(hu: HuArray) -> Coverage:
    return coverage_of(find_lungs(np.ascontiguousarray(hu), SPACING_MM, "chest"), SPACING_MM[0])


def sides(found: Coverage) -> list[str]:
    return [cut.side for cut in found.cuts]


def test_a_slab_is_told_to_be_cut_at_both_ends(chest: HuArray) -> None:
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
    # of the thin edge behind the diaphragm what is 2.2 cm2 or more
    lung = np.flatnonzero((lungs.air & (lungs.hu > -930)).sum(axis=(1, 2)) >= 14)
    cell = len(chest) / lungs.air.shape[0]
    if end == "base":
        part = chest[round((lung[0] + away) * cell) :]
    else:
        part = chest[: round((lung[-1] + 1 - away) * cell)]
    assert sides(coverage(part)) == [end]


def test_a_small_field_of_view_is_told_with_its_side(chest: HuArray) -> None:
    width = chest.shape[2]
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


@pytest.mark.parametrize(
    ("scan", "cuts"),
    [
        *((f"ct/qin_lsc_{n}", []) for n in ("0014", "0028", "0049", "0088")),
        ("ct/qin_lung_01_0007", []),
        *((f"lidc/lidc_{n}", []) for n in ("0001", "0003", "0004", "0005", "0021", "0028")),
        *((f"lidc/lidc_{n}", []) for n in ("0063", "0295", "0306")),
        ("ct/cmb_crc_01068", ["base"]),
        ("ct/lungfcp_01_0001", ["base"]),
        ("ct/lidc_slabs/LIDC-IDRI-0001", ["apex", "base"]),
        ("ct/lidc_slabs/LIDC-IDRI-0003", ["apex", "base"]),
    ],
)
@pytest.mark.long
def test_where_real_scans_are_cut_is_told(shared_data: Path, scan: str, cuts: list[str]) -> None:
    found = preprocess(read_study(shared_data / scan).volume).measures.coverage
    assert found is not None
    assert sides(found) == cuts
    assert cuts or found.lung_height_mm > 180


@pytest.fixture(scope="module")
def nodular_chest(drawn: Draw) -> HuArray:
    """A chest with nodules of up to 30 mm, which are not diffuse disease."""
    return drawn(PhantomSpec(seed=2, spacing_mm=SPACING_MM, nodule_count=8)).volume.hu


def share(hu: HuArray) -> float:
    return opaque_share(find_lungs(hu, SPACING_MM, "chest"))


def test_lungs_with_nodules_are_aerated(nodular_chest: HuArray) -> None:
    assert share(nodular_chest) < 0.01


@pytest.mark.parametrize(
    ("count", "radius_mm", "hu_of_patch", "least"),
    [(10, 22.0, -600.0, 0.05), (10, 22.0, -680.0, 0.03), (14, 24.0, 20.0, MAX_OPAQUE_SHARE)],
    ids=["ground glass", "faint ground glass", "consolidation between aerated lung"],
)
def test_tissue_that_is_not_aerated_is_measured(
    nodular_chest: HuArray, count: int, radius_mm: float, hu_of_patch: float, least: float
) -> None:
    ill = with_patches(
        nodular_chest, SPACING_MM, count=count, radius_mm=radius_mm, hu_of_patch=hu_of_patch
    )
    assert share(ill) > max(least, MAX_OPAQUE_SHARE)
