"""The figures of semi-synthetic scans for machines: each group of hosts by itself, and all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.bands import Traits, at_rates, band_json, by_band, only
from evaluation.bootstrap import figures
from evaluation.froc import RATES, Scored, froc, threshold_within
from evaluation.scan_host import PATIENTS, PHANTOMS
from evaluation.scans import CopyScores, Found, HostScores, scored

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


def as_json(
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
        "implants": [_implant_json(one) for copy in copies for one in copy.found],
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
        "copies": len(copies),
        "nodules": len(nodules),
        "patients": len({one.implant.donor.patient for one in nodules}),
        "sensitivity": [
            {**point, "threshold": t if np.isfinite(t) else None}
            for point, t in zip(at_rates(value.sensitivity), threshold.tolist(), strict=True)
        ],
        "cpm": value.cpm.as_json(),
        "from_5_mm": band_json(whole, large, resamples=resamples, seed=seed)
        if large.any()
        else None,
        "bands": {
            **by_band(whole, of, resamples=resamples, seed=seed),
            "where it lay": _where_json(whole, nodules, resamples, seed),
        },
        "masses": _masses_json(masses, hosts, least, resamples, seed),
        "brought_per_copy_at_2": float(
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
        name: band_json(whole, mask, resamples=resamples, seed=seed)
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
        **band_json(only(part, every), every, resamples=resamples, seed=seed),
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
