"""A side of the chest without lung, or a part of one, is not called read; a side with lung is."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edge.decide import Plan
from edge.escalation.rois import EscalationResult
from edge.guarantee import guarantee_of
from edge.limitations import limitations_of
from imaging.lungs import CELL_MM, Lungs, spine_of
from imaging.morphology import closed, erode
from imaging.phantom.phantom import PhantomSpec, phantom_header
from imaging.preprocess import preprocess
from imaging.read import read_study
from imaging.volume import Geometry, HuArray, Study, triple
from tests.conftest import Draw
from tests.edge.recipes import shipped

pytestmark = pytest.mark.long
SCANS = ("lidc/lidc_0001", "lidc/lidc_0003")
PHANTOM = PhantomSpec(seed=2, spacing_mm=(2.5, 1.5, 1.5), nodule_count=0)
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Chest:
    """A whole chest with the guarantee, in every second row and column."""

    study: Study

    @property
    def hu(self) -> HuArray:
        return self.study.volume.hu

    @cached_property
    def lungs(self) -> Lungs:
        lungs = preprocess(self.study.volume).lungs
        assert lungs is not None
        return lungs

    @cached_property
    def inside(self) -> npt.NDArray[np.uint8]:
        """Both lungs with their vessels, on cells of 4 mm."""
        return closed(self.lungs.air, 5)

    def voxels(self, cells: npt.NDArray[np.generic]) -> Mask:
        """A mask on cells of 4 mm as one of voxels."""
        counts = zip(self.hu.shape, self.lungs.air.shape, strict=True)
        return np.asarray(cells[np.ix_(*(np.arange(n) * m // n for n, m in counts))] > 0)

    def part(self, side: str = "", zones: str = "lower middle upper", depth: str = "") -> Mask:
        """A side (both, if empty), its thirds by height, its front or back half."""
        z = np.flatnonzero(self.inside.sum(axis=(1, 2)) > 38)  # more than the trachea
        y = np.flatnonzero(self.inside.any(axis=(0, 2)))
        cells = np.zeros_like(self.inside)
        spine, middle = spine_of(self.lungs.air, self.lungs.hu), (y[0] + y[-1]) // 2
        x = {"right": slice(spine), "left": slice(spine, None)}.get(side, slice(None))
        rows = {"front": slice(middle), "back": slice(middle, None)}.get(depth, slice(None))
        for zone, third in zip(("lower", "middle", "upper"), np.array_split(z, 3), strict=True):
            if zone in zones:
                cells[third[0] : third[-1] + 1, rows, x] = 1
        return self.voxels(cells)

    def texts(self, hu: HuArray) -> tuple[list[str], bool]:
        """The limitations of these voxels, and whether their report has the guarantee."""
        study = replace(self.study, volume=replace(self.study.volume, hu=hu, measures=()))
        most = shipped()
        found = limitations_of(study, preprocess(study.volume), (), most.terms)
        given = guarantee_of(most, Plan(()), EscalationResult(), found).given
        return [one.text for one in found], given


@pytest.fixture(scope="module", params=[*SCANS, "phantom"])
def chest(drawn: Draw, request: pytest.FixtureRequest) -> Chest:
    if request.param == "phantom":
        volume = drawn(PHANTOM).volume
        study = Study(volume, Path("phantom"), phantom_header(PHANTOM))
    else:
        study = read_study(request.getfixturevalue("shared_data") / request.param)
        geometry = study.volume.geometry
        mm = triple(np.multiply(geometry.spacing_mm, (1, 2, 2)))
        smaller = Geometry(mm, geometry.origin_mm, geometry.direction)
        hu = np.ascontiguousarray(study.volume.hu[:, ::2, ::2])
        study = replace(study, volume=replace(study.volume, hu=hu, geometry=smaller, measures=()))
    return Chest(replace(study, header=replace(study.header, age="060Y", kernel="STANDARD")))


Change = Callable[[Chest], tuple[Mask, HuArray]]


def noise(chest: Chest, level: float, noise_hu: float) -> HuArray:
    drawn = np.random.default_rng(7).normal(level, noise_hu, chest.hu.shape)
    return np.maximum(drawn, -1024).astype(np.int16)


def filled(level: float, noise_hu: float = 15, **part: str) -> Change:
    """All that lies within a part of the lungs, vessels too."""
    return lambda c: (c.voxels(c.inside) & c.part(**part), noise(c, level, noise_hu))


def emptied(level: float, noise_hu: float = 15, **part: str) -> Change:
    """The lung between vessels and nodules, which stay."""

    def change(c: Chest) -> tuple[Mask, HuArray]:
        where, values = filled(level, noise_hu, **part)(c)
        return where & (c.hu < -500), values

    return change


def mantle(mm: float, level: float = -990, **part: str) -> Change:
    """A layer of gas between lung and chest wall."""
    return lambda c: (
        c.voxels(c.inside - erode(c.inside, mm / CELL_MM)) & c.part(**part),
        noise(c, level, 15),
    )


def collapsed(radius_mm: float, **part: str) -> Change:
    """Gas around a lung that is a ball at the hilum."""

    def change(c: Chest) -> tuple[Mask, HuArray]:
        where = c.voxels(c.inside) & c.part(**part)
        mm = c.study.volume.geometry.spacing_mm
        middle = [float(np.mean(axis)) for axis in np.nonzero(where)]
        grid = np.ogrid[tuple(map(slice, where.shape))]
        away = sum(((g - m) * s) ** 2 for g, m, s in zip(grid, middle, mm, strict=True))
        ball = np.where(away < radius_mm**2, 30, noise(c, -1000, 15))
        return where, np.asarray(ball, np.int16)

    return change


NO_LUNG, PART_OF_AIR = "hold no lung tissue with vessels (most:", "holds only a part of the air"
RIGHT, LEFT = "On the right side", "On the left side"
CASES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "gas in all of a side": (filled(-1000, side="right"), (RIGHT, NO_LUNG)),
    "gas that reads -945": (filled(-945, 8, side="left"), (LEFT, NO_LUNG)),
    "a lung collapsed to 60 mm": (collapsed(30, side="right"), (RIGHT, NO_LUNG)),
    "gas between the vessels": (emptied(-1000, side="right"), (RIGHT, NO_LUNG)),
    "-1000 between the vessels of the upper third":
        (emptied(-1000, 0, side="left", zones="upper"), (LEFT, f"{NO_LUNG} upper third")),
    "-985 between the vessels at the back":
        (emptied(-985, side="right", depth="back"), (RIGHT, "back half")),
    "a mantle of 12 mm": (mantle(12, side="right"), (RIGHT, NO_LUNG)),
    "a mantle of 16 mm that reads -960": (mantle(16, -960, side="left"), (LEFT, NO_LUNG)),
    "a mantle of 24 mm in front": (mantle(24, side="left", depth="front"), (LEFT, "front half")),
    "a mantle of 24 mm at the upper third":
        (mantle(24, side="right", zones="upper"), (RIGHT, f"{NO_LUNG} upper third")),
    "a smooth side": (filled(-820, 0, side="right"), (RIGHT, NO_LUNG)),
    "a smooth side with noise": (filled(-870, 60, side="left"), (LEFT, NO_LUNG)),
    "two smooth sides": (filled(-850), (RIGHT, LEFT)),
    "a smooth upper third":
        (filled(-850, side="right", zones="upper"), (RIGHT, f"{NO_LUNG} upper third")),
    "a smooth middle third of -700":
        (filled(-700, side="left", zones="middle"), (LEFT, f"{NO_LUNG} middle third")),
    "a smooth lower third":
        (filled(-850, side="right", zones="lower"), (RIGHT, f"{NO_LUNG} lower third")),
    "a smooth back half": (filled(-850, side="left", depth="back"), (LEFT, "back half")),
    "tissue in an upper third":
        (filled(20, side="left", zones="upper"), ("The left side", PART_OF_AIR, "upper third")),
    "tissue in a front half":
        (filled(20, side="right", depth="front"), ("The right side", PART_OF_AIR, "front half")),
    "tissue in both middle thirds":
        (filled(20, zones="middle"), ("section of the middle third", "expected 50 to 900")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_side_without_lung_is_not_called_read(chest: Chest, name: str) -> None:
    change, says = CASES[name]
    where, values = change(chest)
    texts, given = chest.texts(np.where(where, values, chest.hu))
    assert not given
    for fragment in says:
        assert any(fragment in text for text in texts), texts


@pytest.mark.parametrize("harmless", [
    lambda c: (c.voxels(c.inside), c.hu),
    lambda c: (c.voxels(c.inside) & (c.hu < -700), (c.hu - 15).astype(np.int16)),
    lambda c: (c.voxels(c.inside), (c.hu + noise(c, 0, 40) * (c.hu > -2000)).astype(np.int16)),
], ids=["as it is", "a deeper breath", "noise"])  # fmt: skip
def test_a_chest_with_lung_has_no_limitation(chest: Chest, harmless: Change) -> None:
    where, values = harmless(chest)
    assert chest.texts(np.where(where, values, chest.hu)) == ([], True)
