"""Synthetic chests as an evaluation set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge.pipeline import Line
from evaluation.phantoms import read_phantom, split_truth
from evaluation.truth import Lesion
from imaging.phantom.phantom import PhantomSpec, make_phantom
from imaging.volume import Nodule


def test_nodules_of_five_millimetres_count() -> None:
    """Smaller ones are put aside, with the reach of a small finding."""
    large = Nodule((1.0, 2.0, 3.0), 5.0, "solid")
    small = Nodule((9.0, 9.0, 9.0), 4.9, "solid")
    counted, ignored = split_truth([large, small])
    assert counted == (Lesion((1.0, 2.0, 3.0), 5.0),)
    assert ignored == (Lesion((9.0, 9.0, 9.0), 10.0),)


def test_phantom_is_read_from_its_files(tmp_path: Path, scripted_line: Callable[..., Line]) -> None:
    """Places in the drawn truth are the same places in the series that the line reads."""
    spec = PhantomSpec(seed=11, spacing_mm=(3.0, 2.0, 2.0), nodule_count=2, diameter_mm=(8.0, 20.0))
    first, second = make_phantom(spec).nodules
    x, y, z = second.centre_mm
    beside = (x, y + second.diameter_mm / 2 + 1, z)
    result = read_phantom(scripted_line([(first.centre_mm, 0.95), (beside, 0.95)]), spec, tmp_path)
    assert (result.lesions, result.found, result.false) == (2, 1, 1)
    assert result.refused == ""
