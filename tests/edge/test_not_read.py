"""What was not read is not called read: each recipe is refused or limited, and says why."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from imaging.errors import IncompleteSeries, IrregularGeometry, NotCt
from tests.conftest import SHARED_DATA
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


def test_the_scan_itself_has_no_limitation_and_its_guarantee(base: Scan, tmp_path: Path) -> None:
    found = outcome(base.copied(tmp_path / "scan").folder)
    assert found.refusal is None
    assert found.texts == ()
    assert found.guarantee.given


def zeroed(*indices: int) -> Callable[[Scan], None]:
    return lambda scan: scan.edit_pixels(indices, np.zeros_like)


def replaced(indices: Iterable[int], by: Callable[[int], int]) -> Callable[[Scan], None]:
    """Give each slice the pixel data of the slice ``by(index)`` of the untouched scan."""

    def spoil(scan: Scan) -> None:
        sources = {index: scan.pixels(by(index)) for index in indices}
        for index, values in sources.items():
            scan.edit_pixels([index], lambda _, values=values: values)

    return spoil


def changed(indices: Iterable[int], change: Callable[[Pixels], Pixels]) -> Callable[[Scan], None]:
    return lambda scan: scan.edit_pixels(indices, change)


def bottom_lost(values: Pixels) -> Pixels:
    values[len(values) // 2 :] = 0
    return values


def noise(values: Pixels) -> Pixels:
    return np.random.default_rng(3).integers(0, 2048, values.shape).astype(np.int16)


def air(values: Pixels) -> Pixels:
    """Air with the noise of a scanner, and no body."""
    level = np.random.default_rng(int(values.sum())).normal(STORED_AIR, 10, values.shape)
    return np.clip(level, 0, 60).astype(np.int16)


def from_slice(first: int, **attributes: object) -> Callable[[Scan], None]:
    return lambda scan: scan.set(range(first, len(scan.files)), **attributes)


def as_nifti(spoil: Callable[[Scan], None]) -> Callable[[Scan], None]:
    """Spoil the series, and put a NIfTI file of its voxels in its place."""

    def convert(scan: Scan) -> None:
        spoil(scan)
        y, x = map(float, dcmread(scan.files[0], stop_before_pixels=True).PixelSpacing)
        scan.become_nifti((x, y, 2.5), np.asarray)

    return convert


def of_another(indices: Iterable[int]) -> Callable[[Scan], None]:
    """Give slices the pixel data of another patient at the same height."""

    def spoil(scan: Scan) -> None:
        files = sorted((SHARED_DATA / "lidc" / "lidc_0005").glob("*.dcm"))
        at = [float(dcmread(f, specific_tags=[POSITION]).ImagePositionPatient[2]) for f in files]
        order = np.argsort(at)
        for index in indices:
            values = stored_pixels(files[order[index]])
            scan.edit_pixels([index], lambda _, values=values: values)

    return spoil


def acquisitions(first: Iterable[int], second: Iterable[int], **second_has: object) -> Any:
    """Number two acquisitions in the series; the second may differ from the first."""

    def spoil(scan: Scan) -> None:
        scan.set(first, AcquisitionNumber=1)
        scan.set(second, AcquisitionNumber=2, **second_has)

    return spoil


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


POSITION = "ImagePositionPatient"
MIDDLE = range(88, 93)
RESCALE = "rescale slope and intercept"
MIXTURE = "of the same series, which is a mixture"
BLANK, COPIED, UNLIKE = (
    "constant: their pixel data is lost",
    "equal to another",
    "unlike the slices",
)
RECIPES = [
    *(
        Recipe(name, spoil, says, IncompleteSeries)
        for name, spoil, says in (
            ("5 slices zeroed", zeroed(*MIDDLE), (BLANK, "088.dcm to 092.dcm", "5 of 133")),
            ("every second slice zeroed", zeroed(*range(40, 100, 2)), (BLANK, "098.dcm")),
            (
                "1 slice of water only",
                changed([75], lambda v: np.full_like(v, 1024)),
                (BLANK, "075.dcm"),
            ),
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
            ("NIfTI, 5 slices zeroed", as_nifti(zeroed(*MIDDLE)),
             (BLANK, "89 from the feet to 93 from the feet")),
        )
    ),
    *(
        Recipe(name, from_slice(61, **attributes), says, kind)
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
    Recipe("another kernel", from_slice(61, ConvolutionKernel="BONE"),
           ("kernel changes within the series", "STANDARD (060.dcm)", "BONE")),
    Recipe("a series twice in one, no acquisitions", lambda scan: doubled(scan, None),
           ("duplicate slice",), IncompleteSeries),
    Recipe("two acquisitions interleaved", acquisitions(range(0, 133, 2), range(1, 133, 2)),
           ("Slices are 5 mm apart",)),
]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.name for recipe in RECIPES])
def test_what_was_not_read_is_not_called_read(base: Scan, tmp_path: Path, recipe: Recipe) -> None:
    recipe.check(base.copied(tmp_path / "scan"))


def test_the_softer_of_two_acquisitions_at_the_same_positions_is_read(
    base: Scan, tmp_path: Path
) -> None:
    scan = base.copied(tmp_path / "scan")
    doubled(scan, 2, ConvolutionKernel="LUNG")
    found = outcome(scan.folder)
    assert found.refusal is None
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
    for index in range(133):
        scan.set([index], AcquisitionNumber=number(index))
    found = outcome(scan.folder)
    assert found.refusal is None
    assert found.study is not None
    assert found.study.volume.shape[0] == 133
    assert found.study.other_series == ()
    assert found.guarantee.given
