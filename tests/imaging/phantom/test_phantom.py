from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from imaging.phantom.phantom import Phantom, PhantomSpec, make_phantom, phantom_header
from imaging.phantom.scanner import Kernel, Scanner, scan
from imaging.volume import HuArray

SMALL = PhantomSpec(
    seed=3,
    spacing_mm=(1.5, 1.25, 1.25),
    size_mm=(72.0, 250.0, 320.0),
    nodule_count=6,
    diameter_mm=(9.0, 18.0),
    dose_noise_hu=15.0,
)
SLAB = replace(SMALL, size_mm=(12.0, 250.0, 320.0), spacing_mm=(3.0, 2.0, 2.0), nodule_count=0)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    """A slab of 72 mm through the carina with six nodules."""
    return make_phantom(SMALL)


def _median_hu(phantom: Phantom, label: int, part: float) -> float:
    """Median HU within a part of the nodule's radius around its centre."""
    nodule = phantom.nodules[label - 1]
    index = np.argwhere(phantom.nodule_mask == label)
    away = np.linalg.norm(
        phantom.volume.geometry.to_world(index) - np.array(nodule.centre_mm), axis=1
    )
    near = index[away < part * nodule.diameter_mm / 2]
    return float(np.median(phantom.volume.hu[tuple(near.T)]))


def test_same_spec_gives_same_voxels_and_truth() -> None:
    spec = replace(SLAB, nodule_count=1, diameter_mm=(4.0, 5.0))
    first, second = make_phantom(spec), make_phantom(spec)
    assert np.array_equal(first.volume.hu, second.volume.hu)
    assert np.array_equal(first.nodule_mask, second.nodule_mask)
    assert first.nodules == second.nodules
    assert first.volume.geometry.origin_mm == second.volume.geometry.origin_mm


def test_another_seed_gives_another_patient() -> None:
    first, second = (make_phantom(replace(SLAB, seed=s)).volume.hu for s in (1, 2))
    assert np.abs(first.astype(int) - second).mean() > 50


def test_volume_has_the_requested_spacing_and_size_and_names_no_patient(phantom: Phantom) -> None:
    assert phantom.volume.hu.dtype == np.int16
    assert phantom.volume.shape == SMALL.shape == (48, 200, 256)
    assert phantom.volume.geometry.spacing_mm == SMALL.spacing_mm
    assert np.array_equal(phantom.volume.geometry.direction, np.eye(3))
    assert "SYNTHETIC PHANTOM" in phantom.volume.description
    assert phantom_header(SMALL).patient_name == "SYNTHETIC^PHANTOM"
    assert phantom_header(SMALL).series_description.startswith("SYNTHETIC PHANTOM")


def test_all_nodules_are_there_and_their_truth_agrees_with_the_mask(phantom: Phantom) -> None:
    assert set(np.unique(phantom.nodule_mask)) == set(range(7))
    assert all(8.5 < n.diameter_mm < 18.5 for n in phantom.nodules)
    voxel_ml = float(np.prod(SMALL.spacing_mm))
    for label, nodule in enumerate(phantom.nodules, start=1):
        points = phantom.volume.geometry.to_world(np.argwhere(phantom.nodule_mask == label))
        assert np.linalg.norm(points.mean(axis=0) - np.array(nodule.centre_mm)) < 0.6
        diameter = np.cbrt(6 * len(points) * voxel_ml / np.pi)
        assert diameter == pytest.approx(nodule.diameter_mm, rel=0.06)


def test_nodules_lie_in_the_lung(phantom: Phantom) -> None:
    for nodule in phantom.nodules:
        angle = np.random.default_rng(0).standard_normal((400, 3))
        angle /= np.linalg.norm(angle, axis=1, keepdims=True)
        around = np.array(nodule.centre_mm) + angle * (nodule.diameter_mm * 0.5 + 4)
        index = np.rint(phantom.volume.geometry.to_index(around)).astype(int)
        index = np.clip(index, 0, np.array(phantom.volume.shape) - 1)
        assert np.mean(phantom.volume.hu[tuple(index.T)] < -650) > 0.25, nodule


@pytest.mark.parametrize("seed", [3, 5])
def test_density_is_what_the_kind_says(seed: int) -> None:
    made = make_phantom(replace(SMALL, seed=seed))
    for label, nodule in enumerate(made.nodules, start=1):
        middle = _median_hu(made, label, 0.6)
        if nodule.kind.startswith("solid"):
            assert middle > -40, nodule
        elif nodule.kind.startswith("ground-glass"):
            assert -760 < middle < -400, nodule
        else:
            inside = made.volume.hu[made.nodule_mask == label]
            assert np.percentile(inside, 97) > -150, nodule
            assert np.percentile(inside, 30) < -350, nodule


def test_chest_holds_lung_bone_and_soft_tissue(phantom: Phantom) -> None:
    hu = phantom.volume.hu
    litre = hu.size * float(np.prod(SMALL.spacing_mm)) / 1e6
    share = {
        "lung": np.mean((hu > -950) & (hu < -700)),
        "soft": np.mean((hu > -10) & (hu < 110)),
        "bone": np.mean(hu > 300),
    }
    assert 1.0 < share["lung"] * litre < 2.4
    assert 0.05 < share["soft"] < 0.5
    assert 0.005 < share["bone"] < 0.06


def test_left_is_where_the_heart_and_the_aorta_point() -> None:
    """The heart's mass lies on the patient's left, at larger x; the spine lies behind."""
    hu = make_phantom(replace(SLAB, size_mm=(100.0, 250.0, 320.0))).volume.hu
    low = hu[:8]
    x = np.arange(hu.shape[2]) - (hu.shape[2] - 1) / 2
    heart = (low > 20) & (low < 320) & (np.abs(x) < 40)
    front = heart[:, :62]
    assert (front * x).sum() / front.sum() > 2
    bone = (low > 300) & (np.abs(x) < 12)
    assert bone[:, 62:].sum() > 3 * bone[:, :62].sum()


def test_noise_has_the_requested_strength() -> None:
    clean = make_phantom(replace(SLAB, dose_noise_hu=0.0)).volume.hu.astype(float)
    noisy = make_phantom(replace(SLAB, dose_noise_hu=30.0)).volume.hu
    lung = (clean > -930) & (clean < -780)
    assert (noisy - clean)[lung].std() == pytest.approx(30, rel=0.3)


def test_progress_rises_to_one() -> None:
    parts: list[float] = []
    make_phantom(SLAB, lambda part, what: parts.append(part) if what else None)
    assert parts == sorted(parts)
    assert parts[-1] == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"spacing_mm": (0.0, 1.0, 1.0)},
        {"size_mm": (0.5, 300.0, 300.0)},
        {"diameter_mm": (9.0, 4.0)},
        {"nodule_count": 300},
        {"dose_noise_hu": -1.0},
        {"kernel": "blunt"},
    ],
)
def test_impossible_spec_is_refused_with_its_value(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PhantomSpec(seed=1, **wrong)


WATER = np.zeros((6, 96, 96), dtype=np.int16)


def _scan(
    anatomy: HuArray, kernel: Kernel = "soft", slice_mm: float = 1.0, noise: float = 0.0
) -> HuArray:
    """Scan slices of 1 mm."""
    scanner, slices = Scanner((slice_mm, 0.7, 0.7), kernel, noise), int(len(anatomy) / slice_mm)
    return scan(anatomy, 1.0, slices, scanner, np.random.SeedSequence(3), lambda _: None)


def _likeness(noise: HuArray) -> float:
    """Correlation of neighbours in a row."""
    return float(np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1])


def test_sharp_kernel_has_finer_grain_than_soft() -> None:
    soft, sharp = (_scan(WATER, kernel, noise=30.0) for kernel in ("soft", "sharp"))
    assert _likeness(soft) > 0.5 > _likeness(sharp) + 0.2


def test_sharp_kernel_keeps_an_edge_steeper() -> None:
    edge = np.full((3, 64, 64), -850, dtype=np.int16)
    edge[:, :, 32:] = 40
    soft, sharp = (int(np.diff(_scan(edge, k)[1, 32]).max()) for k in ("soft", "sharp"))
    assert sharp > 1.3 * soft


@pytest.mark.parametrize(("slice_mm", "expected"), [(1.0, 900.0), (3.0, 300.0), (2.0, 450.0)])
def test_slice_thickness_spreads_a_thin_plane(slice_mm: float, expected: float) -> None:
    plane = np.zeros((9, 32, 32), dtype=np.int16)
    plane[4] = 900
    result = _scan(plane, slice_mm=slice_mm)
    assert result[int(4 / slice_mm)].mean() == pytest.approx(expected, abs=1)


def test_noise_of_neighbouring_slices_is_independent() -> None:
    noise = _scan(WATER, noise=30.0)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1


def test_without_noise_flat_water_stays_flat() -> None:
    assert not _scan(WATER, "sharp").any()
