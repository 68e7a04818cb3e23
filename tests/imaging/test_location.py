"""Where a finding lies: its image, its side and its zone, however the scan is stored."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from imaging.coverage import Coverage, Cut
from imaging.dicom.writer import write_series
from imaging.location import Location, locator_of
from imaging.lungs import Lungs
from imaging.phantom.phantom import Phantom, PhantomSpec, make_phantom
from imaging.preprocess import ChestMeasures, Preprocessed, preprocess
from imaging.read import read_study
from imaging.sides import between, zones
from imaging.volume import (
    FloatArray,
    Geometry,
    ImageRef,
    Limitation,
    LimitationKind,
    Study,
    Volume,
    triple,
)

SPEC = PhantomSpec(
    seed=3, spacing_mm=(5.0, 3.0, 3.0), size_mm=(300.0, 320.0, 320.0), nodule_count=5,
    diameter_mm=(9.0, 20.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(SPEC)


def stored(
    volume: Volume, order: tuple[int, ...], signs: tuple[int, ...], rotation: FloatArray
) -> Volume:
    """The same anatomy with other axes and rotated; ``order`` has the world axis of x, y, z."""
    array_axes = [2 - order[2 - axis] for axis in range(3)]
    hu = volume.hu.transpose(array_axes)
    hu = np.flip(hu, [axis for axis in range(3) if signs[2 - axis] < 0])
    direction, corner = np.zeros((3, 3)), np.zeros(3)
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        direction[world, axis] = sign
        corner[2 - world] = 0 if sign > 0 else volume.hu.shape[2 - world] - 1
    spacing = triple(volume.geometry.spacing_mm[axis] for axis in array_axes)
    origin = rotation @ volume.geometry.to_world(corner)
    return Volume(hu, Geometry(spacing, triple(origin), rotation @ direction))


UPRIGHT = (0, 1, 2)
WAYS = {
    "head first, supine": (UPRIGHT, (1, 1, 1), 0.0),
    "feet first, supine": (UPRIGHT, (-1, 1, -1), 0.0),
    "head first, prone": (UPRIGHT, (-1, -1, 1), 0.0),
    "feet first, prone": (UPRIGHT, (1, -1, -1), 0.0),
    "rows run to the back": ((1, 0, 2), (1, 1, -1), 0.0),
    "oblique": (UPRIGHT, (1, 1, 1), 12.0),
}


@pytest.mark.parametrize("way", WAYS)
def test_image_and_side_of_a_nodule_are_right_however_the_scan_is_stored(
    way: str, phantom: Phantom, tmp_path: Path
) -> None:
    """The images are numbered in the opposite order of their files, as on some scanners."""
    order, signs, turned_deg = WAYS[way]
    c, s = np.cos(np.radians(turned_deg)), np.sin(np.radians(turned_deg))
    rotation = np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
    volume = stored(phantom.volume, order, signs, rotation)
    paths = write_series(volume, tmp_path / "ct", seed=1)
    for path in paths:
        data = pydicom.dcmread(path)
        data.InstanceNumber = 1000 - data.InstanceNumber
        data.save_as(path)
    study = read_study(tmp_path / "ct")
    locator = locator_of(study, preprocess(study.volume))
    for nodule in phantom.nodules:
        centre_mm = triple(rotation @ nodule.centre_mm)
        k = round(float(volume.geometry.to_index(centre_mm)[0]))
        data = pydicom.dcmread(paths[k], stop_before_pixels=True)
        location = locator.locate(centre_mm)
        assert location.image == ImageRef(1000 - (k + 1), data.SOPInstanceUID)
        assert location.frame_of_reference_uid == data.FrameOfReferenceUID
        assert location.side == ("left" if nodule.centre_mm[0] > 0 else "right")
        assert location.text.endswith(f", image {1000 - (k + 1)}")


def test_the_image_is_told_of_a_study_that_comes_without_its_voxels(
    phantom: Phantom, tmp_path: Path
) -> None:
    """A child process reads the study, and keeps the voxels."""
    write_series(phantom.volume, tmp_path / "ct", seed=1)
    study = read_study(tmp_path / "ct")
    box = preprocess(study.volume)
    without = replace(study, volume=replace(study.volume, hu=np.empty((0, 0, 0), np.int16)))
    assert locator_of(without, box) == locator_of(study, box)


def test_no_side_and_no_zone_is_told_where_the_orientation_is_assumed(phantom: Phantom) -> None:
    study = Study(phantom.volume, Path("scan.nii"))
    box = preprocess(study.volume)
    centre_mm = phantom.nodules[0].centre_mm
    assert locator_of(study, box).locate(centre_mm).side
    assumed = replace(study, limitations=(Limitation(LimitationKind.ORIENTATION, "assumed"),))
    location = locator_of(assumed, box).locate(centre_mm)
    assert (location.side, location.zone) == ("", "")
    assert location.slice_index == locator_of(study, box).locate(centre_mm).slice_index


def test_a_volume_file_has_a_slice_index_from_the_feet() -> None:
    upward = Geometry((2.0, 1.0, 1.0), (0.0, 0.0, -100.0))
    study = Study(Volume(np.zeros((40, 8, 8), np.int16), upward), Path("scan.nii"))
    box = Preprocessed(np.zeros((8, 8, 8), np.uint8), Geometry())
    location = locator_of(study, box).locate((1.0, 1.0, -93.0))
    assert (location.slice_index, location.image) == (4, ImageRef())
    assert location.text == "slice 5 of 40 from the feet"
    beyond = locator_of(study, box).locate((1.0, 1.0, -1000.0))
    assert beyond.slice_index == 0


def test_a_frame_of_a_file_of_many_is_named() -> None:
    location = Location(3, 40, ImageRef(1, "1.2.3", 4), side="left", zone="upper")
    assert location.text == "left upper zone, image 1, frame 4"


SHAPE = (60, 80, 80)


def balls(*centres_x: float, z: tuple[int, int] = (10, 50)) -> npt.NDArray[np.bool_]:
    """Columns of 13 cells radius at the given x, from slice to slice."""
    _, y, x = np.indices(SHAPE)
    air = np.zeros(SHAPE, bool)
    for centre in centres_x:
        air |= (y - 40) ** 2 + (x - centre) ** 2 < 13**2
    air[: z[0]] = air[z[1] :] = False
    return air


def locator(
    air: npt.NDArray[np.bool_], cuts: tuple[Cut, ...] = (), slices: int = 60
) -> Callable[[float, float], Location]:
    """Locate by slice and column of the cells, of 4 mm; the volume has twice the columns."""
    step_mm = 4.0 * 60 / slices
    geometry = Geometry((step_mm, 4.0, 2.0))
    study = Study(Volume(np.zeros((slices, 80, 160), np.int16), geometry), Path("scan.nii"))
    shape, mask = study.volume.shape, air.astype(np.uint8)
    lungs = Lungs((0, 0, 0), shape, mask, mask, np.full(air.shape, -850, np.int16), shape)
    shown = ChestMeasures(Coverage(160.0, cuts), between=between(lungs), zones=zones(lungs))
    box = Preprocessed(np.zeros((1, 1, 1), np.uint8), Geometry(), lungs, geometry, lambda: shown)
    made = locator_of(study, box)
    return lambda z, x: made.locate((4.0 * x + 1.0, 160.0, 4.0 * (z + 0.5) - step_mm / 2))


def test_sides_are_told_by_the_two_lungs_not_by_the_middle_of_the_picture() -> None:
    """Here both lie in the right half of the field of view; between them no side is stated."""
    where = locator(balls(20, 48))
    sides = [where(30, x).side for x in (10, 25, 34, 45, 60)]
    assert sides == ["right", "right", "", "left", "left"]


def test_lungs_that_touch_and_share_an_airway_are_two() -> None:
    air = balls(26, 52)
    air[:, 38:42, 20:60] |= air.any(axis=(1, 2))[:, None, None]
    where = locator(air)
    assert (where(30, 20).side, where(30, 58).side) == ("right", "left")


def test_where_one_lung_reaches_across_the_other_no_side_is_told() -> None:
    air = balls(20, 55)
    air[20:40, 50:53, 20:46] = True  # the right lung, behind the left one
    where = locator(air)
    assert [where(30, x).side for x in (15, 44, 60)] == ["right", "", "left"]
    assert where(15, 44).side == "left"


def test_a_single_lung_has_no_side() -> None:
    """It may lie on either side after the other was removed."""
    assert {locator(balls(30))(30, x).side for x in (20, 30, 60)} == {""}


def test_zones_are_thirds_of_the_lungs_height() -> None:
    """The lungs are slices 12 to 47 of the cells; the trachea above them does not count."""
    air = balls(20, 55, z=(12, 48))
    air[48:58, 38:42, 36:40] = True
    for slices in (60, 300):
        where = locator(air, slices=slices)
        zones = [where(z, 20).zone for z in (12, 23, 25, 35, 37, 47)]
        assert zones == ["lower", "lower", "middle", "middle", "upper", "upper"]


@pytest.mark.parametrize(("side", "zone"), [("apex", ""), ("base", ""), ("left", "middle")])
def test_lungs_that_are_cut_above_or_below_have_no_zones(side: str, zone: str) -> None:
    where = locator(balls(20, 55), cuts=(Cut(side, 30.0),))
    assert (where(30, 20).zone, where(30, 20).side) == (zone, "right")
