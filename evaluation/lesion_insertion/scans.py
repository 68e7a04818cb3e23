"""Semi-synthetic whole scans: known nodules implanted into scans, found or not by the agent's line.

False positives are those of the untouched scan, counted once, however many copies of it carry
implants; the copies give nothing but the scores of their implants. What is marked in a copy and
lies neither at an implant nor where the untouched scan is marked was brought by the implants: it
is told apart and is no part of the curve.

The figures of semi-synthetic scans for machines: each group of hosts by itself, and all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.accuracy.bootstrap import figures
from evaluation.accuracy.data import Lesion
from evaluation.accuracy.froc import RATES, Scored, froc, threshold_within
from evaluation.accuracy.nodules import Mark, ScanScores, score_scan
from evaluation.accuracy.subgroups import Traits, at_rates, by_subgroup, only, subgroup_json
from evaluation.common.readers import Reads
from evaluation.lesion_insertion.hosts import PATIENTS, PHANTOMS, Host, Room, Taken
from evaluation.lesion_insertion.insert import APART_MM, Copy, Implant, Ready, implanted
from imaging.preprocess import preprocess
from imaging.volume import Volume

SUSPECTED = 20
"""So many of the untouched scan's strongest marks are no places for an implant."""

SAME_MM = 6.0
"""A mark of a copy so near to one of the untouched scan is the same."""


@dataclass(frozen=True, eq=False)
class HostScores:
    """An untouched scan that was read: itself, its marks, and what they are worth."""

    ready: Ready
    marks: tuple[Mark, ...]
    scores: ScanScores

    @property
    def group(self) -> str:
        """What kind of scan it is."""
        return self.ready.host.group


@dataclass(frozen=True)
class Found:
    """One implant and the highest score of a mark that hit it, ``-inf`` where none did."""

    implant: Implant
    host: str
    group: str
    mass: bool
    score: float


@dataclass(frozen=True)
class CopyScores:
    """One copy that was read: its implants, and the scores of the marks that they brought."""

    found: tuple[Found, ...]
    group: str
    brought: tuple[float, ...]


def read_host(host: Host, reads: Reads) -> HostScores:
    """The untouched scan as the agent reads it.

    Raises:
        NoLung: there is no lung in it.
    """
    box = preprocess(host.volume, host.name)
    marks = tuple((candidate.centre_mm, candidate.score) for candidate in reads(box))
    strongest = sorted(marks, key=lambda mark: -mark[1])[:SUSPECTED]
    taken = [Taken(lesion.centre_mm, lesion.reach_mm + APART_MM) for lesion in host.lesions]
    taken += [Taken(place, SAME_MM) for place, _ in strongest]
    ready = Ready(host, Room.of(box), tuple(taken))
    return HostScores(ready, marks, score_scan(host.name, marks, host.lesions))


def read_copies(
    copies: Iterable[Copy], hosts: Sequence[HostScores], reads: Reads
) -> list[CopyScores]:
    """Every copy as the agent reads it, from the volume on.

    Raises:
        NoLung: implants hid the lung.
    """
    by_name = {one.ready.host.name: one for one in hosts}
    return [read_copy(copy, by_name[copy.ready.host.name], reads) for copy in copies]


def read_copy(copy: Copy, untouched: HostScores, reads: Reads) -> CopyScores:
    """One copy as the agent reads it."""
    host = copy.ready.host
    volume = implanted(host.volume, list(copy.implants))
    marks = _marks(volume, host.name, reads)
    truth = tuple(Lesion(one.centre_mm, one.diameter_mm) for one in copy.implants)
    scores = score_scan(host.name, marks, truth)
    found = tuple(
        Found(implant, host.name, host.group, copy.masses, float(score))
        for implant, score in zip(copy.implants, scores.lesion_score, strict=True)
    )
    known = (*host.lesions, *_wide(copy.implants))
    new = [
        score
        for place, score in marks
        if not any(lesion.covers(place) for lesion in known) and not _near(place, untouched.marks)
    ]
    return CopyScores(found, host.group, tuple(new))


def scored(found: Sequence[Found], hosts: Sequence[HostScores]) -> Scored:
    """What the FROC is made of: implants by patient, false positives of the untouched scans."""
    _, patient = np.unique([one.implant.donor.patient for one in found], return_inverse=True)
    counts = [host.scores.false_score.size for host in hosts]
    return Scored(
        nodule_score=np.array([one.score for one in found], float),
        nodule_group=patient.astype(np.int64),
        false_score=np.concatenate([host.scores.false_score for host in hosts]),
        false_scan=np.repeat(np.arange(len(hosts)), counts),
        scans=len(hosts),
        paired=False,
    )


def _marks(volume: Volume, name: str, reads: Reads) -> list[Mark]:
    return [(c.centre_mm, c.score) for c in reads(preprocess(volume, name))]


def _wide(implants: Sequence[Implant]) -> tuple[Lesion, ...]:
    """The implants as far as they extend."""
    return tuple(Lesion(one.centre_mm, 2 * one.reach_mm) for one in implants)


def _near(place: tuple[float, float, float], marks: Sequence[Mark]) -> bool:
    return any(np.linalg.norm(np.subtract(place, other)) < SAME_MM for other, _ in marks)


SEMI_SYNTHETIC = (
    "Semi-synthetic: real nodules, cut out by their readers' contours and implanted into whole"
    " scans, in lung and away from wall and mediastinum. They lose what they were attached to and"
    " take on the slice thickness of the scan; masses are magnified nodules and lesions. The"
    " measure that counts is overread-eval nodules."
)

FALSE_POSITIVES = (
    "False positives are those of each scan without implants, counted once; copies with implants"
    " give the sensitivity alone. Marks that only a copy has, beside its implants, are told apart."
    " Of a patient's scan only some lesions are known, so a few of its false positives may be true."
)

ATTACHED = 0.15
"""From this share of dense surroundings on a nodule lay at a wall or a vessel."""

FROM_MM = 5.0
"""Smaller nodules are left out where the figures say so."""

POINT = 2.0
"""False positives a scan at the operating point of what is listed one by one."""


def as_dict(
    copies: Sequence[CopyScores],
    hosts: Sequence[HostScores],
    traits: Traits,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """All figures; ``traits`` are those of the donors by their number."""
    groups = {
        name: _group_json(part, of, traits, resamples, seed)
        for name, part, of in _groups(copies, hosts)
    }
    return {
        "semi_synthetic": SEMI_SYNTHETIC,
        "false_positives": FALSE_POSITIVES,
        "groups": groups,
        "insertions": [_implant_json(one) for copy in copies for one in copy.found],
    }


def _groups(
    copies: Sequence[CopyScores], hosts: Sequence[HostScores]
) -> list[tuple[str, list[CopyScores], list[HostScores]]]:
    """The groups that are there; all of them together only where there is more than one."""
    found = []
    for name in (PATIENTS, PHANTOMS):
        of = [host for host in hosts if host.group == name]
        part = [copy for copy in copies if copy.group == name]
        if of and any(not one.mass for copy in part for one in copy.found):
            found.append((name, part, of))
    return found if len(found) < 2 else [*found, ("all", list(copies), list(hosts))]


def _group_json(
    copies: Sequence[CopyScores],
    hosts: Sequence[HostScores],
    traits: Traits,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    found = [one for copy in copies for one in copy.found]
    nodules, masses = ([one for one in found if one.mass is mass] for mass in (False, True))
    whole = scored(nodules, hosts)
    value = figures(whole, resamples=resamples, seed=seed)
    threshold = threshold_within(froc(whole))
    of = traits.of([one.implant.donor_id for one in nodules])
    large = of.diameter_mm >= FROM_MM
    least = least_score(whole, POINT)
    return {
        "scans": [_host_json(host, threshold.tolist()) for host in hosts],
        "scans_with_insertions": len(copies),
        "nodules": len(nodules),
        "patients": len({one.implant.donor.patient for one in nodules}),
        "sensitivity": [
            {**point, "threshold": t if np.isfinite(t) else None}
            for point, t in zip(at_rates(value.sensitivity), threshold.tolist(), strict=True)
        ],
        "cpm": value.cpm.as_dict(),
        "from_5_mm": subgroup_json(whole, large, resamples=resamples, seed=seed)
        if large.any()
        else None,
        "subgroups": {
            **by_subgroup(whole, of, resamples=resamples, seed=seed),
            "original location": _where_json(whole, nodules, resamples, seed),
        },
        "masses": _masses_json(masses, hosts, least, resamples, seed),
        "extra_per_scan_at_2": float(
            np.mean([sum(score >= least for score in copy.brought) for copy in copies])
        ),
    }


def least_score(of: Scored, rate: float) -> float:
    """The lowest threshold with at most ``rate`` false positives a scan; ``-inf`` if all pass."""
    alarms = np.sort(of.false_score)[::-1]
    allowed = int(rate * of.scans)
    return float(np.nextafter(alarms[allowed], np.inf)) if allowed < alarms.size else -np.inf


def _where_json(
    whole: Scored, nodules: Sequence[Found], resamples: int, seed: int
) -> dict[str, Any]:
    """Nodules that lay freely in the lung, and those that lay at a wall or a vessel."""
    attached = np.array([one.implant.donor.attached >= ATTACHED for one in nodules])
    masks = {"freely in the lung": ~attached, "at wall or vessel": attached}
    return {
        name: subgroup_json(whole, mask, resamples=resamples, seed=seed)
        for name, mask in masks.items()
        if mask.any()
    }


def _masses_json(
    masses: Sequence[Found], hosts: Sequence[HostScores], least: float, resamples: int, seed: int
) -> dict[str, Any] | None:
    """Masses against the same false positives; those below ``least``, or unmarked, are listed."""
    if not masses:
        return None
    part = scored(masses, hosts)
    every = np.ones(len(masses), bool)
    sizes = sorted({round(one.implant.diameter_mm) for one in masses})
    missed = [one for one in masses if one.score < least or not np.isfinite(one.score)]
    return {
        **subgroup_json(only(part, every), every, resamples=resamples, seed=seed),
        "threshold": least if np.isfinite(least) else None,
        "missed": [_implant_json(one) for one in missed],
        "by_size": {
            f"{size} mm": {
                "masses": sum(round(one.implant.diameter_mm) == size for one in masses),
                "missed": sum(round(one.implant.diameter_mm) == size for one in missed),
            }
            for size in sizes
        },
    }


def _host_json(host: HostScores, thresholds: Sequence[float]) -> dict[str, Any]:
    return {
        "scan": host.ready.host.name,
        "false_positives": {
            f"{rate:g}": host.scores.false_above(t)
            for rate, t in zip(RATES, thresholds, strict=True)
        },
        "lesion_scores": [_finite(float(score)) for score in host.scores.lesion_score],
    }


def _implant_json(one: Found) -> dict[str, Any]:
    implant = one.implant
    return {
        "donor": implant.donor.name,
        "scan": one.host,
        "mass": one.mass,
        "diameter_mm": round(implant.diameter_mm, 2),
        "centre_mm": [round(v, 1) for v in implant.centre_mm],
        "attached": round(implant.donor.attached, 2),
        "score": _finite(one.score),
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
