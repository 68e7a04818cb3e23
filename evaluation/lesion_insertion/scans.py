"""Sensitivity to inserted lesions, against the false positives of the scans without them.

The false positives of a host are counted once, however many synthetic scans are made of it; those
give only the scores of their insertions. A detection of a synthetic scan that lies neither at an
insertion nor at a detection of its host is *extra*: the insertions caused it. It is counted apart
and is not part of the curve.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from evaluation.accuracy.bootstrap import difference, figures, finite, operating_point
from evaluation.accuracy.froc import RATES, Scored, froc, threshold_within
from evaluation.accuracy.nodules import Detection, score_scan
from evaluation.accuracy.readers import STAGES, Reads, Stage
from evaluation.accuracy.subgroups import Traits, by_subgroup, only, subgroup_json
from evaluation.accuracy.truth import Lesion, Truth
from evaluation.lesion_insertion.hosts import PATIENTS, PHANTOMS, Host, PreparedHost
from imaging.preprocess import preprocess
from models.insertion.insert import APART_MM, Insertion, SyntheticScan, insert
from models.insertion.space import FreeSpace, Occupied

SAME_MM = 6.0
"""Detections of host and synthetic scan that are nearer than this are the same."""

SEMI_SYNTHETIC = (
    "Semi-synthetic: real nodules, cut out by their readers' contours and inserted into whole"
    " scans, in lung and away from wall and mediastinum. They lose what they were attached to and"
    " take on the slice thickness of the scan; masses are magnified nodules and lesions. The"
    " measure that counts is overread-eval whole."
)
FALSE_POSITIVES = (
    "False positives are those of each scan without insertions, counted once; scans with insertions"
    " give only the sensitivity. Candidates that only a scan with insertions has, beside its"
    " insertions, are counted apart. Of a patient's scan only some lesions are known, so a few of"
    " its false positives may be true."
)

POINT = 2.0
"""False positives a scan at the operating point of missed masses and extra detections."""


@dataclass(frozen=True)
class InsertionScore:
    """One insertion and the highest score of a detection that hit it, ``-inf`` without one."""

    insertion: Insertion
    host: Host
    score: float


@dataclass(frozen=True)
class SyntheticScores:
    """One synthetic scan that was read: its insertions, and the scores of extra detections."""

    insertions: tuple[InsertionScore, ...]
    group: str
    extra: tuple[float, ...]


def prepare_host(host: Host, reads: Reads) -> PreparedHost:
    """Read the scan as the edge reads it, and find where lesions can be inserted."""
    box = preprocess(host.volume, host.name)
    detections = {
        stage: tuple((candidate.centre_mm, candidate.score) for candidate in found)
        for stage, found in reads(box).items()
    }
    # those of the edge, whatever the stage: every stage gets the same insertions
    strongest = sorted(detections[Stage.EDGE], key=lambda one: -one[1])[:20]
    known = (*host.truth.lesions, *host.truth.ignored)
    occupied = (
        *(Occupied(lesion.centre_mm, lesion.reach_mm + APART_MM) for lesion in known),
        *(Occupied(location, SAME_MM) for location, _ in strongest),
    )
    return PreparedHost(host, FreeSpace.of(box), occupied, detections)


def read_synthetic(scan: SyntheticScan[PreparedHost], reads: Reads) -> dict[Stage, SyntheticScores]:
    """Read one synthetic scan as the agent reads it, from the volume on; return it by stage."""
    host = scan.host.host
    found = reads(preprocess(insert(host.volume, scan.insertions), host.name))
    return {
        stage: _score(
            scan, [(c.centre_mm, c.score) for c in candidates], scan.host.detections[stage]
        )
        for stage, candidates in found.items()
    }


def _score(
    scan: SyntheticScan[PreparedHost], detections: Sequence[Detection], before: Sequence[Detection]
) -> SyntheticScores:
    """Sort the detections of a synthetic scan; ``before`` are those of its host."""
    host = scan.host.host
    inserted = Truth(tuple(Lesion(one.centre_mm, one.diameter_mm) for one in scan.insertions))
    scores = score_scan(host.name, detections, inserted).lesion_score
    extents = Truth(tuple(Lesion(one.centre_mm, 2 * one.reach_mm) for one in scan.insertions))
    extra = [
        score
        for location, score in detections
        if host.truth.is_false(location)
        and extents.is_false(location)
        and all(np.linalg.norm(np.subtract(location, other)) >= SAME_MM for other, _ in before)
    ]
    insertions = tuple(
        InsertionScore(insertion, host, float(score))
        for insertion, score in zip(scan.insertions, scores, strict=True)
    )
    return SyntheticScores(insertions, host.group, tuple(extra))


def scored(
    insertions: Sequence[InsertionScore], hosts: Sequence[PreparedHost], stage: Stage
) -> Scored:
    """Return the input of the FROC: insertions by patient, false positives of the hosts."""
    _, patient = np.unique([one.insertion.donor.patient for one in insertions], return_inverse=True)
    score = np.array([one.score for one in insertions], float)
    return Scored.of(
        score, patient, [host.scores[stage].false_score for host in hosts], paired=False
    )


def as_dict(
    scans: Sequence[Mapping[Stage, SyntheticScores]],
    hosts: Sequence[PreparedHost],
    traits: Traits,
    stage: Stage,
    least: float,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return all figures of ``stage`` for JSON; ``traits`` are those of the donors by their number.

    A finding has a score of ``least`` or more.

    The groups of hosts come one by one, and together if there is more than one.
    """
    parts: dict[str, tuple[list[Mapping[Stage, SyntheticScores]], list[PreparedHost]]] = {}
    for name in (PATIENTS, PHANTOMS):
        of = [host for host in hosts if host.host.group == name]
        part = [scan for scan in scans if scan[stage].group == name]
        if of and any(not one.insertion.mass for scan in part for one in scan[stage].insertions):
            parts[name] = (part, of)
    if len(parts) > 1:
        parts["all"] = (list(scans), list(hosts))
    return {
        "semi_synthetic": SEMI_SYNTHETIC,
        "false_positives": FALSE_POSITIVES,
        "groups": {
            name: {
                "shipped": {
                    STAGES[one]: _shipped(part, of, traits, one, least, resamples, seed)
                    for one in dict.fromkeys((Stage.EDGE, stage))
                },
                **_group_json(part, of, traits, stage, resamples, seed),
            }
            for name, (part, of) in parts.items()
        },
        "insertions": [_insertion_json(one) for scan in scans for one in scan[stage].insertions],
    }


def _group_json(
    read: Sequence[Mapping[Stage, SyntheticScores]],
    hosts: Sequence[PreparedHost],
    traits: Traits,
    stage: Stage,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    subgroup = partial(subgroup_json, resamples=resamples, seed=seed)
    scans = [scan[stage] for scan in read]
    nodules, masses = _insertions(read, stage)
    whole = scored(nodules, hosts, stage)
    value = figures(whole, resamples=resamples, seed=seed)
    threshold = threshold_within(froc(whole))
    of = traits.of([one.insertion.donor_id for one in nodules])
    large = of.diameter_mm >= 5.0
    # from this share of dense surroundings on, a wall or a vessel was there
    attached = np.array([one.insertion.donor.attached >= 0.15 for one in nodules])
    origins = {"freely in the lung": ~attached, "at wall or vessel": attached}
    least = least_score(whole, POINT)
    edge = scored(_insertions(read, Stage.EDGE)[0], hosts, Stage.EDGE)
    gain = partial(difference, resamples=resamples, seed=seed)
    missed = [one for one in masses if one.score < least or not np.isfinite(one.score)]
    extra = [sum(score >= least for score in scan.extra) for scan in scans]
    return {
        "scans": [
            {
                "scan": host.host.name,
                "false_positives": {
                    f"{rate:g}": host.scores[stage].false_above(t)
                    for rate, t in zip(RATES, threshold, strict=True)
                },
                "lesion_scores": [finite(score) for score in host.scores[stage].lesion_score],
            }
            for host in hosts
        ],
        "scans_with_insertions": len(scans),
        "nodules": len(nodules),
        "patients": len({one.insertion.donor.patient for one in nodules}),
        "sensitivity": value.points(threshold),
        "cpm": value.cpm.as_dict(),
        "fp_at": value.costs(),
        "from_5_mm": subgroup(whole, large) if large.any() else None,
        "minus_edge": None if stage is Stage.EDGE else gain(edge, whole).as_dict(),
        "minus_edge_from_5_mm": gain(only(edge, large), only(whole, large)).as_dict()
        if large.any() and stage is not Stage.EDGE
        else None,
        "subgroups": {
            **by_subgroup(whole, of, resamples=resamples, seed=seed),
            "original location": {
                name: subgroup(whole, mask) for name, mask in origins.items() if mask.any()
            },
        },
        "masses": {
            **subgroup(scored(masses, hosts, stage), np.ones(len(masses), bool)),
            "threshold": finite(least),
            "missed": [_insertion_json(one) for one in missed],
            "by_size": {
                f"{size} mm": {"masses": n, "missed": _sizes(missed)[size]}
                for size, n in sorted(_sizes(masses).items())
            },
        }
        if masses
        else None,
        "extra_per_scan_at_2": float(np.mean(extra)),
    }


def _shipped(
    read: Sequence[Mapping[Stage, SyntheticScores]],
    hosts: Sequence[PreparedHost],
    traits: Traits,
    stage: Stage,
    least: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return how many nodules are findings, of all and of 5 mm and more, and the false ones."""
    nodules, _ = _insertions(read, stage)
    whole = scored(nodules, hosts, stage)
    large = traits.of([one.insertion.donor_id for one in nodules]).diameter_mm >= 5.0
    parts = {"all nodules": whole}
    if large.any():
        parts["5 mm and more"] = only(whole, large)
    return {name: _at(part, least, resamples=resamples, seed=seed) for name, part in parts.items()}


def _at(of: Scored, least: float, *, resamples: int, seed: int) -> dict[str, Any]:
    """Return the share of nodules from ``least`` on, by patient, and the false a scan."""
    found, false = of.nodule_score >= least, of.false_scan[of.false_score >= least]
    patients = np.stack([np.bincount(of.nodule_group), np.bincount(of.nodule_group, found)], 1)
    scans = np.bincount(false, minlength=of.scans)
    point = partial(operating_point, resamples=resamples, seed=seed)
    share, _ = point(np.pad(patients, ((0, 0), (0, 1))))
    _, rate = point(np.pad(scans[:, None], ((0, 0), (2, 0))))
    return {
        "nodules": of.nodule_score.size,
        "found": int(found.sum()),
        "sensitivity": share.as_dict() if share else None,
        "false_positives_per_scan": rate.as_dict(),
    }


def _insertions(
    read: Sequence[Mapping[Stage, SyntheticScores]], stage: Stage
) -> tuple[list[InsertionScore], list[InsertionScore]]:
    """Return the insertions of all scans as that stage scored them: nodules, and masses."""
    every = [one for scan in read for one in scan[stage].insertions]
    nodules, masses = ([one for one in every if one.insertion.mass is m] for m in (False, True))
    return nodules, masses


def _sizes(masses: Sequence[InsertionScore]) -> Counter[int]:
    """Return the number of masses of each diameter in mm."""
    return Counter(round(one.insertion.diameter_mm) for one in masses)


def least_score(of: Scored, rate: float) -> float:
    """Return the lowest threshold with at most ``rate`` false positives a scan, or ``-inf``."""
    scores = np.sort(of.false_score)[::-1]
    allowed = int(rate * of.scans)
    return float(np.nextafter(scores[allowed], np.inf)) if allowed < scores.size else -np.inf


def _insertion_json(one: InsertionScore) -> dict[str, Any]:
    insertion = one.insertion
    return {
        "donor": insertion.donor.name,
        "scan": one.host.name,
        "mass": insertion.mass,
        "diameter_mm": round(insertion.diameter_mm, 2),
        "centre_mm": [round(v, 1) for v in insertion.centre_mm],
        "attached": round(insertion.donor.attached, 2),
        "score": finite(one.score),
    }
