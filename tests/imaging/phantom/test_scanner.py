import numpy as np
import pytest

from imaging.phantom.scanner import Kernel, Scanner, scan
from imaging.volume import HuArray

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
