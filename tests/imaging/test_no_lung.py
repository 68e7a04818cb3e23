"""Where there is no lung the volume is refused, and told why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imaging.errors import NoLung
from imaging.lungs import find_lungs
from imaging.volume import HuArray
from tests.imaging.bodies import SHAPE, SPACING_MM, Mask, ellipsoid, read_series


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
    """A head, an abdomen with gas, a water phantom and mere air are refused by name."""
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
    """A volume of a few voxels or of one slice of air is refused, not met with an error."""
    with pytest.raises(NoLung):
        find_lungs(np.full(shape, -850, dtype=np.int16), (1.0, 0.7, 0.7), "tiny")


def test_abdomen_of_a_real_scan_is_refused(shared_data: Path) -> None:
    """The slices of a real scan below the lungs, with bowel gas in them, hold no lung."""
    volume = read_series(shared_data / "ct" / "qin_lsc_0028")
    with pytest.raises(NoLung):
        find_lungs(volume.hu[:14], volume.geometry.spacing_mm, "qin_lsc_0028")
