"""What does not look like an adult's chest in HU gets no guarantee, and the report says why."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import dcmread

from edge.limitations import limitations_of
from imaging.plausibility import HU, SIZE
from imaging.preprocess import preprocess
from imaging.read import read_study
from tests.edge.builders import TERMS
from tests.edge.recipes import STORED_AIR, Pixels, Recipe, Scan, base, outcome

__all__ = ["base"]
pytestmark = pytest.mark.long

TISSUE = 1064
ALL = range(133)
Change = Callable[[Scan], object]


def body_of(values: Pixels) -> Pixels:
    """The body, 1 or 0: what air at the edge of the slice does not reach."""
    air = np.pad((values < 724).astype(np.uint8), 1, constant_values=1)
    cv2.floodFill(air, None, (0, 0), 2)
    return np.asarray(air[1:-1, 1:-1] != 2, dtype=np.int16)


def filled(values: Pixels) -> Pixels:
    """Lungs whose every voxel below -500 HU is 20 HU."""
    values[(body_of(values) > 0) & (values < 524)] = TISSUE - 20
    return values


def fluid(level: Callable[[int], float]) -> Change:
    """Fill the lungs of each slice behind a level, from 0 at the front to 1 at the back."""

    def change(scan: Scan) -> None:
        for index in ALL:
            values = scan.pixels(index)
            row = round(min(max(level(index), 0.0), 1.0) * len(values))
            values[row:] = filled(values.copy())[row:]
            scan.edit_pixels([index], lambda _, values=values: values)

    return change


def white_out(top: int) -> Change:
    """Fill the lungs below a slice; the border is oblique, as no two neighbours may differ much."""
    return fluid(lambda index: 0.5 + (index - top) / 10)


def spacing(y: float, x: float) -> Change:
    def change(scan: Scan) -> None:
        row, column = map(float, dcmread(scan.files[0], stop_before_pixels=True).PixelSpacing)
        scan.set(ALL, PixelSpacing=[y * row, x * column])

    return change


def every(step_mm: float) -> Change:
    def change(scan: Scan) -> None:
        x, y, z = map(float, dcmread(scan.files[0], stop_before_pixels=True).ImagePositionPatient)
        for index in ALL:
            scan.set([index], ImagePositionPatient=[x, y, round(z + index * step_mm, 3)])

    return change


def header(**attributes: object) -> Change:
    return lambda scan: scan.set(ALL, **attributes)


def as_nifti(spacing_mm: tuple[float, float, float], slope: float = 1.0, shift: int = 0) -> Change:
    """A volume file in the place of the series."""
    return lambda scan: scan.become_nifti(spacing_mm, lambda hu: hu * slope + shift)


def drawn(plane: Callable[[int, Pixels, Pixels, np.random.Generator], Pixels]) -> Change:
    """Slices of a phantom; ``plane`` gets the slice's number, y, x in mm and random numbers."""

    def change(scan: Scan) -> None:
        rng = np.random.default_rng(5)
        y, x = ((np.mgrid[:256, :256] - 127.5) * 1.40625).astype(np.float32)
        for index in ALL:
            hu = plane(index, y, x, rng) + rng.normal(0, 15, y.shape)
            values = np.clip(hu + 1024, 0, None).astype(np.int16)
            scan.edit_pixels([index], lambda _, values=values: values)

    return change


def foam(index: int, y: Pixels, x: Pixels, _: np.random.Generator) -> Pixels:
    """Two blocks of foam in a cylinder of water, with spheres of plastic."""
    hu = np.where(np.hypot(y / 110, x / 160) < 1, 0.0, -1000.0)
    z = 2.5 * (index - 66)
    hu[(y / 75) ** 2 + ((abs(x) - 65) / 55) ** 2 + (z / 140) ** 2 < 1] = -850
    for at in (-40, 0, 40):
        ball = (y - at) ** 2 + (abs(x) - 65) ** 2 + (z - at) ** 2 < 8**2
        hu[ball] = 100
    return np.asarray(hu)


ADULT, VALUES = "do not have the size of an adult's", "may not be HU"
RECIPES = [
    Recipe("white below slice 100", white_out(100), (ADULT, "height", "volume 0.7")),
    Recipe("white below slice 60", white_out(60), (ADULT, "section 12 mm from an end")),
    Recipe(
        "effusions on both sides",
        fluid(lambda index: 0.52 + 0.12 * max(0, index - 50) / 82),
        (ADULT, "tissue behind the lungs 32 mm"),
    ),
    Recipe("pixels of half the size", spacing(0.5, 0.5), (ADULT, "width 124 mm", "180 to 420")),
    Recipe("pixels of twice the size", spacing(2, 2), (ADULT, "width 500 mm")),
    Recipe("pixels of 1 : 2", spacing(1, 2), (ADULT, "width / depth 2.7 (expected 0.95 to 2.2)")),
    Recipe("slices every 1 mm", every(1.0), (ADULT, "height 101 mm (expected 150 to 420)")),
    Recipe("slices every 4.5 mm", every(4.5), (ADULT, "height 451 mm")),
    Recipe("slope 1.3", header(RescaleSlope=1.3), (VALUES, "soft tissue without fat 175 HU")),
    Recipe("124 HU too high", header(RescaleIntercept=-900), (VALUES, "air around the patient -8")),
    Recipe("100 HU too low", header(RescaleIntercept=-1124), (VALUES, "lung -9")),
    Recipe("slices of 10 mm every 2.5 mm", header(SliceThickness=10), ("are 10 mm thick",)),
    Recipe("slices of 0.6 mm every 2.5 mm", header(SliceThickness=0.6), ("leave gaps of 1.9 mm",)),
    Recipe("abdomen", header(BodyPartExamined="ABDOMEN"), ("BodyPartExamined is ABDOMEN",)),
    Recipe(
        "abdomen of a series named chest",
        header(BodyPartExamined="ABDOMEN", SeriesDescription="CHEST 2.5"),
        ("BodyPartExamined is ABDOMEN",),
    ),
    Recipe(
        "series named pelvis",
        header(BodyPartExamined="", SeriesDescription="Pelvis 2.5"),
        ("SeriesDescription is Pelvis 2.5",),
    ),
    Recipe("foam in water", drawn(foam), ("may not be a patient's chest", VALUES)),
    Recipe("NIfTI in a wrong unit", as_nifti((0.7, 0.7, 2.5)), (ADULT, "width 123 mm")),
    Recipe("NIfTI, slope 1.1", as_nifti((1.4, 1.4, 2.5), 1.1, 102), (VALUES, "without fat -15")),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.name for recipe in RECIPES])
def test_what_is_no_adult_s_chest_has_no_guarantee(
    base: Scan, tmp_path: Path, recipe: Recipe
) -> None:
    recipe.check(base.copied(tmp_path / "scan"))


def test_padding_and_a_cropped_outside_are_no_wrong_scale(base: Scan, tmp_path: Path) -> None:
    """Outside the body the scan holds -1024 HU, the value of padding, and no air."""

    def cropped(values: Pixels) -> Pixels:
        return np.asarray(np.where(body_of(values) > 0, np.maximum(values, STORED_AIR), 0))

    scan = base.copied(tmp_path / "scan")
    scan.edit_pixels(ALL, cropped)
    assert outcome(scan.folder).texts == ()


WHOLE = [f"lidc/lidc_{n}" for n in ("0001", "0003", "0004", "0005", "0021", "0028", "0063")] + [
    *("lidc/lidc_0295", "lidc/lidc_0306", "ct/cmb_crc_01068", "ct/qin_lung_01_0007"),
    *(f"ct/qin_lsc_{n}" for n in ("0014", "0028", "0049", "0088")),
    *("ct/lungfcp_01_0001", "ct/lidc_slabs/LIDC-IDRI-0001"),
]


@pytest.mark.parametrize("scan", WHOLE)
def test_a_real_scan_is_plausible(shared_data: Path, scan: str) -> None:
    """It has no limitation but 3 mm slices or a cut lung; age and kernel are set to usual ones."""
    study = read_study(shared_data / scan)
    box = preprocess(study.volume)
    adult = replace(study.header, age="060Y", kernel="STANDARD", contrast="")
    texts = [one.text for one in limitations_of(replace(study, header=adult), box, (), TERMS)]
    known = ("The scan ends inside", "The field of view cuts", "Slices are 3 mm apart")
    assert [text for text in texts if not text.startswith(known)] == []


def test_an_odd_size_hides_no_odd_value(base: Scan, tmp_path: Path) -> None:
    scan = base.copied(tmp_path / "scan")
    spacing(0.5, 0.5)(scan)
    scan.set(ALL, RescaleSlope=1.3)
    box = outcome(scan.folder).box
    assert box is not None
    assert {subject for subject, _ in box.implausible} >= {SIZE, HU}
