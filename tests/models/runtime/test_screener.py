from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np

from imaging.preprocess import Preprocessed
from imaging.volume import Geometry
from models.runtime.artifacts import find
from models.runtime.detection import Candidate
from models.runtime.screener import Screener, halved, padded
from models.runtime.session import Session, open_session


def screener(weights: Path) -> Screener:
    return Screener(open_session(find("bright-screening", weights), engine="onnxruntime"))


def test_a_bright_place_becomes_a_candidate_in_the_patient(weights: Path) -> None:
    voxels = np.zeros((21, 34, 30), np.uint8)
    voxels[8:12, 16:20, 24:28] = 255
    box = Preprocessed(voxels, Geometry((1.0, 1.0, 1.0), (100.0, 0.0, -50.0)))
    best = screener(weights).screen(box)[0]
    np.testing.assert_allclose(best.index_zyx, (9.5, 17.5, 25.5))
    np.testing.assert_allclose(best.centre_mm, (125.5, 17.5, -40.5))
    np.testing.assert_allclose(best.score, 1 / (1 + np.exp(-10)), rtol=1e-5)


class Drawn:
    """A session whose maps are faint everywhere but for what is drawn into them."""

    artifact = SimpleNamespace(settings={"calibration": (1.0, 0.0)})

    def __init__(self, draw: Callable[[np.ndarray], None]) -> None:
        self._draw = draw

    def run(self, boxes: np.ndarray) -> tuple[np.ndarray]:
        maps = np.full((1, 5, *(n // 4 for n in boxes.shape[2:])), -8, np.float32)
        maps[0, 1:] = 0
        self._draw(maps[0])
        return (maps,)


def screened(draw: Callable[[np.ndarray], None], *shape: int) -> list[Candidate]:
    box = Preprocessed(np.zeros(shape, np.uint8), Geometry())
    return Screener(cast(Session, Drawn(draw))).screen(box)


def test_what_is_too_large_for_the_network_is_found_at_half_the_resolution() -> None:
    def far(maps: np.ndarray) -> None:
        if maps.shape[1] != 8:  # a box of 64 voxels, halved
            return
        for cell, voxels in ((0, 20.0), (3, 5.0)):
            maps[0, 2, 2, [cell, 7 - cell]] = 1
            maps[4, 2, 2, [cell, 7 - cell]] = np.log(voxels)

    found = screened(far, 64, 64, 64)
    assert {round(c.diameter_mm) for c in found} == {40}
    np.testing.assert_allclose(found[0].index_zyx[:2], [19.5, 19.5])
    assert sorted(c.index_zyx[2] for c in found) == [3.5, 59.5]
    np.testing.assert_allclose(found[0].score, 1 / (1 + np.exp(-3)), rtol=1e-5)
    assert screened(far, 48, 64, 64) == []


def test_half_the_resolution_is_the_mean() -> None:
    voxels = np.zeros((4, 6, 8), np.uint8)
    voxels[:2, :2, :2] = 80
    voxels[2, 4, 6] = 240
    small = halved(voxels)
    assert small.shape == (2, 3, 4)
    assert small[0, 0, 0] == 80
    assert abs(int(small[1, 2, 3]) - 30) <= 1
    assert small.sum() == 80 + small[1, 2, 3]


def test_what_lies_in_the_padding_is_no_candidate(weights: Path) -> None:
    """A bright last slice is mirrored into the padding; it is found once, inside the box."""
    voxels = np.zeros((18, 32, 32), np.uint8)
    voxels[16:, 4:8, 4:8] = 255
    box = Preprocessed(voxels, Geometry())
    found = [c for c in screener(weights).screen(box) if c.score > 0.5]
    assert [c.index_zyx[0] for c in found] == [17.5]


def test_padding_reaches_multiples_of_sixteen_by_mirroring() -> None:
    box = padded(np.arange(17, dtype=np.uint8)[:, None, None] * np.ones((1, 16, 16), np.uint8))
    assert box.shape == (32, 16, 16)
    assert box[15:19, 0, 0].tolist() == [15, 16, 16, 15]
