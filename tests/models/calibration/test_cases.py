from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from imaging.preprocess import Preprocessed, preprocess
from imaging.volume import Study, UInt8Array, triple
from models.calibration.cases import Readers, Scan, candidates_of, inserted
from models.insertion.insert import FreeSpace
from models.runtime.detection import Candidate
from models.runtime.errors import MissingData
from tests.evaluation.plain_chest import chest, donor, in_lung


@dataclass
class Bright:
    """A screening network that sees the brightest voxel of each given place, and the places."""

    places: tuple[tuple[float, float, float], ...]
    seen: list[Preprocessed] = field(default_factory=list)

    def screen(self, box: Preprocessed) -> list[Candidate]:
        self.seen.append(box)
        return [
            Candidate(place, triple(box.geometry.to_index(place)), 8.0, 0.9 - 0.1 * number)
            for number, place in enumerate(self.places)
        ]


class Half:
    roi_shape = (8, 8, 8)

    def read(self, rois: UInt8Array) -> Any:
        return type("Readings", (), {"probability": np.full(len(rois), 0.5)})


def scan(screener: Bright, nodules: Any = (), ignored: Any = ()) -> Scan:
    volume = chest()
    box = preprocess(volume, "chest")
    marks = (np.array(one, float).reshape(-1, 4) for one in (nodules, ignored))
    found = tuple(screener.screen(box))
    return Scan("chest", Study(volume, Path("chest")), FreeSpace.of(box), found, *marks)


def test_candidates_are_nodules_false_or_ignored() -> None:
    """Two hit one nodule: the stronger is its row; one lies beside it, one on an ignored mark."""
    place = in_lung(0)
    shifted = [in_lung(0, mm) for mm in (0.0, 3.0, 9.0)]
    bright = Bright((*shifted, in_lung(1), in_lung(1, 30.0)))
    nodules = [(*place, 10.0), (*in_lung(1, -25.0), 8.0)]
    readers = Readers(cast(Any, bright), cast(Any, Half()))
    found = candidates_of([scan(bright, nodules, [(*in_lung(1), 6.0)])], readers)
    assert found.nodule.tolist() == [True, False, False]
    np.testing.assert_allclose(found.edge[[0, 2]], np.log([0.9 / 0.1, 0.5 / 0.5]), atol=1e-6)
    assert (found.missed, found.scans, found.nodules) == (("chest",), 1, 2)
    np.testing.assert_allclose(found.cloud, 0.0, atol=1e-6)


def test_every_nodule_is_inserted_at_several_places_and_read_in_a_whole_lung() -> None:
    bright = Bright(())
    readers = Readers(cast(Any, bright), cast(Any, Half()))
    host = scan(bright)
    found = inserted([host], [donor(8.0)], readers, placements=3, seed=1)
    assert (found.nodules, found.missed) == (3, ("patient of test/0",) * 3)
    assert all(box.voxels.shape == host.space.box.voxels.shape for box in bright.seen[1:])
    dense = [int((box.voxels > 150).sum()) for box in bright.seen]
    assert all(more > dense[0] for more in dense[1:])


def test_a_donor_without_room_is_an_error() -> None:
    bright = Bright(())
    readers = Readers(cast(Any, bright), cast(Any, Half()))
    full = scan(bright, [(*in_lung(side), 80.0) for side in (0, 1)])
    with pytest.raises(MissingData, match=r"no room for .*; more scans are needed"):
        inserted([full], [donor(8.0)], readers, placements=1, seed=1)
