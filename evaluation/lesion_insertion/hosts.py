"""Whole scans that lesions are inserted into: scans of patients, and phantoms without nodules."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from evaluation.accuracy.nodules import Detection, ScanScores, score_scan
from evaluation.accuracy.readers import Stage
from evaluation.accuracy.truth import UNKNOWN, Truth, scan_name
from imaging.phantom.phantom import make_phantom, varied_spec
from imaging.read import read_study
from imaging.volume import Volume
from models.insertion.space import FreeSpace, Occupied

PATIENTS = "patients"
PHANTOMS = "phantoms"


@dataclass(frozen=True, eq=False)
class Host:
    """One scan, upright, with what is known of it; ``group`` is `PATIENTS` or `PHANTOMS`."""

    name: str
    group: str
    volume: Volume
    truth: Truth = UNKNOWN


def load_host(source: Path | int, known: Mapping[str, Truth]) -> Host:
    """Return the scan in a folder, or the phantom with this seed.

    A phantom has no nodules, and a scanner that the seed draws too.
    """
    if isinstance(source, int):
        phantom = make_phantom(replace(varied_spec(source), nodule_count=0))
        return Host(f"phantom-{source}", PHANTOMS, phantom.volume)
    name = scan_name(source)
    return Host(name, PATIENTS, read_study(source).volume, known.get(name, UNKNOWN))


@dataclass(frozen=True, eq=False)
class PreparedHost:
    """A host that was read without insertions: free space, occupied locations and detections."""

    host: Host
    space: FreeSpace
    occupied: tuple[Occupied, ...]
    detections: Mapping[Stage, tuple[Detection, ...]]

    @cached_property
    def scores(self) -> dict[Stage, ScanScores]:
        """Return its false positives, and the scores of its known lesions, by stage."""
        return {
            stage: score_scan(self.host.name, found, self.host.truth)
            for stage, found in self.detections.items()
        }
