"""What was not read is not called read: each recipe is refused or limited, and says why.

So is what does not look like an adult's chest in HU.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import dcmread

from edge.limitations import limitations_of
from imaging.errors import IncompleteSeries, IrregularGeometry, NotCt
from imaging.plausibility import HU, SIZE
from imaging.preprocess import preprocess
from imaging.read import read_study
from tests.conftest import SHARED_DATA
from tests.edge.builders import TERMS
from tests.edge.recipes import (
    STORED_AIR,
    Pixels,
    Recipe,
    Scan,
    base,
    outcome,
    set_pixels,
    stored_pixels,
)

__all__ = ["base"]
pytestmark = pytest.mark.long

TISSUE = 1064
ALL = range(133)
Change = Callable[[Scan], object]


def changed(indices: Iterable[int], change: Callable[[Pixels], Pixels]) -> Change:
    return lambda scan: scan.edit_pixels(indices, change)


def zeroed(*indices: int) -> Change:
    return changed(indices, np.zeros_like)


def put(scan: Scan, slices: Mapping[int, Pixels]) -> None:
    for index, values in slices.items():
        scan.edit_pixels([index], lambda _, values=values: values)


def replaced(indices: Iterable[int], by: Callable[[int], int]) -> Change:
    """Give each slice the pixel data of the slice ``by(index)`` of the untouched scan."""
    return lambda scan: put(scan, {index: scan.pixels(by(index)) for index in indices})


def bottom_lost(values: Pixels) -> Pixels:
    values[len(values) // 2 :] = 0
    return values


def tile_lost(values: Pixels) -> Pixels:
    values[128:160, 64:96] = 0
    return values


def noise(values: Pixels) -> Pixels:
    return np.random.default_rng(3).integers(0, 2048, values.shape).astype(np.int16)


def air(values: Pixels) -> Pixels:
    """Air with the noise of a scanner, and no body."""
    level = np.random.default_rng(int(values.sum())).normal(STORED_AIR, 10, values.shape)
    return np.clip(level, 0, 60).astype(np.int16)


def cropped(values: Pixels) -> Pixels:
    """Outside the body -1024 HU, the value of padding, and no air."""
    return np.asarray(np.where(body_of(values) > 0, np.maximum(values, STORED_AIR), 0))


def header(first: int = 0, **attributes: object) -> Change:
    return lambda scan: scan.set(range(first, len(scan.files)), **attributes)


def as_nifti(
    spacing_mm: tuple[float, float, float] = (1.4, 1.4, 2.5),
    slope: float = 1.0,
    shift: int = 0,
    spoil: Change = lambda _scan: None,
) -> Change:
    """Spoil the series, and put a volume file of its voxels in its place."""

    def change(scan: Scan) -> None:
        spoil(scan)
        scan.become_nifti(spacing_mm, lambda hu: hu * slope + shift)

    return change


def of_another(indices: Iterable[int]) -> Change:
    """Give slices the pixel data of another patient at the same height."""

    def spoil(scan: Scan) -> None:
        files = sorted((SHARED_DATA / "lidc" / "lidc_0005").glob("*.dcm"))
        at = [float(dcmread(f, specific_tags=[POSITION]).ImagePositionPatient[2]) for f in files]
        order = np.argsort(at)
        put(scan, {index: stored_pixels(files[order[index]]) for index in indices})

    return spoil


def numbered(number: Callable[[int], int]) -> Change:
    """Give each slice the number of an acquisition."""

    def change(scan: Scan) -> None:
        for index in ALL:
            scan.set([index], AcquisitionNumber=number(index))

    return change


def doubled(scan: Scan, number: int | None, **second_has: object) -> None:
    """Add a second acquisition at the same positions, with other noise."""
    if number is not None:
        scan.set(range(len(scan.files)), AcquisitionNumber=1)
    for index, file in enumerate(scan.files):
        data = dcmread(file)
        if number is not None:
            data.AcquisitionNumber = number
        for keyword, value in second_has.items():
            setattr(data, keyword, value)
        data.SOPInstanceUID = f"1.2.826.0.2.{index}"
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        set_pixels(data, scan.pixels(index) + index % 2)
        scan.add(data, f"second-{file.name}")


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
            put(scan, {index: values})

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


def drawn(plane: Callable[[int, Pixels, Pixels, np.random.Generator], Pixels]) -> Change:
    """Slices of a phantom; ``plane`` gets the slice's number, y, x in mm and random numbers."""

    def change(scan: Scan) -> None:
        rng = np.random.default_rng(5)
        y, x = ((np.mgrid[:256, :256] - 127.5) * 1.40625).astype(np.float32)
        for index in ALL:
            hu = plane(index, y, x, rng) + rng.normal(0, 15, y.shape)
            put(scan, {index: np.clip(hu + 1024, 0, None).astype(np.int16)})

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


POSITION = "ImagePositionPatient"
MIDDLE = range(88, 93)
RESCALE = "rescale slope and intercept"
MIXTURE = "of the same series, which is a mixture"
BLANK, COPIED, UNLIKE = (
    "constant: their pixel data is lost",
    "equal to another",
    "unlike the slices",
)
ADULT, VALUES = "do not have the size of an adult's", "may not be HU"
RECIPES = [
    *(
        Recipe(name, spoil, says, IncompleteSeries)
        for name, spoil, says in (
            ("5 slices zeroed", zeroed(*MIDDLE), (BLANK, "088.dcm to 092.dcm", "5 of 133")),
            ("every second slice zeroed", zeroed(*range(40, 100, 2)), (BLANK, "098.dcm")),
            ("1 slice of water only", changed([75], lambda v: np.full_like(v, 1024)),
             (BLANK, "075.dcm")),
            ("1 slice repeated", replaced([75], lambda _: 74), (COPIED, "(074.dcm, 075.dcm)")),
            ("a block repeated", replaced(range(70, 80), lambda z: z - 10),
             (COPIED, "060.dcm to 079.dcm")),
            ("1 slice without a body", changed([75], air), (UNLIKE, "(075.dcm)")),
            ("1 slice of noise", changed([75], noise), (UNLIKE, "(075.dcm)")),
            ("lower half of a slice lost", changed([75], bottom_lost), (UNLIKE, "(075.dcm)")),
            ("1 slice inverted", changed([75], lambda v: 2048 - v), (UNLIKE, "(075.dcm)")),
            ("2 slices exchanged, 50 mm apart", replaced([60, 80], lambda z: 140 - z),
             (UNLIKE, "060.dcm, 080.dcm")),
            ("slices of another patient", of_another(range(70, 90)),
             (UNLIKE, "070.dcm to 089.dcm")),
            ("another patient from a slice on", of_another(range(70, 133)),
             (UNLIKE, "069.dcm, 070.dcm")),
            ("NIfTI, 5 slices zeroed", as_nifti(spoil=zeroed(*MIDDLE)),
             (BLANK, "89 from the feet to 93 from the feet")),
        )
    ),
    *(
        Recipe(name, header(61, **attributes), says, kind)
        for name, attributes, says, kind in (
            ("another PatientID", {"PatientID": "other"}, ("CT of 2 patients",), NotCt),
            ("another FrameOfReferenceUID", {"FrameOfReferenceUID": "1.2.3"},
             ("FrameOfReferenceUID", MIXTURE), NotCt),
            ("another slope", {"RescaleSlope": 1.1},
             (f"{RESCALE} (1.1, -1024.0)", f"{RESCALE} (1.0, -1024.0)"), IrregularGeometry),
        )
    ),
    Recipe("the lowest slices zeroed", zeroed(*range(50)),
           ("The scan ends inside the lungs at the base",)),
    Recipe("the highest slices zeroed", zeroed(*range(110, 133)),
           ("The scan ends inside the lungs at the apex",)),
    Recipe("another kernel", header(61, ConvolutionKernel="BONE"),
           ("kernel changes within the series", "STANDARD (060.dcm)", "BONE")),
    Recipe("a series twice in one, no acquisitions", lambda scan: doubled(scan, None),
           ("duplicate slice",), IncompleteSeries),
    Recipe("two acquisitions interleaved", numbered(lambda z: 1 + z % 2),
           ("Slices are 5 mm apart",)),
    Recipe("white below slice 100", white_out(100), (ADULT, "height", "volume 0.7")),
    Recipe("white below slice 60", white_out(60), (ADULT, "section 12 mm from an end")),
    Recipe("effusions on both sides", fluid(lambda index: 0.52 + 0.12 * max(0, index - 50) / 82),
           (ADULT, "tissue behind the lungs 32 mm")),
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
    Recipe("abdomen of a series named chest",
           header(BodyPartExamined="ABDOMEN", SeriesDescription="CHEST 2.5"),
           ("BodyPartExamined is ABDOMEN",)),
    Recipe("series named pelvis", header(BodyPartExamined="", SeriesDescription="Pelvis 2.5"),
           ("SeriesDescription is Pelvis 2.5",)),
    Recipe("foam in water", drawn(foam), ("may not be a patient's chest", VALUES)),
    Recipe("50 pairs of neighbours exchanged", replaced(range(20, 120), lambda z: z ^ 1),
           ("may be out of order", "at 55 places")),
    Recipe("a tile of 0", changed(range(60, 73), tile_lost),
           ("areas of constant value", "13 slices (61 to 73 from the feet)")),
    Recipe("NIfTI in a wrong unit", as_nifti((0.7, 0.7, 2.5)), (ADULT, "width 123 mm")),
    Recipe("NIfTI, slope 1.1", as_nifti((1.4, 1.4, 2.5), 1.1, 102), (VALUES, "without fat -15")),
]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.name for recipe in RECIPES])
def test_what_was_not_read_is_not_called_read(base: Scan, tmp_path: Path, recipe: Recipe) -> None:
    recipe.check(base.copied(tmp_path / "scan"))


@pytest.mark.parametrize("change", [changed([], np.zeros_like), changed(ALL, cropped)])
def test_a_scan_that_is_read_in_full_has_no_limitation_and_its_guarantee(
    base: Scan, tmp_path: Path, change: Change
) -> None:
    scan = base.copied(tmp_path / "scan")
    change(scan)
    found = outcome(scan.folder)
    assert found.texts == ()
    assert found.guarantee.given


def test_the_softer_of_two_acquisitions_at_the_same_positions_is_read(
    base: Scan, tmp_path: Path
) -> None:
    scan = base.copied(tmp_path / "scan")
    doubled(scan, 2, ConvolutionKernel="LUNG")
    found = outcome(scan.folder)
    assert found.study is not None
    assert found.study.header.kernel == "STANDARD"
    (other,) = found.study.other_series
    assert "acquisition 2, 133 images" in other
    assert "its kernel is softer" in other
    assert found.guarantee.given


@pytest.mark.parametrize("number", [lambda z: 1 + z // 67, lambda z: z + 1, lambda z: 1 + z // 4])
def test_acquisitions_that_follow_each_other_are_one_volume(
    base: Scan, tmp_path: Path, number: Callable[[int], int]
) -> None:
    """Two breath-holds, a number for each slice, and one for each rotation."""
    scan = base.copied(tmp_path / "scan")
    numbered(number)(scan)
    found = outcome(scan.folder)
    assert found.study is not None
    assert found.study.volume.shape[0] == 133
    assert found.study.other_series == ()
    assert found.guarantee.given


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
    assert {subject for subject, _ in box.measures.implausible} >= {SIZE, HU}
