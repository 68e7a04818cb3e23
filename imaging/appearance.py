"""Tell what of the images is not as a scanner makes a chest: order, lost areas, noise, blur, turns.

Each is measured where lung is. Of a part of the lungs it cannot be told how the images are turned.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import cv2
import numpy as np

from imaging.continuity import lost_areas, out_of_order
from imaging.lungs import AIR_HU, Lungs, connected_to_edge, labelled
from imaging.slices import SliceMeasures
from imaging.volume import WINDOW_HU, HuArray, Limitation, LimitationKind, Triple

MAX_NOISE_HU = 30.0
"""In pixels of 2 mm, as a nodule averages it. 18 scans of calibration's kind and of low dose reach
5 to 18 HU, those with bone kernels 13 to 18 (50 to 94 HU in their own pixels)."""
MIN_EDGE_HU = 150.0
"""Of the sharpest 1 % of the lungs at 1 mm, the second difference. The same scans have 340 to 950,
250 and more with pixels of twice the size; blurred by 2 mm they have 57 to 93."""
_SLICES, _SOFT_HU = 3, (-150, 300)
_CHEST = "667876668975678874565754545645748857645656505725306823304723503615827728355553756667734637723527835638988879"  # fmt: skip  # noqa: E501
"""Density in the lung box, 3 x 6 x 6 parts ``(z, y, x)``, from 0 to 9: the mean of ten scans."""
_TURNS = (
    "turned by 90 degrees, or with rows and columns exchanged",
    "with front and back exchanged (upside down)",
    "with head and feet exchanged",
)
_MIN_SECTION_CELLS, _MIN_SHARE = 38, 0.2
_MIN_LIKENESS, _MIN_MARGIN = 0.6, 0.1
"""Whole scans correlate with it by 0.73 to 0.91, turned in any other way by at least 0.21 less.
Mirrored right to left they are up to 0.18 less, and 0.02 more: that cannot be told."""


def oddities(
    hu: HuArray, spacing_mm: Triple, lungs: Lungs, measures: Sequence[SliceMeasures]
) -> tuple[Limitation, ...]:
    """Return what of the images of a volume ``(z, y, x)`` is odd."""
    turn = [*_of_turn(lungs)]
    scanned = (*_of_order(lungs, measures), *_of_texture(hu, spacing_mm, lungs))
    found = {
        LimitationKind.ORIENTATION: turn,
        # lungs are found by the patient's axes: where these are wrong, air is taken for lung
        LimitationKind.COVERAGE: () if turn else _of_areas(lungs, measures),
        LimitationKind.ACQUISITION: scanned,
    }
    return tuple(Limitation(kind, text) for kind, texts in found.items() for text in texts)


def _of_order(lungs: Lungs, measures: Sequence[SliceMeasures]) -> Iterator[str]:
    first, stop = lungs.start[0], lungs.stop[0]
    if places := out_of_order(np.stack([one.coarse for one in measures[first:stop]])):
        yield (
            f"Slices may be out of order, or the patient moved: at {len(places)} places a slice is "
            f"more like others than like the next, first at slice {first + places[0] + 1} "
            "from the feet."
        )


def _of_areas(lungs: Lungs, measures: Sequence[SliceMeasures]) -> Iterator[str]:
    if lost := lost_areas(lungs, measures):
        yield (
            f"Pixel data may be lost: {len(lost)} slices ({lost[0] + 1} to {lost[-1] + 1} from the "
            "feet) have areas of constant value in the lungs, where a scan has noise."
        )


def _of_texture(hu: HuArray, spacing_mm: Triple, lungs: Lungs) -> Iterator[str]:
    """Compare noise and sharpness with those of calibration."""
    (first, *start), (last, *stop) = lungs.start, lungs.stop
    y, x = (slice(a, b) for a, b in zip(start, stop, strict=True))
    spreads, edges = [], []
    for z in np.linspace(first, last, _SLICES + 2)[1:-1].astype(int):
        plane = np.clip(hu[z, y, x], *WINDOW_HU).astype(np.float32)
        fy, fx = spacing_mm[1:]
        fine = cv2.resize(plane, None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
        coarse = cv2.resize(plane, None, fx=fx / 2, fy=fy / 2, interpolation=cv2.INTER_AREA)
        edges.append(float(np.percentile(abs(cv2.Laplacian(fine, cv2.CV_32F)), 99)))
        mean, square = cv2.blur(coarse, (3, 3)), cv2.sqrBoxFilter(coarse, cv2.CV_32F, (3, 3))
        soft = (mean > _SOFT_HU[0]) & (mean < _SOFT_HU[1])
        spreads += np.sqrt(np.maximum(square - mean * mean, 0)[soft]).tolist()
    if spreads and (noise := float(np.percentile(spreads, 20))) > MAX_NOISE_HU:
        yield (
            f"The images are noisier than those of calibration: {noise:.0f} HU in pixels of 2 mm, "
            f"expected at most {MAX_NOISE_HU:g} HU."
        )
    if (edge := float(np.median(edges))) < MIN_EDGE_HU:
        yield (
            "The images are blurred, or smoother than those of calibration: edges in the lungs "
            f"have a second difference of {edge:.0f} HU, expected at least {MIN_EDGE_HU:g} HU."
        )


def _of_turn(lungs: Lungs) -> Iterator[str]:
    """Compare the lung box with a mean chest, turned and mirrored in each way."""
    chest = np.array([*map(int, _CHEST)], float).reshape(3, 6, 6)
    # `Lungs.air` takes the patient to lie on the back; this air is that of any chest
    closed = (lungs.hu < AIR_HU).astype(np.uint8)
    labels = labelled(closed & (1 - connected_to_edge(closed)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0  # label 0 is the background
    air = (sizes >= _MIN_SHARE * sizes.max())[labels]
    ends = []
    for axes in ((1, 2), (0, 2), (0, 1)):
        large = np.flatnonzero(air.sum(axis=axes) >= _MIN_SECTION_CELLS)
        ends.append(slice(large[0], large[-1] + 1) if large.size else slice(0, 0))
    # contrast medium and bone count as tissue
    box = np.clip(lungs.hu[tuple(ends)], -1000, 0).astype(np.float32)
    if min(box.shape) < 6:
        return
    planes = [cv2.resize(plane, (6, 6), interpolation=cv2.INTER_AREA) for plane in box]
    found = np.stack([np.mean(part, axis=0) for part in np.array_split(planes, 3)])
    likeness: dict[str, float] = {}
    for transposed, z, y, x in product((False, True), repeat=4):
        turned = found.transpose(0, 2, 1) if transposed else found
        turned = turned[:: -1 if z else 1, :: -1 if y else 1, :: -1 if x else 1]
        plane = _TURNS[0] if transposed else _TURNS[1] * y
        name = " and ".join(filter(None, (plane, _TURNS[2] * z)))
        like = float(np.corrcoef(turned.ravel(), chest.ravel())[0, 1])
        likeness[name] = max(like, likeness.get(name, -1.0))
    best = max(likeness, key=likeness.__getitem__)
    if likeness[best] >= max(_MIN_LIKENESS, likeness[""] + _MIN_MARGIN):
        yield f"The images look like those of a chest {best}; the stated orientation may be wrong."
