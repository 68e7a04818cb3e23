from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from imaging.phantom.phantom import Phantom, PhantomSpec, make_phantom, phantom_header
from imaging.phantom.scanner import scan
from imaging.volume import HuArray

SMALL = PhantomSpec(
    seed=3,
    spacing_mm=(1.5, 1.25, 1.25),
    size_mm=(72.0, 250.0, 320.0),
    nodule_count=6,
    diameter_mm=(9.0, 18.0),
    dose_noise_hu=0.0,
)
SLAB = replace(SMALL, size_mm=(12.0, 250.0, 320.0), spacing_mm=(3.0, 2.0, 2.0), nodule_count=0)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    """A slab of 72 mm through the carina with six nodules, without noise."""
    return make_phantom(SMALL)


@pytest.fixture(scope="module")
def drawn(phantom: Phantom) -> npt.NDArray[np.int16]:
    """What the nodules change in the same chest."""
    return phantom.volume.hu - make_phantom(replace(SMALL, nodule_count=0)).volume.hu


def _around(phantom: Phantom, number: int, radius: float) -> npt.NDArray[np.bool_]:
    """The voxels within a multiple of the nodule's radius."""
    nodule = phantom.nodules[number]
    index = np.stack(np.indices(phantom.volume.shape), axis=-1)
    away = phantom.volume.geometry.to_world(index) - np.array(nodule.centre_mm)
    return np.asarray(np.linalg.norm(away, axis=-1) < radius * nodule.diameter_mm / 2)


def test_same_spec_gives_same_voxels_and_truth_and_another_seed_another_patient() -> None:
    spec = replace(SLAB, nodule_count=1, diameter_mm=(4.0, 5.0), dose_noise_hu=15.0)
    first, second, other = (make_phantom(replace(spec, seed=seed)) for seed in (3, 3, 1))
    assert np.array_equal(first.volume.hu, second.volume.hu)
    assert first.nodules == second.nodules
    assert first.volume.geometry.origin_mm == second.volume.geometry.origin_mm
    assert np.abs(first.volume.hu.astype(int) - other.volume.hu).mean() > 50


def test_volume_has_the_requested_spacing_and_size_and_names_no_patient(phantom: Phantom) -> None:
    assert phantom.volume.hu.dtype == np.int16
    assert phantom.volume.shape == SMALL.shape == (48, 200, 256)
    assert phantom.volume.geometry.spacing_mm == SMALL.spacing_mm
    assert np.array_equal(phantom.volume.geometry.direction, np.eye(3))
    assert "SYNTHETIC PHANTOM" in phantom.volume.description
    assert phantom_header(SMALL).patient_name == "SYNTHETIC^PHANTOM"
    assert phantom_header(SMALL).series_description.startswith("SYNTHETIC PHANTOM")


def test_truth_agrees_with_what_is_drawn_and_says_its_density(
    phantom: Phantom, drawn: npt.NDArray[np.int16]
) -> None:
    """What changes is as large as the nodules, and at their places, in the lung."""
    assert len(phantom.nodules) == 6
    voxel_ml = float(np.prod(SMALL.spacing_mm))
    for number, nodule in enumerate(phantom.nodules):
        assert 8.5 < nodule.diameter_mm < 18.5
        near = _around(phantom, number, 1.6)
        # half of what the outer part rises, which is of glass in a part-solid nodule
        half = np.percentile(drawn[_around(phantom, number, 0.9)], 20) / 2
        points = phantom.volume.geometry.to_world(np.argwhere(near & (drawn > half)))
        assert np.linalg.norm(points.mean(axis=0) - np.array(nodule.centre_mm)) < 1.0
        diameter = np.cbrt(6 * len(points) * voxel_ml / np.pi)
        assert diameter == pytest.approx(nodule.diameter_mm, rel=0.12)
        assert np.mean(phantom.volume.hu[near] < -650) > 0.25, nodule
        inside = phantom.volume.hu[_around(phantom, number, 0.6)]
        if nodule.kind.startswith("solid"):
            assert np.median(inside) > -40, nodule
        elif nodule.kind.startswith("ground-glass"):
            assert -760 < np.median(inside) < -400, nodule
        else:
            assert np.percentile(inside, 97) > -150, nodule


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


def test_noise_has_the_requested_strength_and_progress_rises_to_one() -> None:
    parts: list[float] = []
    noisy = make_phantom(
        replace(SLAB, dose_noise_hu=30.0), lambda part, what: parts.append(part) if what else None
    ).volume.hu
    clean = make_phantom(SLAB).volume.hu.astype(float)
    lung = (clean > -930) & (clean < -780)
    assert (noisy - clean)[lung].std() == pytest.approx(30, rel=0.3)
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
    ],
)
def test_impossible_spec_is_refused_with_its_value(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PhantomSpec(seed=1, **wrong)


def _scan(anatomy: HuArray, slices: int, noise: float = 0.0) -> HuArray:
    return scan(anatomy, (1.0, 0.7, 0.7), slices, noise, np.random.SeedSequence(3))


@pytest.mark.parametrize(("slices", "expected"), [(9, 900.0), (3, 300.0)])
def test_slice_thickness_spreads_a_thin_plane(slices: int, expected: float) -> None:
    plane = np.zeros((9, 32, 32), dtype=np.int16)
    plane[4] = 900
    assert _scan(plane, slices)[slices // 2].mean() == pytest.approx(expected, abs=1)


def test_noise_of_neighbouring_slices_is_independent_and_its_grain_is_coarse() -> None:
    water = np.zeros((6, 96, 96), dtype=np.int16)
    assert not _scan(water, 6).any()
    noise = _scan(water, 6, noise=30.0)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1
    assert np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1] > 0.5
