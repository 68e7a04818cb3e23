"""Render pictures of findings as a radiologist expects to see them.

The input is a preprocessed box: uint8 ``(z, y, x)`` at 1 mm isotropic, of
`imaging.volume.WINDOW_HU`, its axes pointing to the head, the back and the patient's left. Display
is radiological: the patient's left on the right, head up, front up (axial) or on the left
(sagittal). Pictures are uint8 ``(rows, columns, 3)`` in BGR, the order of OpenCV. They consist of
square tiles with points ``(x, y)`` in pixels; drawing changes a tile in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np
import numpy.typing as npt

from imaging.volume import WINDOW_HU, FloatArray, Triple, UInt8Array

TILE_PX = 320
"""The side of a tile in the picture of a finding."""

OVERVIEW_TILE_PX = 480
FINDING_GRID = (4, 2)
"""Columns and rows of tiles in the picture of a finding."""

AMBER = (60, 190, 255)
LABEL_SIZE = 0.5
_PALE = (215, 225, 225)
_FONT = cv2.FONT_HERSHEY_SIMPLEX

Rect = tuple[float, float, float, float]
"""Left, top, right and bottom."""


@dataclass(frozen=True)
class Window:
    """The window of a display: level and width in HU."""

    level_hu: int
    width_hu: int

    def greys(self) -> UInt8Array:
        """Return the grey value for each of the 256 values of the box."""
        hu = np.linspace(*WINDOW_HU, 256)
        grey = (hu - self.level_hu) * (255.0 / self.width_hu) + 127.5
        return np.clip(np.rint(grey), 0, 255).astype(np.uint8)

    def seen(self, image: UInt8Array) -> UInt8Array:
        """Return the grey values of voxels of the box."""
        return np.asarray(cv2.LUT(image, self.greys()), np.uint8)


LUNG = Window(-600, 1500)
"""The usual lung window, in which lung is dark grey and not black."""

MEDIASTINAL = Window(40, 350)
"""The usual window of soft tissue, in which only what is solid in a nodule can be seen."""

_SOFT_TISSUE = 182  # 0 HU in the window of the box
_ZOOM_MM = 64.0
_RIM = 2  # voxels around a view that the cubic interpolation needs


@dataclass(frozen=True, eq=False)
class Contour:
    """The voxels of a nodule: ``mask`` bool ``(z, y, x)``, its first voxel at ``start``."""

    mask: npt.NDArray[np.bool_]
    start: tuple[int, int, int]


@dataclass(frozen=True)
class Mark:
    """A finding to draw: ``index_zyx`` in the box, its diameter and a short label.

    In the magnified tiles its contour, if it has one, replaces the circle.
    """

    index_zyx: Triple
    diameter_mm: float
    label: str = ""
    contour: Contour | None = None


class Plane(Enum):
    """A viewing plane: its normal axis, the axes of picture rows and columns, its letters.

    The letters at left, right, top and bottom: Right, Left, Anterior, Posterior, Head, Feet.
    """

    AXIAL = ((0, 1, 2), "RLAP")
    CORONAL = ((1, 0, 2), "RLHF")
    SAGITTAL = ((2, 0, 1), "APHF")

    def __init__(self, axes: tuple[int, int, int], letters: str) -> None:
        self.axes = axes
        self.letters = letters
        self.title = self.name.title()


@dataclass(frozen=True)
class _View:
    """The part of a plane that a tile shows: ``top_left`` and ``extent`` in mm, as displayed."""

    top_left: tuple[float, float]
    extent: tuple[float, float]
    magnified: bool = False
    side_px: int = TILE_PX

    @property
    def bar_mm(self) -> int:
        """The length of the scale bar."""
        return 50 if max(self.extent) >= 100 else 10

    @property
    def scale(self) -> float:
        """Pixels per mm, so that the longer side fills the tile."""
        return self.side_px / max(self.extent)

    def pixel(self, row_mm: float, column_mm: float) -> tuple[float, float]:
        """Convert a point of the plane to ``(x, y)`` of the tile, the view in its centre."""
        rows, columns = self.extent
        # from the middle of the view, so that a view that is not square is centred in the tile
        x = (column_mm - self.top_left[1] - columns / 2) * self.scale + self.side_px / 2
        y = (row_mm - self.top_left[0] - rows / 2) * self.scale + self.side_px / 2
        return x, y

    def shown(self, image: UInt8Array, interpolation: int) -> UInt8Array:
        """Draw the plane's image as the tile shows it; black beyond the box."""
        tile = np.zeros((self.side_px, self.side_px), np.uint8)
        first = np.maximum(np.floor(self.top_left).astype(int) - _RIM, 0)
        last = np.minimum(np.add(self.top_left, self.extent).astype(int) + 1 + _RIM, image.shape)
        if (first >= last).any():
            return tile
        # an affine transform takes twenty times as long as this, which is right to half a pixel
        left, top = (round(at) for at in self.pixel(*first))
        right, bottom = (round(at) for at in self.pixel(*last))
        part = image[first[0] : last[0], first[1] : last[1]]
        size = max(right - left, 1), max(bottom - top, 1)
        drawn = cv2.resize(part, size, interpolation=interpolation)
        seen = drawn[max(-top, 0) : self.side_px - top, max(-left, 0) : self.side_px - left]
        y, x = max(top, 0), max(left, 0)
        tile[y : y + seen.shape[0], x : x + seen.shape[1]] = seen
        return tile


def finding_picture(voxels: UInt8Array, mark: Mark, shown: str = "whole") -> UInt8Array:
    """Render a finding in tiles of `FINDING_GRID`, ``(640, 1280, 3)``.

    Above three planes magnified in the lung window and the whole axial slice; below the same planes
    in the mediastinal window and the whole coronal one.

    Args:
        voxels: the box, ``(z, y, x)`` uint8 at 1 mm.
        mark: the finding; if its centre is outside the box, the nearest planes are shown.
        shown: what the slices are called that show all voxels.
    """
    rows = [
        [_near(voxels, mark, plane, window) for plane in Plane] for window in (LUNG, MEDIASTINAL)
    ]
    for row, plane in zip(rows, (Plane.AXIAL, Plane.CORONAL), strict=True):
        image = LUNG.seen(_slice(voxels, plane, mark.index_zyx))
        placed = [(mark, _in_plane(voxels, plane, mark.index_zyx))]
        row.append(_tile(image, plane, _whole(image), placed, (f"{plane.title}, {shown}", LUNG)))
    return np.vstack([np.hstack(row) for row in rows])


def overview_picture(voxels: UInt8Array, marks: Sequence[Mark]) -> UInt8Array:
    """Render the whole box in mean projection, from front and side, ``(480, 960, 3)``.

    Every mark is drawn with its label in both views.
    """
    # bone counts as soft tissue so that lung keeps its contrast
    rows = voxels.reshape(-1, voxels.shape[2])
    soft = np.asarray(cv2.threshold(rows, _SOFT_TISSUE, 0, cv2.THRESH_TRUNC)[1], np.uint8)
    coronal = np.vstack([_mean(one, 0) for one in np.split(soft, len(voxels))])
    sagittal = _mean(soft, 1).reshape(voxels.shape[:2])
    tiles = []
    for plane, mean in ((Plane.CORONAL, coronal), (Plane.SAGITTAL, sagittal)):
        image = _displayed(_in_grey(mean), plane)
        placed = [(mark, _in_plane(voxels, plane, mark.index_zyx)) for mark in marks]
        view = _whole(image, OVERVIEW_TILE_PX)
        tiles.append(_tile(image, plane, view, placed, (f"{plane.title} projection", None)))
    return np.hstack(tiles)


def encode_jpeg(picture: UInt8Array) -> bytes:
    """Encode a picture as JPEG: that of a finding takes about 70 kB, and 3 ms."""
    options = (cv2.IMWRITE_JPEG_QUALITY, 48, cv2.IMWRITE_JPEG_OPTIMIZE, 1)
    encoded, data = cv2.imencode(".jpg", picture, options)
    if not encoded:
        raise ValueError(f"a picture of shape {picture.shape} cannot be encoded")
    return data.tobytes()


def _near(voxels: UInt8Array, mark: Mark, plane: Plane, window: Window) -> UInt8Array:
    """Draw a finding magnified, with its contour if it has one, else its circle."""
    image = window.seen(_slice(voxels, plane, mark.index_zyx))
    at_mm = _in_plane(voxels, plane, mark.index_zyx)
    side = max(_ZOOM_MM, 1.6 * mark.diameter_mm)
    view = _View((at_mm[0] - side / 2, at_mm[1] - side / 2), (side, side), magnified=True)
    if (contour := mark.contour) is None:
        return _tile(image, plane, view, [(mark, at_mm)], (plane.title, window))
    inside = _cut_contour(contour, plane, mark.index_zyx, voxels.shape)
    shown = view.shown(_displayed(inside, plane), cv2.INTER_LINEAR)
    return _outlined(_tile(image, plane, view, [], (plane.title, window)), shown, mark.label)


def _slice(voxels: UInt8Array, plane: Plane, index_zyx: Triple) -> UInt8Array:
    """Return the slice of a plane that is nearest to an index, as displayed."""
    at = _slice_number(voxels.shape, plane, index_zyx)
    return _displayed(np.take(voxels, at, axis=plane.axes[0]), plane)


def _slice_number(shape: tuple[int, ...], plane: Plane, index_zyx: Triple) -> int:
    """Find the plane of the box that is nearest to an index."""
    normal = plane.axes[0]
    return min(max(round(index_zyx[normal]), 0), shape[normal] - 1)


def _mean(rows: UInt8Array, axis: int) -> FloatArray:
    return np.asarray(cv2.reduce(rows, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F), np.float64)


def _in_grey(mean: FloatArray) -> UInt8Array:
    """Convert a mean projection to grey values."""
    rows, columns = mean.shape
    # black is the darkest percent of the middle (lung), white the brightest 3 percent of all
    middle = mean[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4]
    low, high = np.percentile(middle, 1), np.percentile(mean, 97)
    grey = np.clip((mean - low) * (255.0 / max(high - low, 1.0)), 0, 255)
    return grey.astype(np.uint8)


def _displayed(image: UInt8Array, plane: Plane) -> UInt8Array:
    """Turn a plane for display: the box's z runs upwards, a picture's rows run downwards."""
    return image if plane is Plane.AXIAL else image[::-1]


def _in_plane(voxels: UInt8Array, plane: Plane, index_zyx: Triple) -> tuple[float, float]:
    """Convert an index to row and column in mm of the displayed plane, pixel centres at halves."""
    _, rows, columns = plane.axes
    row = index_zyx[rows]
    if plane is not Plane.AXIAL:
        row = voxels.shape[rows] - 1 - row
    return row + 0.5, index_zyx[columns] + 0.5


def _whole(image: UInt8Array, side_px: int = TILE_PX) -> _View:
    extent = float(image.shape[0]), float(image.shape[1])
    return _View((0.0, 0.0), extent, side_px=side_px)


def _tile(
    image: UInt8Array,
    plane: Plane,
    view: _View,
    placed: Sequence[tuple[Mark, tuple[float, float]]],
    caption: tuple[str, Window | None],
) -> UInt8Array:
    """Draw one tile: a view of the plane with marks, letters, bar, and its title and window."""
    grey = view.shown(image, cv2.INTER_CUBIC)
    tile: UInt8Array = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), dtype=np.uint8)
    circles = [
        (view.pixel(*at_mm), max(mark.diameter_mm / 2 * view.scale, 4.0)) for mark, at_mm in placed
    ]
    edge: tuple[tuple[int, int, int], int] = ((0, 0, 0), 3)
    # a dark edge gives contrast on bright tissue; magnified it would hide the nodule's margin
    for colour, thickness in ((AMBER, 1),) if view.magnified else (edge, (AMBER, 1)):
        for circle in circles:
            _draw_mark(tile, *circle, colour, thickness)
    taken = [(x - r, y - r, x + r, y + r) for (x, y), r in circles]
    for (mark, _), circle in zip(placed, circles, strict=True):
        taken.append(rect := _label_rect(tile, *circle, mark.label, taken))
        _draw_text(tile, mark.label, (rect[0], rect[3]), AMBER, LABEL_SIZE)
    _draw_frame(tile, plane.letters, *caption)
    _draw_bar(tile, view.bar_mm, view.scale)
    return tile


def _outlined(tile: UInt8Array, soft: UInt8Array, label: str) -> UInt8Array:
    """Draw a line around what is bright in ``soft``, an image of the tile's size, and the label."""
    lines, _ = cv2.findContours(
        (soft > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    cv2.drawContours(tile, lines, -1, AMBER, 1, cv2.LINE_AA)
    corner = max((tuple(line[:, 0].max(0)) for line in lines), default=(len(tile) / 2,) * 2)
    _draw_text(tile, label, (float(corner[0]) + 5, float(corner[1]) + 12), AMBER, LABEL_SIZE)
    return tile


def _cut_contour(
    contour: Contour, plane: Plane, index_zyx: Triple, shape: tuple[int, ...]
) -> UInt8Array:
    """Draw the contour's voxels in one plane of a box of ``shape``, 255 inside.

    The contour may reach beyond the box: only the part inside is drawn.
    """
    normal, rows, columns = plane.axes
    size = shape[rows], shape[columns]
    inside = np.zeros(size, np.uint8)
    depth = _slice_number(shape, plane, index_zyx) - contour.start[normal]
    if not 0 <= depth < contour.mask.shape[normal]:
        return inside
    mask = np.take(contour.mask, depth, axis=normal)
    row, column = (start for axis, start in enumerate(contour.start) if axis != normal)
    # the part of the contour that lies in the box, in the coordinates of both
    top, left = max(row, 0), max(column, 0)
    part = mask[top - row : size[0] - row, left - column : size[1] - column]
    inside[top : top + part.shape[0], left : left + part.shape[1]] = part * np.uint8(255)
    return inside


def _draw_mark(
    tile: UInt8Array,
    centre: tuple[float, float],
    radius: float,
    colour: tuple[int, int, int],
    thickness: int,
) -> None:
    """Draw a circle of ``radius`` pixels with four ticks outside it."""
    cv2.circle(tile, _fixed(centre), round(radius * 16), colour, thickness, cv2.LINE_AA, shift=4)
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        start, end = (
            _fixed((centre[0] + dx * away, centre[1] + dy * away))
            for away in (radius + 3, radius + 12)
        )
        cv2.line(tile, start, end, colour, thickness, cv2.LINE_AA, shift=4)


def _label_rect(
    tile: UInt8Array, centre: tuple[float, float], radius: float, label: str, taken: Sequence[Rect]
) -> Rect:
    """Choose the first position around the circle that is in the tile and overlaps nothing.

    ``taken`` has the circles and the labels that are placed. If all positions overlap, it is the
    first of them.
    """
    (width, height), _ = cv2.getTextSize(label, _FONT, LABEL_SIZE, 1)
    # sixteen places, nearest first and clockwise from the upper right
    rects = []
    for away in (radius + 5, radius + 12, radius + 20, radius + 28):
        for dx, dy in ((1, -1), (1, 1), (-1, 1), (-1, -1)):
            x = centre[0] + dx * away * 0.75 - (width if dx < 0 else 0)
            y = centre[1] + dy * away * 0.75 + (height if dy > 0 else 0)
            rects.append((x, y - height, x + width, y))
    inside = [rect for rect in rects if min(rect) >= 2 and max(rect) < len(tile) - 3] or rects
    free = (rect for rect in inside if not any(_overlap(rect, other) for other in taken))
    return next(free, inside[0])


def _overlap(one: Rect, other: Rect) -> bool:
    apart = one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]
    return not apart


def _fixed(point: tuple[float, float]) -> tuple[int, int]:
    """Convert a point to OpenCV's ``shift=4``: four fractional bits, pixel centres at integers."""
    return round((point[0] - 0.5) * 16), round((point[1] - 0.5) * 16)


def _draw_frame(tile: UInt8Array, letters: str, title: str, window: Window | None) -> None:
    """Draw border, title, window, and the letters: left, right, top, bottom."""
    left, right, top, bottom = tuple(letters)
    side = len(tile)
    middle, edge = side / 2, side - 16
    shown = f"W {window.width_hu} L {window.level_hu}" if window else ""
    for text, at in (
        (left, (6, middle + 5)), (right, (edge, middle + 5)), (top, (middle - 5, 16)),
        (bottom, (middle - 5, side - 8)), (title, (8, 18)), (shown, (8, side - 8)),
    ):  # fmt: skip
        _draw_text(tile, text, at, _PALE, 0.45)
    cv2.rectangle(tile, (0, 0), (side - 1, side - 1), (40, 40, 40), 1)


def _draw_bar(tile: UInt8Array, length_mm: int, scale: float) -> None:
    """Draw a scale bar at ``scale`` pixels per mm, with its length above it."""
    length, y = round(length_mm * scale), len(tile) - 12
    right = len(tile) - 10
    for colour, thickness in (((0, 0, 0), 3), (_PALE, 1)):
        cv2.line(tile, (right - length, y), (right, y), colour, thickness)
        for x in (right - length, right):
            cv2.line(tile, (x, y - 4), (x, y + 4), colour, thickness)
    _draw_text(tile, f"{length_mm} mm", (right - length, y - 8), _PALE, 0.4)


def _draw_text(
    tile: UInt8Array, text: str, at: tuple[float, float], colour: tuple[int, int, int], size: float
) -> None:
    """Draw text at a baseline point, moved into the tile, with a dark edge for contrast."""
    (width, height), _ = cv2.getTextSize(text, _FONT, size, 1)
    x = round(min(max(at[0], 2), len(tile) - width - 3))
    y = round(min(max(at[1], height + 3), len(tile) - 4))
    # without LINE_AA, which would take four times as long and could hardly be seen
    cv2.putText(tile, text, (x, y), _FONT, size, (0, 0, 0), 3)
    cv2.putText(tile, text, (x, y), _FONT, size, colour, 1, cv2.LINE_AA)
