"""Whole scans into which lesions are inserted, without them and with them; donors and subgroups.

The false positives of a host are counted once, however many synthetic scans are made of it; those
give only the scores of their insertions.

Donors are nodules of cubes and lesions of whole scans. Subgroups are by diameter, texture, subtlety
and slice spacing; each is compared with the false positives of all scans, so that one threshold
serves all. A nodule without a value for a trait belongs to the subgroup `UNKNOWN`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edge.decide import Thresholds
from evaluation.accuracy.bootstrap import figures
from evaluation.accuracy.froc import Scored
from evaluation.accuracy.readers import Reads, Stage
from evaluation.accuracy.truth import Truth, scan_name, score_scan
from imaging.morphology import opened
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.volume import FloatArray, Geometry, Volume, from_window, triple
from models.calibration.cases import SAME_MM, STRONGEST
from models.data.cubes import Cube, read_cubes
from models.insertion.donors import VOTES, Donor, away_mm, cut, cut_donor
from models.insertion.insert import APART_MM, FreeSpace, Insertion, Occupied, SyntheticScan, insert
from models.runtime.detection import MASS_MM, Candidate
from models.runtime.second_reader import TEXTURES, nearest_piece

_DENSE_HU = -400

UNKNOWN = "unknown"

BoolArray = npt.NDArray[np.bool_]

Traits = dict[str, FloatArray]
"""Traits of nodules by the names of `GROUPINGS`, each ``(n,)``; NaN where one is not known.

Texture and subtlety are the readers' means of scales from 1 to 5 (ground glass to solid, extremely
subtle to obvious); the slice spacing is that of the scan, in mm.
"""

GROUPINGS: dict[str, tuple[tuple[float, ...], tuple[str, ...]]] = {
    "diameter": (
        (4, 6, 8, 15, 30),
        ("below 4 mm", "4 to 6 mm", "6 to 8 mm", "8 to 15 mm", "15 to 30 mm", "from 30 mm"),
    ),
    "texture": ((2.5, 4), TEXTURES),
    "subtlety": ((3, 4), ("1 to 3, subtle", "3 to 4", "4 to 5, obvious")),
    "slice spacing": ((1, 2), ("below 1 mm", "1 to 2 mm", "2 mm and more")),
}
"""Of each trait the values at which its subgroups begin, and their names."""


@dataclass(frozen=True, eq=False)
class Host:
    """One scan, upright, with what is known of it."""

    name: str
    volume: Volume
    truth: Truth


def load_host(source: Path, known: Mapping[str, Truth]) -> Host:
    """Return the scan in a folder or file."""
    name = scan_name(source)
    return Host(name, read_study(source).volume, known[name])


@dataclass(frozen=True, eq=False)
class PreparedHost:
    """A host that was read without insertions: free space, occupied locations, false positives."""

    host: Host
    space: FreeSpace
    occupied: tuple[Occupied, ...]
    false_score: Mapping[Stage, FloatArray]


def free_places(
    host: Host, box: Preprocessed, strongest: Sequence[Candidate] = ()
) -> tuple[FreeSpace, tuple[Occupied, ...]]:
    """Return the free lung of a scan, and what lies in it: marks and its strongest candidates."""
    known = (*host.truth.lesions, *host.truth.ignored)
    return FreeSpace.of(box), (
        *(Occupied(lesion.centre_mm, lesion.reach_mm + APART_MM) for lesion in known),
        *(Occupied(candidate.centre_mm, SAME_MM) for candidate in strongest),
    )


def prepare_host(host: Host, reads: Reads) -> PreparedHost:
    """Read the scan as the edge reads it, and find where lesions can be inserted."""
    box = preprocess(host.volume, host.name)
    found = reads(box)
    # those of the edge, whatever the stage: every stage gets the same insertions
    strongest = sorted(found[Stage.EDGE], key=lambda one: -one.score)[:STRONGEST]
    false = {
        stage: score_scan([(c.centre_mm, c.score) for c in of], host.truth).false_score
        for stage, of in found.items()
    }
    return PreparedHost(host, *free_places(host, box, strongest), false)


@dataclass(frozen=True)
class InsertionScore:
    """One insertion, and the highest score of each stage on it, ``-inf`` without one.

    ``kept`` tells whether the edge proposes a candidate on it and does not dismiss it.
    """

    insertion: Insertion
    score: Mapping[Stage, float]
    kept: bool


def read_synthetic(
    scan: SyntheticScan[PreparedHost], reads: Reads, limits: Thresholds, slice_mm: float = 0.0
) -> list[InsertionScore]:
    """Read one synthetic scan as the agent reads it, from the volume on.

    The edge dismisses candidates below ``limits.dismiss``, and masses below ``possible``.
    The slices are the scan's own, or averaged to ``slice_mm``.
    """
    host = scan.host.host
    volume = thickened(insert(host.volume, scan.insertions), slice_mm)
    found = reads(preprocess(volume, host.name))
    scores = []
    for insertion in scan.insertions:
        on = {
            stage: [c for c in of if insertion.hit_by(c.centre_mm)] for stage, of in found.items()
        }
        best = {stage: max((c.score for c in of), default=-np.inf) for stage, of in on.items()}
        kept = any(_kept(c, limits) for c in on[Stage.EDGE])
        scores.append(InsertionScore(insertion, best, kept))
    return scores


def _kept(candidate: Candidate, limits: Thresholds) -> bool:
    mass = candidate.diameter_mm > MASS_MM
    return candidate.score >= (limits.possible if mass else limits.dismiss)


def thickened(volume: Volume, slice_mm: float) -> Volume:
    """Return the scan in slices of about ``slice_mm``, means in HU; thicker ones stay as they are.

    A slice counts in a mean by the part of it that the new slice covers.
    """
    count = round(volume.extent_mm[0] / slice_mm) if slice_mm else len(volume.hu)
    if count >= len(volume.hu):
        return volume
    # a column for each place in the plane
    columns = volume.hu.reshape(len(volume.hu), -1)
    thick = cv2.resize(columns, (columns.shape[1], count), interpolation=cv2.INTER_AREA)
    scale, (z, y, x) = len(volume.hu) / count, volume.geometry.spacing_mm
    origin_mm = triple(volume.geometry.to_world([(scale - 1) / 2, 0, 0]))
    geometry = Geometry((scale * z, y, x), origin_mm, volume.geometry.direction)
    hu = thick.reshape(count, *volume.hu.shape[1:]).astype(np.int16)
    return replace(volume, hu=hu, geometry=geometry, measures=())


def scored(
    insertions: Sequence[InsertionScore], hosts: Sequence[PreparedHost], stage: Stage
) -> Scored:
    """Return the input of the FROC: insertions by patient, false positives of the hosts."""
    _, patient = np.unique([one.insertion.donor.patient for one in insertions], return_inverse=True)
    score = np.array([one.score[stage] for one in insertions], float)
    false = [host.false_score[stage] for host in hosts]
    return Scored.of(score, patient, false, paired=False)


def read_donors(folder: Path, splits: tuple[str, ...]) -> tuple[list[Donor], Traits]:
    """Return the nodules of ``splits`` that readers outlined at their centre, and their traits."""
    donors = [
        (donor, cube)
        for cube in read_cubes(folder, splits)
        if cube.sure and (donor := donor_of(cube)) is not None
    ]
    return [donor for donor, _ in donors], traits_of([cube for _, cube in donors])


def donor_of(cube: Cube) -> Donor | None:
    """Return the cube's nodule, or None if no two readers drew anything at its centre."""
    place = (cube.centre_zyx, cube.diameter_mm)
    return cut_donor(cube.name, cube.patient, cube.voxels, cube.votes >= VOTES, *place)


def cut_lesions(host: Host, box: Preprocessed) -> list[Donor]:
    """Return the lesions of a scan that can be cut out of its lung box.

    A lesion is the dense voxels within its longest extent, without thin vessels.
    """
    donors, name = [], host.name
    for lesion in host.truth.lesions:
        side = int(2 * lesion.reach_mm + 24)
        centre = np.rint(box.geometry.to_index(lesion.centre_mm)).astype(int)
        start = centre - side // 2
        if (start < 0).any() or (start + side > box.voxels.shape).any():
            continue
        voxels = box.voxels[tuple(slice(a, a + side) for a in start)]
        away = away_mm(voxels.shape, (side // 2,) * 3)
        dense = (from_window(voxels) > _DENSE_HU) & (away <= lesion.reach_mm + 1)
        mask = nearest_piece(opened(dense.astype(np.uint8), 2.5) > 0)
        if mask.any():
            z, y, x = (float(v) for v in np.argwhere(mask).mean(0))
            diameter = float((6 * mask.sum() / np.pi) ** (1 / 3))
            donors.append(cut(f"lesion of {name}", name, voxels, mask, (z, y, x), diameter))
    return donors


def masks(trait: str, value: FloatArray) -> dict[str, BoolArray]:
    """Return the nodules ``(n,)`` of each subgroup of a trait that is not empty."""
    edges, names = GROUPINGS[trait]
    known = np.isfinite(value)
    place = np.digitize(np.where(known, value, 0.0), edges)
    found = {name: known & (place == i) for i, name in enumerate(names)} | {UNKNOWN: ~known}
    return {name: mask for name, mask in found.items() if mask.any()}


def traits_of(cubes: Sequence[Cube]) -> Traits:
    """Return the traits of nodules; ratings of a doubtful match are not known."""
    texture, subtlety = (
        np.array([cube.rated(name) for cube in cubes]) for name in ("texture", "subtlety")
    )
    return {
        "diameter": np.array([cube.diameter_mm for cube in cubes], float),
        "texture": texture,
        "subtlety": subtlety,
        "slice spacing": np.array([cube.stated("slice_spacing") for cube in cubes], float),
    }


def by_subgroup(scored: Scored, traits: Traits) -> Iterator[dict[str, Any]]:
    """Yield the figures of each subgroup of each grouping, with intervals."""
    for name, value in traits.items():
        for subgroup, mask in masks(name, value).items():
            yield {"by": name, "subgroup": subgroup, **part(only(scored, mask))}


def part(of: Scored) -> dict[str, Any]:
    """Return the figures of some nodules against all false positives."""
    return {
        "nodules": of.nodule_score.size,
        "patients": int(np.unique(of.nodule_group).size),
        **figures(of),
    }


def only(scored: Scored, mask: BoolArray) -> Scored:
    """Return the nodules ``mask`` ``(n,)`` with all false positives; patients are renumbered."""
    _, group = np.unique(scored.nodule_group[mask], return_inverse=True)
    return replace(scored, nodule_score=scored.nodule_score[mask], nodule_group=group)
