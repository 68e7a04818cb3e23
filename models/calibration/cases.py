"""Read what fit and guarantee rest on: candidates of whole scans, as the product reads them.

False candidates are those of real scans with every nodule marked. Nodules are those of the scans,
and nodules of cubes inserted into the scans (`models.insertion`), since a scan has one or two. An
inserted nodule is read in a whole lung, as the product reads it; in a cube it would score higher.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from imaging.preprocess import Preprocessed, preprocess
from imaging.roi import cut_roi
from imaging.volume import FloatArray, Nodule, Study, triple
from models.data.folder import marked_scans, read_marked
from models.insertion.donors import Donor
from models.insertion.insert import APART_MM, FreeSpace, Insertion, Occupied, insert, plan_nodules
from models.runtime.detection import MASS_MM, Candidate
from models.runtime.errors import MissingData
from models.runtime.screener import Screener
from models.runtime.second_reader import SecondReader

SAME_MM = 6.0
"""An insertion keeps this distance from the strongest candidates of the scan."""
STRONGEST = 20
TOGETHER = 8
"""Nodules in one copy of a scan."""
_BATCH = 8


@dataclass(frozen=True, eq=False)
class Scan:
    """A whole scan that was read without insertions.

    ``nodules`` and ``ignored`` are ``(n, 4)``: x, y, z in the patient (LPS mm), diameter in mm.
    """

    name: str
    study: Study
    space: FreeSpace
    candidates: tuple[Candidate, ...]
    nodules: FloatArray
    ignored: FloatArray

    @property
    def occupied(self) -> tuple[Occupied, ...]:
        """Where nothing may be inserted: at marks and at the strongest candidates."""
        marks = np.concatenate([self.nodules, self.ignored])
        known = (Occupied((x, y, z), mm / 2 + APART_MM) for x, y, z, mm in marks.tolist())
        strong = (Occupied(one.centre_mm, SAME_MM) for one in self.candidates[:STRONGEST])
        return (*known, *strong)


@dataclass(frozen=True, eq=False)
class Cases:
    """Candidates ``(n,)``, a row each.

    Attributes:
        edge, cloud: logits as the networks give them.
        diameter_mm: as the edge gives it.
        nodule: whether it hits a nodule; the strongest candidate of each nodule alone is a row.
        owner: the patient of a nodule, the scan of any other candidate.
        missed: the owner of each nodule that no candidate hits.
        scans: number of scans that the false candidates are of.
    """

    edge: FloatArray
    cloud: FloatArray
    diameter_mm: FloatArray
    nodule: npt.NDArray[np.bool_]
    owner: npt.NDArray[np.str_]
    missed: tuple[str, ...] = ()
    scans: int = 0

    @property
    def nodules(self) -> int:
        """All nodules, the missed ones included."""
        return int(self.nodule.sum()) + len(self.missed)

    @property
    def mass(self) -> npt.NDArray[np.bool_]:
        """Which candidates are wider than the second reader can judge."""
        return np.asarray(self.diameter_mm > MASS_MM)

    def __add__(self, other: Cases) -> Cases:
        columns = ("edge", "cloud", "diameter_mm", "nodule", "owner")
        joined = {n: np.concatenate([getattr(self, n), getattr(other, n)]) for n in columns}
        return replace(
            self, **joined, missed=self.missed + other.missed, scans=self.scans + other.scans
        )


_NONE = np.zeros(0)
_NO_CASES = Cases(_NONE, _NONE, _NONE, np.zeros(0, bool), np.zeros(0, str))


@dataclass(frozen=True, eq=False)
class Readers:
    """The two networks, opened without their calibration: they give raw logits."""

    screener: Screener
    second: SecondReader

    def logits(self, box: Preprocessed, candidates: Sequence[Candidate]) -> list[float]:
        """Return the second reader's logit of each candidate."""
        shape, found = self.second.roi_shape, list[float]()
        for start in range(0, len(candidates), _BATCH):
            batch = candidates[start : start + _BATCH]
            rois = np.stack([cut_roi(box.voxels, one.index_zyx, shape) for one in batch])
            found += map(_logit, self.second.read(rois).probability.tolist())
        return found


def read_scans(data: Path, roles: Sequence[str], readers: Readers) -> list[Scan]:
    """Read the fully marked whole scans of these roles in ``data/lidc`` and ``data/ct``."""
    scans = []
    for folder, marks in (one for role in roles for one in marked_scans(data, role, fully=True)):
        study, nodules, ignored = read_marked(folder, marks)
        box = preprocess(study.volume, folder)
        found = tuple(readers.screener.screen(box))
        scans.append(Scan(folder.name, study, FreeSpace.of(box), found, nodules, ignored))
    return scans


def candidates_of(scans: Iterable[Scan], readers: Readers) -> Cases:
    """Return the candidates of real scans: the best on each nodule, and every false one."""
    found = _NO_CASES
    for scan in scans:
        # a nodule counts once, by its best candidate; one on no mark is false
        nodules = [Nodule(triple(xyz), mm) for *xyz, mm in scan.nodules.tolist()]
        hits, lost = _best(scan.candidates, nodules, [scan.name] * len(nodules))
        marks = np.concatenate([scan.nodules, scan.ignored])
        for candidate in scan.candidates:
            away = np.linalg.norm(marks[:, :3] - candidate.centre_mm, axis=1)
            if (away >= marks[:, 3] / 2).all():
                hits.append((candidate, False, scan.name))
        found += _cases(readers, scan.space.box, hits, lost, scans=1)
    return found


def inserted(
    scans: Sequence[Scan], donors: Sequence[Donor], readers: Readers, *, placements: int, seed: int
) -> Cases:
    """Insert each donor ``placements`` times into the scans, and return its best candidates.

    Raises:
        MissingData: there was no room for a donor.
    """
    found = _NO_CASES
    for turn in range(placements):
        rng = np.random.default_rng([seed, turn])
        planned, not_placed = plan_nodules(scans, donors, TOGETHER, rng)
        if not_placed:
            names = ", ".join(one.donor.name for one in not_placed)
            where = Path(", ".join(scan.name for scan in scans))
            raise MissingData(where, f"no room for {names}; more scans are needed")
        for plan in planned:
            # the whole product path, preprocessing included, as for a scan that comes in
            volume = insert(plan.host.study.volume, plan.insertions)
            box = preprocess(volume, plan.host.name)
            owners = [i.donor.patient for i in plan.insertions]
            hits, lost = _best(readers.screener.screen(box), plan.insertions, owners)
            found += _cases(readers, box, hits, lost)
    return found


_Hit = tuple[Candidate, bool, str]


def _best(
    candidates: Sequence[Candidate], nodules: Sequence[Nodule | Insertion], owners: Sequence[str]
) -> tuple[list[_Hit], list[str]]:
    """Return the strongest candidate on each nodule; and who has none."""
    hits, missed = list[_Hit](), list[str]()
    for nodule, owner in zip(nodules, owners, strict=True):
        near = [c for c in candidates if nodule.hit_by(c.centre_mm)]
        if near:
            hits.append((max(near, key=lambda one: one.score), True, owner))
        else:
            missed.append(owner)
    return hits, missed


def _cases(
    readers: Readers, box: Preprocessed, hits: Sequence[_Hit], missed: Sequence[str], scans: int = 0
) -> Cases:
    """Return the candidates of a box with the logits of both readers."""
    second = readers.logits(box, [one for one, _, _ in hits])
    return Cases(
        np.array([_logit(one.score) for one, _, _ in hits], np.float64),
        np.array(second, np.float64),
        np.array([one.diameter_mm for one, _, _ in hits], np.float64),
        np.array([nodule for _, nodule, _ in hits], bool),
        np.array([owner for _, _, owner in hits], str),
        tuple(missed),
        scans,
    )


def _logit(probability: float) -> float:
    return float(logit(np.clip(probability, 1e-6, 1 - 1e-6)))
