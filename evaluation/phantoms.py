"""Synthetic chests through the agent's whole line, against nodules that are all known."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from edge.pipeline import Line
from evaluation.detect import read_one
from evaluation.findings import StudyResult
from evaluation.truth import Lesion
from imaging.dicom.writer import write_series
from imaging.phantom.phantom import PhantomSpec, make_phantom
from imaging.volume import Nodule

COUNTED_MM = 5.0
"""Nodules from this diameter on count; a mark on a smaller one is neither hit nor false."""

IGNORED_REACH_MM = 5.0
"""How near a mark must be to a smaller nodule to mean it, as for the challenge's small ones."""

CAVEAT = "Phantoms are synthetic: they show what the line does, not how it does on patients."


def read_phantom(line: Line, spec: PhantomSpec, out: Path) -> StudyResult:
    """One phantom, written as a DICOM series, read from there, and compared with its truth.

    Its truth is exact, so there is no rim: a finding outside every nodule is false.
    """
    phantom = make_phantom(spec)
    lesions, ignored = split_truth(phantom.nodules)
    with tempfile.TemporaryDirectory(prefix="overread-phantom-") as folder:
        study = Path(folder, f"phantom-{spec.seed}")
        write_series(phantom.volume, study, seed=spec.seed)
        return read_one(line, study, out, lesions, ignored, rim_mm=0.0)


def split_truth(nodules: Sequence[Nodule]) -> tuple[tuple[Lesion, ...], tuple[Lesion, ...]]:
    """The nodules that count, and those too small to."""
    counted = [n for n in nodules if n.diameter_mm >= COUNTED_MM]
    small = [n for n in nodules if n.diameter_mm < COUNTED_MM]
    return (
        tuple(Lesion(n.centre_mm, n.diameter_mm) for n in counted),
        tuple(Lesion(n.centre_mm, 2 * IGNORED_REACH_MM) for n in small),
    )
