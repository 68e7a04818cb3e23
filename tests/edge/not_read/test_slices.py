"""Slices out of order, lost areas, noise, blur and turned images: none keeps the guarantee.

Each recipe changes the HU of two real scans and of a phantom; its limitation names what is wrong.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.limitations import limitations_of
from imaging.errors import StudyError
from imaging.lungs import Lungs, find_lungs
from imaging.phantom.phantom import PhantomSpec, make_phantom
from imaging.preprocess import preprocess
from imaging.read import read_study
from imaging.volume import Geometry, HuArray, LimitationKind, Study, StudyHeader, Volume
from imaging.volume_checks import require_sane
from tests.conftest import SHARED_DATA
from tests.edge.builders import TERMS

ADULT = StudyHeader(age="060Y", kernel="STANDARD")
Change = Callable[[HuArray, "Chest"], HuArray]


class Chest:
    """A sound scan, and places in its lungs."""

    def __init__(self, volume: Volume) -> None:
        self.hu, self.geometry = volume.hu, volume.geometry
        self.lungs: Lungs = find_lungs(self.hu, self.geometry.spacing_mm, "chest")

    def box(self, at: "Place", size_mm: tuple[float, float]) -> tuple[slice, ...]:
        """Voxels around a place in the lung box, from 0 to 1 each; height, and side in mm."""
        sizes = (size_mm[0], size_mm[1], size_mm[1])
        ends, spacing_mm, found = (self.lungs.start, self.lungs.stop), self.geometry.spacing_mm, []
        for first, stop, part, size, mm in zip(*ends, at, sizes, spacing_mm, strict=True):
            begin = round(first + part * (stop - first) - size / mm / 2)
            found.append(slice(max(begin, 0), max(begin, 0) + max(1, round(size / mm))))
        return tuple(found)


@cache
def chest(name: str) -> Chest:
    if name == "phantom":
        return Chest(make_phantom(PhantomSpec(seed=2, spacing_mm=(2.5, 1.0, 1.0))).volume)
    if not SHARED_DATA.is_dir():
        pytest.skip("no shared data")
    return Chest(read_study(SHARED_DATA / name).volume)


SCANS = [
    "phantom",
    *(pytest.param(name, marks=pytest.mark.long) for name in ("lidc/lidc_0001", "ct/qin_lsc_0028")),
]


def said(hu: HuArray, geometry: Geometry) -> str:
    """What reading a volume file of these voxels says: its refusal, or its limitations."""
    file = Path("volume.nii")
    try:
        measures = require_sane(hu, geometry, file)
        volume = Volume(hu, geometry, measures=measures)
        found = limitations_of(Study(volume, file, ADULT), preprocess(volume), (), TERMS)
    except StudyError as error:
        return str(error)
    return " ".join(one.text for one in found)


def order(places: Callable[[int], Iterable[int]]) -> Change:
    """Slices in the order that ``places`` makes of their number."""
    return lambda hu, _: hu[np.fromiter(places(len(hu)), int)]


def reversed_blocks(size: int, first: int = 0, last: int = 999) -> Change:
    def places(count: int) -> Iterable[int]:
        found = np.arange(count)
        for begin in range(first, min(last, count - size), size):
            found[begin : begin + size] = found[begin : begin + size][::-1].copy()
        return found

    return order(places)


def moved(count: int) -> Iterable[int]:
    """A block of 10 slices lies 12 slices further on."""
    found = [*range(count)]
    block, found[40:50] = found[40:50], []
    return [*found[:52], *block, *found[52:]]


MIDDLE = (0.5, 0.5, 0.22)
Place = tuple[float, float, float]


def tile(value: int, side_mm: float, height_mm: float, at: Place = MIDDLE) -> Change:

    def change(hu: HuArray, chest: Chest) -> HuArray:
        hu = hu.copy()
        hu[chest.box(at, (height_mm, side_mm))] = value
        return hu

    return change


def tiles(hu: HuArray, chest: Chest) -> HuArray:
    for z in (0.3, 0.5, 0.6):
        for y in (0.35, 0.5, 0.65):
            for x in (0.15, 0.25, 0.75, 0.85):
                hu = tile(-700, 10, 10, (z, y, x))(hu, chest)
    return hu


def strip(hu: HuArray, chest: Chest) -> HuArray:
    hu = hu.copy()
    z, y, _ = chest.box((0.45, 0.6, 0.25), (1.0, 12.0))
    hu[z, y, : hu.shape[2] // 2] = 40
    return hu


def noise(sigma: float) -> Change:
    rng = np.random.default_rng(1)
    return lambda hu, _: np.clip(hu + rng.normal(0, sigma, hu.shape), -1024, 3071).astype(np.int16)


def blur(sigma_mm: float) -> Change:
    def change(hu: HuArray, chest: Chest) -> HuArray:
        pixels = sigma_mm / chest.geometry.spacing_mm[1]
        return np.stack([cv2.GaussianBlur(plane, (0, 0), pixels) for plane in hu])

    return change


ORDER, LOST, NOISY = "may be out of order", "areas of constant value", "noisier than"
TURNED = "with head and feet exchanged", "front and back exchanged", "turned by 90 degrees"
BLURRED = "images are blurred"
RECIPES: dict[str, tuple[Change, str]] = {
    "every pair exchanged": (reversed_blocks(2), ORDER),
    "every triple reversed": (reversed_blocks(3), ORDER),
    "blocks of 4 reversed": (reversed_blocks(4), ORDER),
    "blocks of 5 reversed": (reversed_blocks(5), ORDER),
    "25 pairs exchanged": (reversed_blocks(2, 31, 81), ORDER),
    "one pair exchanged": (reversed_blocks(2, 52, 53), ORDER),
    "one block of 12 reversed": (reversed_blocks(12, 44, 45), ORDER),
    "a block moved": (order(moved), ORDER),
    "45 mm of -850": (tile(-850, 45, 32), LOST),
    "45 mm of 40": (tile(40, 45, 32, (0.6, 0.5, 0.8)), LOST),
    "45 mm of -1000": (tile(-1000, 45, 32), LOST),
    "90 mm of -1000": (tile(-1000, 90, 22, (0.4, 0.5, 0.75)), LOST),
    "45 mm of -1024 in the upper lung": (tile(-1024, 45, 32, (0.75, 0.5, 0.25)), LOST),
    "22 mm of -700 in the lower lung": (tile(-700, 22, 20, (0.3, 0.6, 0.8)), LOST),
    "22 mm of 60 at the wall": (tile(60, 22, 20, (0.5, 0.5, 0.1)), LOST),
    "20 mm of -850 in one slice": (tile(-850, 20, 1), LOST),
    "many tiles": (tiles, LOST),
    "a strip of one slice": (strip, LOST),
    "noise of 147 HU": (noise(147), NOISY),
    "noise of 120 HU": (noise(120), NOISY),
    "blur of 2 mm": (blur(2), BLURRED),
    "blur of 3 mm": (blur(3), BLURRED),
    "head down": (lambda hu, _: hu[::-1], TURNED[0]),
    "upside down": (lambda hu, _: hu[:, ::-1], TURNED[1]),
    "turned by 180 degrees": (lambda hu, _: hu[:, ::-1, ::-1], TURNED[1]),
    "transposed": (lambda hu, _: hu.transpose(0, 2, 1), TURNED[2]),
    "turned by 90 degrees": (lambda hu, _: np.rot90(hu, axes=(1, 2)), TURNED[2]),
}


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("name", RECIPES)
def test_spoiled_images_lose_the_guarantee_for_what_is_wrong(name: str, scan: str) -> None:
    change, reason = RECIPES[name]
    sound = chest(scan)
    hu = np.ascontiguousarray(change(sound.hu, sound))
    found = said(hu, sound.geometry)
    # what is far out of order is refused
    assert reason in found or (reason is ORDER and "are unlike the slices beside them" in found)
    assert reason not in TURNED or found.startswith("The images look like")


@pytest.mark.parametrize("scan", SCANS)
def test_a_sound_scan_keeps_it(scan: str) -> None:
    kept = said(chest(scan).hu, chest(scan).geometry)
    assert kept in ("", "Slices are 3 mm apart, in calibration at most 2.5 mm.")


@pytest.mark.parametrize("spoil", [noise(30), blur(0.5), order(lambda count: range(0, count, 2))])
def test_a_little_noise_or_blur_and_thick_slices_are_sound(spoil: Change) -> None:
    sound = chest("phantom")
    hu = np.ascontiguousarray(spoil(sound.hu, sound))
    spacing_mm = (2.5 * len(sound.hu) / len(hu), *sound.geometry.spacing_mm[1:])
    text = said(hu, replace(sound.geometry, spacing_mm=spacing_mm))
    assert text == ("" if len(hu) == len(sound.hu) else text)
    assert not any(reason in text for reason in (ORDER, LOST, NOISY, BLURRED, *TURNED))


@pytest.mark.parametrize(("angle", "expected"), [(8, ""), (25, "25 degrees oblique")])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_oblique_reformat_is_told_with_its_angle(axis: int, angle: int, expected: str) -> None:
    sound = chest("phantom")
    turn, _ = cv2.Rodrigues(np.eye(3)[axis] * np.radians(angle))
    text = said(sound.hu, replace(sound.geometry, direction=turn))
    assert text.startswith(f"The images lie {expected}" if expected else "")
    assert bool(text) == bool(expected)


def test_where_the_images_may_be_turned_no_side_is_told() -> None:
    sound = chest("phantom")
    volume = Volume(np.ascontiguousarray(sound.hu[:, ::-1]), sound.geometry)
    (one,) = preprocess(volume).measures.odd
    assert one.kind is LimitationKind.ORIENTATION
