import cv2
import numpy as np
import pytest

from imaging.render import (
    FINDING_GRID,
    OVERVIEW_TILE_PX,
    TILE_PX,
    Contour,
    Mark,
    Plane,
    encode_jpeg,
    finding_picture,
    overview_picture,
)
from imaging.volume import UInt8Array

SHAPE = (60, 80, 100)
TILE = TILE_PX
WHOLE = 3
"""The column of the whole slices: axial above, coronal below."""


def box_with(index_zyx: tuple[int, int, int], shape: tuple[int, int, int] = SHAPE) -> UInt8Array:
    """A black box with one bright cube of 5 mm."""
    voxels = np.zeros(shape, np.uint8)
    z, y, x = index_zyx
    voxels[z - 2 : z + 3, y - 2 : y + 3, x - 2 : x + 3] = 255
    return voxels


def tile(picture: UInt8Array, row: int, column: int, side: int = TILE) -> UInt8Array:
    """One tile of a picture."""
    return picture[row * side : (row + 1) * side, column * side : (column + 1) * side]


def bright_centre(image: UInt8Array) -> tuple[float, float]:
    """Row and column of the middle of what is white, letters and bar at the rim left out."""
    inner = image[30:-60, 30:-30, 0] > 200
    rows, columns = np.nonzero(inner)
    return float(rows.mean()) + 30, float(columns.mean()) + 30


def amber(image: UInt8Array) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Where the marks' colour is: clearly more red than blue."""
    return np.asarray(image[..., 2].astype(int) - image[..., 0] > 60)


def test_display_is_radiological() -> None:
    """A place high, in front and on the patient's left stands up, in front and on the right."""
    index = (48, 20, 75)  # head, front, left
    picture = finding_picture(box_with(index), Mark(index, 5.0))
    axial, coronal = (bright_centre(tile(picture, row, WHOLE)) for row in (0, 1))
    assert axial[0] < TILE / 2 < axial[1]  # front is up, the patient's left is on the right
    assert coronal[0] < TILE / 2 < coronal[1]  # head is up
    beside = finding_picture(box_with(index), Mark((38, 30, 75), 5.0))  # further down and back
    sagittal = bright_centre(tile(beside, 0, 2))
    assert sagittal[0] < TILE / 2
    assert sagittal[1] < TILE / 2  # front is on the left


def test_places_are_drawn_to_scale() -> None:
    index = (48, 20, 75)
    picture = finding_picture(box_with(index), Mark(index, 5.0))
    scale = TILE / SHAPE[2]
    row, column = bright_centre(tile(picture, 0, WHOLE))
    assert row == pytest.approx((20.5 - SHAPE[1] / 2) * scale + TILE / 2 - 0.5, abs=1)
    assert column == pytest.approx(75.5 * scale - 0.5, abs=1)


@pytest.mark.parametrize("diameter_mm", [6.0, 20.0, 60.0])
def test_circle_has_the_diameter_of_the_finding(diameter_mm: float) -> None:
    picture = finding_picture(np.zeros((90, 90, 100), np.uint8), Mark((30, 40, 50), diameter_mm))
    scale = TILE / max(64.0, 1.6 * diameter_mm)
    for row, column in np.ndindex(2, 3):
        marks = amber(tile(picture, row, column))
        ray = np.nonzero(marks[TILE // 2, :])[0]
        left, right = ray[ray < TILE / 2], ray[ray > TILE / 2]
        radius = diameter_mm / 2 * scale
        assert np.abs(right - (TILE / 2 - 0.5 + radius)).min() < 1.5
        assert np.abs(left - (TILE / 2 - 0.5 - radius)).min() < 1.5
        hole = int(radius * 0.6)
        assert not marks[TILE // 2 - hole : TILE // 2 + hole, TILE // 2].any()


def test_contour_is_drawn_in_all_planes() -> None:
    voxels = np.zeros((60, 80, 100), np.uint8)
    mask = np.zeros((48, 48, 48), bool)
    mask[20:30, 18:32, 14:36] = True  # 10 x 14 x 22 mm from index (50, 8, 4) on
    mark = Mark((54.5, 14.5, 14.5), 15.0, "1", Contour(mask, (30, -10, -10)))
    picture = finding_picture(voxels, mark)
    scale = TILE / 64
    for column, (rows, columns) in enumerate([(14, 22), (10, 22), (10, 14)]):
        places = np.argwhere(amber(tile(picture, 0, column)[: TILE - 60]))
        inner = places[np.abs(places - TILE / 2).max(1) < 12 * scale]
        assert np.ptp(inner, axis=0) == pytest.approx([rows * scale, columns * scale], abs=14)


def test_scale_bar_has_its_length() -> None:
    picture = finding_picture(np.zeros((100, 100, 100), np.uint8), Mark((50, 50, 50), 5.0))
    for column, length in ((WHOLE, 50 * TILE / 100), (0, 10 * TILE / 64)):
        line = tile(picture, 0, column)[TILE - 12, TILE // 2 - 20 :, 0] > 200
        assert np.count_nonzero(line) == pytest.approx(length, abs=2)


def test_a_scale_bar_fits_into_the_slices_of_an_roi() -> None:
    """48 mm are less than the bar of 50 mm that whole lungs have."""
    voxels = np.zeros((48, 48, 48), np.uint8)
    picture, named = (
        finding_picture(voxels, Mark((24, 24, 24), 5.0), shown) for shown in ("whole", "ROI")
    )
    line = tile(picture, 0, WHOLE)[TILE - 12, TILE // 2 - 20 :, 0] > 200
    assert np.count_nonzero(line) == pytest.approx(10 * TILE / 48, abs=4)
    assert not np.array_equal(tile(picture, 0, WHOLE), tile(named, 0, WHOLE))
    assert np.array_equal(tile(picture, 0, 0), tile(named, 0, 0))


def test_each_finding_is_shown_in_the_lung_window_and_in_the_mediastinal_one() -> None:
    """Muscle of 40 HU is light in the one and half way between black and white in the other."""
    value = round((40 + 1000) * 255 / 1400)
    picture = finding_picture(np.full(SHAPE, value, np.uint8), Mark((30, 40, 50), 5.0))
    for column in range(3):
        above, below = (int(tile(picture, row, column)[240, 100, 0]) for row in (0, 1))
        assert above == pytest.approx((40 + 1350) * 255 / 1500, abs=1)
        assert below == pytest.approx(127, abs=4)
    lung = finding_picture(np.full(SHAPE, 27, np.uint8), Mark((30, 40, 50), 5.0))  # -852 HU
    assert 80 < int(lung[240, 100, 0]) < 90
    assert int(tile(lung, 1, 0)[240, 100, 0]) == 0


@pytest.mark.parametrize("shape", [SHAPE, (1, 500, 700)])
@pytest.mark.parametrize("index", [(0, 0, 0), (59, 79, 99), (-5.0, 90.0, 130.0), (900, 900, -900)])
def test_a_finding_at_or_beyond_the_rim_is_drawn(
    index: tuple[float, float, float], shape: tuple[int, int, int]
) -> None:
    picture = finding_picture(np.zeros(shape, np.uint8), Mark(index, 8.0, "1"))
    columns, rows = FINDING_GRID
    assert picture.shape == (rows * TILE, columns * TILE, 3)
    assert picture.dtype == np.uint8


def test_overview_shows_every_finding_in_both_views() -> None:
    voxels = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.uint8)
    assert not amber(overview_picture(voxels, [])).any()
    picture = overview_picture(voxels, [Mark((30, 40, 25), 8.0, "1"), Mark((30, 40, 75), 8.0, "2")])
    side = OVERVIEW_TILE_PX
    assert picture.shape == (side, 2 * side, 3)
    coronal, sagittal = (amber(tile(picture, 0, column, side)) for column in (0, 1))
    assert coronal[:, : side // 2].any()
    assert coronal[:, side // 2 :].any()
    assert sagittal.any()


def test_the_overview_is_the_mean_of_each_ray() -> None:
    """Bone counts as soft tissue; half the depth in white is half as bright as all of it."""
    voxels = np.zeros((64, 64, 64), np.uint8)
    voxels[:, :32, 32:] = 182
    voxels[:, :, 48:] = 255
    coronal, sagittal = np.split(overview_picture(voxels, [])[200, :, 0].astype(int), 2)
    assert coronal[[100, 300, 420]] == pytest.approx([0, 127, 255], abs=1)
    assert np.ptp(sagittal[60:200]) == np.ptp(sagittal[280:420]) == 0


def test_a_label_covers_no_label_and_no_mark() -> None:
    """Every mark of a crowd draws as many pixels of its colour as it does alone."""
    voxels = np.zeros(SHAPE, np.uint8)
    crowd = [Mark((35, 40, 54.8), 3.0, "1"), Mark((30, 40, 50), 8.0, "8")]
    alone = [np.count_nonzero(amber(overview_picture(voxels, [mark])[:, :480])) for mark in crowd]
    assert np.count_nonzero(amber(overview_picture(voxels, crowd)[:, :480])) > 0.97 * sum(alone)


def test_a_mark_on_bright_tissue_has_a_dark_edge_and_a_magnified_one_hides_no_margin() -> None:
    """In whole slices the edge separates amber from white; magnified there is only a thin line."""
    white = np.full(SHAPE, 255, np.uint8)
    picture = finding_picture(white, Mark((30, 40, 50), 20.0))
    middle = slice(TILE // 2 - 80, TILE // 2 + 80)
    dark = [
        int(np.count_nonzero(tile(picture, 0, column)[middle, middle].max(axis=2) < 40))
        for column in (WHOLE, 0)
    ]
    assert dark[0] > 100
    assert dark[1] == 0


def test_a_picture_of_noise_takes_little_space_and_differs_little_when_it_is_encoded() -> None:
    """A chest of quantum noise (40 HU in lung of -850 HU) at 1 mm, as thin slices have it."""
    hu = np.random.default_rng(0).normal(-850, 40, (200, 220, 290))
    voxels = np.clip((hu + 1000) * 255 / 1400, 0, 255).astype(np.uint8)
    picture = finding_picture(voxels, Mark((100, 110, 150), 12.0, "1"))
    data = encode_jpeg(picture)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert len(data) < 90_000
    away = np.abs(decoded.astype(int) - picture)
    assert away[:TILE, :TILE].mean() < 3  # grey values of 255, in the magnified axial slice


def test_letters_follow_the_planes() -> None:
    assert [plane.letters for plane in Plane] == ["RLAP", "RLHF", "APHF"]
