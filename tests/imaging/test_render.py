from __future__ import annotations

import cv2
import numpy as np
import pytest

from imaging.render import (
    LUNG_HU,
    Contour,
    Mark,
    Plane,
    encode_png,
    finding_picture,
    overview_picture,
)
from imaging.volume import WINDOW_HU, UInt8Array

SHAPE = (60, 80, 100)
TILE = 400


def box_with(index_zyx: tuple[int, int, int], shape: tuple[int, int, int] = SHAPE) -> UInt8Array:
    """A black box with one bright cube of 5 mm."""
    voxels = np.zeros(shape, np.uint8)
    z, y, x = index_zyx
    voxels[z - 2 : z + 3, y - 2 : y + 3, x - 2 : x + 3] = 255
    return voxels


def tile(picture: UInt8Array, row: int, column: int) -> UInt8Array:
    """One tile of a picture."""
    return picture[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]


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
    picture = finding_picture(box_with(index), Mark(index, 5.0), WINDOW_HU)
    axial, coronal, sagittal = (bright_centre(tile(picture, 0, i)) for i in range(3))
    assert axial[0] < TILE / 2 < axial[1]  # front is up, the patient's left is on the right
    assert coronal[0] < TILE / 2 < coronal[1]  # head is up
    assert sagittal[0] < TILE / 2
    assert sagittal[1] < TILE / 2  # front is on the left


def test_places_are_drawn_to_scale() -> None:
    index = (48, 20, 75)
    picture = finding_picture(box_with(index), Mark(index, 5.0), WINDOW_HU)
    scale = TILE / SHAPE[2]
    row, column = bright_centre(tile(picture, 0, 0))
    assert row == pytest.approx((20.5 - SHAPE[1] / 2) * scale + TILE / 2 - 0.5, abs=1)
    assert column == pytest.approx(75.5 * scale - 0.5, abs=1)


@pytest.mark.parametrize("diameter_mm", [6.0, 20.0, 60.0])
def test_circle_has_the_diameter_of_the_finding(diameter_mm: float) -> None:
    index = (30, 40, 50)
    picture = finding_picture(np.zeros((90, 90, 100), np.uint8), Mark(index, diameter_mm))
    scale = TILE / max(64.0, 1.6 * diameter_mm)
    for column in range(3):
        marks = amber(tile(picture, 1, column))
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
        places = np.argwhere(amber(tile(picture, 1, column)[: TILE - 60]))
        inner = places[np.abs(places - TILE / 2).max(1) < 12 * scale]
        assert np.ptp(inner, axis=0) == pytest.approx([rows * scale, columns * scale], abs=14)


def test_scale_bar_has_its_length() -> None:
    picture = finding_picture(np.zeros((100, 100, 100), np.uint8), Mark((50, 50, 50), 5.0))
    for row, length in ((0, 50 * TILE / 100), (1, 10 * TILE / 64)):
        line = tile(picture, row, 0)[TILE - 12, :, 0] > 200
        assert np.count_nonzero(line) == pytest.approx(length, abs=2)


def test_window_decides_what_is_grey() -> None:
    value = round((40 + 1000) * 255 / 1400)
    voxels = np.full(SHAPE, value, np.uint8)
    lung = finding_picture(voxels, Mark((30, 40, 50), 5.0), LUNG_HU)
    soft = finding_picture(voxels, Mark((30, 40, 50), 5.0), (-160.0, 240.0))
    assert int(lung[600, 120, 0]) == round((40 + 1350) * 255 / 1500)
    assert int(soft[600, 120, 0]) == pytest.approx(127, abs=4)


@pytest.mark.parametrize("index", [(0, 0, 0), (59, 79, 99), (-5.0, 90.0, 130.0)])
def test_a_finding_at_or_beyond_the_rim_is_drawn(index: tuple[float, float, float]) -> None:
    picture = finding_picture(np.zeros(SHAPE, np.uint8), Mark(index, 8.0, "1"))
    assert picture.shape == (2 * TILE, 3 * TILE, 3)
    assert picture.dtype == np.uint8


def test_overview_shows_every_finding_in_both_views() -> None:
    voxels = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.uint8)
    assert not amber(overview_picture(voxels, [])).any()
    picture = overview_picture(voxels, [Mark((30, 40, 25), 8.0, "1"), Mark((30, 40, 75), 8.0, "2")])
    assert picture.shape == (TILE, 2 * TILE, 3)
    coronal = amber(tile(picture, 0, 0))
    assert coronal[:, : TILE // 2].any()
    assert coronal[:, TILE // 2 :].any()
    assert amber(tile(picture, 0, 1)).any()


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    """Two marks at one place draw more of their colour than one: the labels lie apart."""
    voxels = np.zeros(SHAPE, np.uint8)
    one = overview_picture(voxels, [Mark((30, 40, 50), 8.0, "8")])
    two = overview_picture(voxels, [Mark((30, 40, 50), 8.0, "8")] * 2)
    assert np.count_nonzero(amber(two)) > 1.1 * np.count_nonzero(amber(one))


def test_an_even_box_gives_an_even_overview() -> None:
    assert overview_picture(np.full(SHAPE, 7, np.uint8), []).shape == (TILE, 2 * TILE, 3)


def test_png_keeps_every_pixel() -> None:
    picture = finding_picture(box_with((30, 40, 50)), Mark((30, 40, 50), 5.0, "1"))
    decoded = cv2.imdecode(np.frombuffer(encode_png(picture), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert np.array_equal(decoded, picture)


def test_letters_follow_the_planes() -> None:
    assert [plane.letters for plane in Plane] == ["RLAP", "RLHF", "APHF"]
