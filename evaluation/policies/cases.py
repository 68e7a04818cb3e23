"""Whole scans as the agent reads them, with the cloud's score of each candidate; their file."""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from cloud.limits import pad
from edge.atomic_files import write_atomically
from edge.decide import Thresholds
from edge.job import Job
from edge.pipeline import Pipeline, read_and_report
from edge.report.compose import Assessment
from edge.report.model import Report
from edge.selection import SELECTION_POLICY, Shape, Size
from evaluation.accuracy.readers import RoiReader, Stage
from evaluation.accuracy.reports import ledger_s
from evaluation.accuracy.truth import Lesion, Truth, scan_name
from evaluation.common.cli import each
from evaluation.errors import MissingData
from evaluation.lesion_insertion.donors import read_donors
from evaluation.lesion_insertion.hosts import PreparedHost, load_host
from evaluation.lesion_insertion.scans import prepare_host
from evaluation.policies.studies import Sighting, Study
from evaluation.timing.latency import this_machine
from imaging.preprocess import Preprocessed, preprocess
from imaging.roi import cut_roi
from imaging.volume import Triple, UInt8Array
from models.insertion.insert import SyntheticScan, insert, plan_nodules
from models.runtime.detection import Candidate

VAL, TEST = SPLITS = "val", "test"
BATCHES = (1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8)
"""Sizes of the batches that time the cloud's model; the first of each size is a warm-up."""


@dataclass(frozen=True)
class Cases:
    """All studies, with the thresholds and the guarantee of the edge's manifest.

    ``proposed`` is the lowest score of a candidate, ``batches`` are measured ``(ROIs, seconds)`` of
    the cloud's model, and all times were measured on ``cpu``. ``not_placed`` names the nodules for
    which no scan had room. Studies are missing until they are ``complete``.
    """

    studies: tuple[Study, ...]
    proposed: float
    batches: tuple[tuple[int, float], ...]
    thresholds: Thresholds
    guarantee: str
    models: tuple[str, ...]
    cpu: str
    not_placed: tuple[str, ...] = ()
    complete: bool = False

    def of(self, split: str) -> tuple[Study, ...]:
        """Return the studies of one split."""
        return tuple(one for one in self.studies if one.split == split)

    def with_study(self, study: Study) -> "Cases":
        """Return the cases with one more study."""
        return replace(self, studies=(*self.studies, study))


@dataclass(frozen=True)
class Sources:
    """Whole scans with what is ``known`` of them by name, and the folder of cubes of nodules.

    Nodules are inserted into scans of their own split, ``together`` into one copy of a scan.
    ``limit`` is the largest number of nodules of a split, 0 for all; ``seed`` draws the places.
    """

    scans: tuple[Path, ...]
    known: Mapping[str, Truth]
    cubes: Path
    together: int
    limit: int
    seed: int

    def of(self, split: str) -> list[Path]:
        """Return the scans of one split that are fully marked.

        Raises:
            MissingData: there is none.
        """
        roles = {name: truth.role for name, truth in self.known.items() if truth.fully_marked}
        found = [scan for scan in self.scans if roles.get(scan_name(scan)) == split]
        if not found:
            folder = self.scans[0].parent if self.scans else Path()
            raise MissingData(folder, f"no scan of role {split!r} is given; roles: {roles}")
        return found


@dataclass(frozen=True, eq=False)
class Readers:
    """The edge's pipeline without a cloud, and the cloud's model."""

    pipeline: Pipeline
    second: RoiReader
    second_label: str
    proposed: float

    def no_cases(self) -> Cases:
        """Return the cases before the first study is read."""
        reader = self.pipeline.reader
        return Cases(
            studies=(),
            proposed=self.proposed,
            batches=tuple(_timed(self.second)),
            thresholds=reader.thresholds,
            guarantee=reader.guarantee.text,
            models=(reader.label, self.second_label),
            cpu=this_machine()["cpu"],
        )

    def sightings(
        self,
        candidates: Sequence[Candidate],
        box: Preprocessed,
        nodules: Mapping[str, Lesion],
        ignores: Callable[[Triple], bool],
    ) -> tuple[Sighting, ...]:
        """Return the candidates from ``proposed`` on, with the cloud's score at each size.

        A location that hits none of the ``nodules`` may be one that counts neither way. Smaller
        sizes are read only where the edge is uncertain, and so might send them.
        """
        full, thresholds = self.second.roi_shape, self.pipeline.reader.thresholds
        found = []
        for one in candidates:
            if one.score < self.proposed:
                continue
            uncertain = thresholds.dismiss <= one.score < thresholds.report
            sizes = SELECTION_POLICY.sizes_for(one.diameter_mm, full) if uncertain else (Size.FULL,)
            rois = [as_sent(one, box.voxels, size, full) for size in sizes]
            scores = self.second.read(np.stack(rois)).probability
            cloud = dict(zip(sizes, map(float, scores), strict=True))
            point = one.centre_mm
            hit = next((name for name, lesion in nodules.items() if lesion.hit_by(point)), "")
            found.append(
                Sighting(one.score, one.diameter_mm, cloud, hit, not hit and ignores(point))
            )
        return tuple(found)


def as_sent(one: Candidate, voxels: UInt8Array, size: Size, full: Shape) -> UInt8Array:
    """Cut the candidate's ROI in that size as the edge does, and pad it as the cloud does."""
    return pad(cut_roi(voxels, one.index_zyx, size.shape_of(full)), full)


def read_cases(
    sources: Sources, readers: Readers, keep: Callable[[Cases], None], kept: Cases | None = None
) -> Cases:
    """Read all studies of val and test; those in ``kept`` are not read again.

    ``keep`` gets the cases after each study, and once they are complete.

    Raises:
        MissingData, BadTable: cubes or scans are missing or damaged.
    """
    cases = kept or readers.no_cases()
    scans = {split: sources.of(split) for split in SPLITS}
    known = {one.name for one in cases.studies}
    for split in SPLITS:
        for scan in each(scans[split], f"{split} scans"):
            if scan_name(scan) not in known:
                truth = sources.known[scan_name(scan)]
                cases = cases.with_study(read_real(scan, truth, readers))
                keep(cases)
        planned, not_placed = _plan(scans[split], split, sources, readers)
        cases = replace(cases, not_placed=tuple(dict.fromkeys((*cases.not_placed, *not_placed))))
        for name, one in each(list(planned.items()), f"{split} scans with insertions"):
            if name not in known:
                host = next(real for real in cases.of(split) if real.name == one.host.host.name)
                cases = cases.with_study(read_semi_synthetic(name, one, host, readers))
                keep(cases)
    cases = replace(cases, complete=True)
    keep(cases)
    return cases


def _plan(
    scans: Sequence[Path], split: str, sources: Sources, readers: Readers
) -> tuple[dict[str, SyntheticScan[PreparedHost]], list[str]]:
    """Return the semi-synthetic scans of a split by name, and the nodules without a place."""
    screen = readers.pipeline.reader.screen
    hosts = [
        prepare_host(load_host(scan, sources.known), lambda box: {Stage.EDGE: screen(box)})
        for scan in each(scans, f"{split} scans to insert into")
    ]
    donors, _ = read_donors(sources.cubes, (split,), most=sources.limit or None)
    rng = np.random.default_rng([sources.seed, SPLITS.index(split)])
    planned, rest = plan_nodules(hosts, donors, sources.together, rng)
    named = {f"{one.host.host.name} with {n}": one for n, one in enumerate(planned, 1)}
    return named, [one.donor.name for one in rest]


def read_real(scan: Path, truth: Truth, readers: Readers) -> Study:
    """Read a scan from its files through the agent's own pipeline, and time it.

    By the rules of LUNA16 a candidate beside a nodule is a false positive.
    """
    name = scan_name(scan)
    assessment, box, before_s, after_s = _run(scan, readers)
    nodules = {f"{name}/{i}": lesion for i, lesion in enumerate(truth.lesions)}
    candidates = [decision.candidate for decision in assessment.plan.decisions]
    sightings = readers.sightings(
        candidates, box, nodules, lambda point: not truth.is_false(point, rim_mm=0.0)
    )
    weights = readers.pipeline.reader.weights
    patients = dict.fromkeys(nodules, name)
    return Study(name, truth.role, patients, sightings, weights, before_s, after_s)


def read_semi_synthetic(
    name: str, scan: SyntheticScan[PreparedHost], host: Study, readers: Readers
) -> Study:
    """Read a scan with insertions from its volume on; it takes the time of its ``host``.

    What hits no insertion is ignored: it counts in the host.
    """
    box = preprocess(insert(scan.host.host.volume, scan.insertions), name)
    nodules = {one.donor.name: Lesion(one.centre_mm, one.diameter_mm) for one in scan.insertions}
    candidates = readers.pipeline.reader.screen(box)
    sightings = readers.sightings(candidates, box, nodules, lambda _: True)
    patients = {one.donor.name: one.donor.patient for one in scan.insertions}
    return replace(host, name=name, nodules=patients, sightings=sightings, host=host.name)


def remeasured(cases: Cases, sources: Sources, readers: Readers) -> Cases:
    """Return the same scores with all times measured again on this machine."""
    scans = [scan for split in SPLITS for scan in sources.of(split)]
    times_s = {scan_name(scan): _run(scan, readers)[2:] for scan in each(scans, "scans")}
    studies = []
    for one in cases.studies:
        before_s, after_s = times_s[one.host or one.name]
        studies.append(replace(one, before_s=before_s, after_s=after_s))
    batches = tuple(_timed(readers.second))
    return replace(cases, studies=tuple(studies), batches=batches, cpu=this_machine()["cpu"])


def _run(scan: Path, readers: Readers) -> tuple[Assessment, Preprocessed, float, float]:
    """Run a scan through the pipeline; its seconds before the decision and after the verdicts.

    It is read twice, because the engine and the disk's cache are cold the first time.
    """
    kept: list[tuple[Assessment, Preprocessed]] = []

    def note(_report: Report, assessment: Assessment, _reader: object, box: Preprocessed) -> None:
        kept.append((assessment, box))

    pipeline = replace(readers.pipeline, persist_pending=note)
    with tempfile.TemporaryDirectory(prefix="overread-policies-") as out:
        for _ in range(2):
            report = read_and_report(pipeline, Job(scan, Path(out, "report"))).report
    if report.rejection is not None:
        raise MissingData(scan, report.rejection.reason)
    took_s = ledger_s(report)
    before_s = sum(took_s[stage] for stage in ("read", "preprocess", "screen"))
    return *kept[-1], before_s, sum(took_s[stage] for stage in ("merge", "draw", "report"))


def _timed(second: RoiReader) -> Iterator[tuple[int, float]]:
    """Yield ``(ROIs, seconds)`` of batches of the cloud's model."""
    for number, n in enumerate(BATCHES):
        batch = np.zeros((n, *second.roi_shape), np.uint8)
        began_s = time.perf_counter()
        second.read(batch)
        if n in BATCHES[:number]:
            yield n, time.perf_counter() - began_s


def key_of(**described: object) -> str:
    """Return twelve hexadecimal digits that change with any of the values."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


def save(cases: Cases, path: Path) -> None:
    """Write the cases atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(TypeAdapter(Cases).dump_python(cases, mode="json")).encode())


def load(path: Path) -> Cases:
    """Read the cases of a file that `save` wrote.

    Raises:
        MissingData: it cannot be read, or holds something else.
    """
    try:
        return TypeAdapter(Cases).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = f"not a file of cases ({type(error).__name__}): delete it to read them again"
        raise MissingData(path, reason) from error
