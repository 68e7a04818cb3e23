"""What the fitted thresholds promise of missed nodules, as the manifest and then the report say it.

The path that thresholds are lowered along is fixed beforehand: ``dismiss`` is a set part of
``final``. Where the promise asked for can be had on it, the fit's thresholds are lowered that
far. Where it cannot, they stay and say what they do promise: ``final`` was set by false alarms,
which are no nodules, and ``dismiss`` lies at or below its part of it, so the bound is that of one
point which no nodule chose. At last ``dismiss`` rises to where no verdict can bring a candidate to
``final`` any more: asking below that loses time and finds nothing. Calibration and merger have seen
the same patients: their seven numbers are taken as given, and `overread-eval guarantee` shows what
holds on others. Nodules are read in cubes, where they score higher than in whole lungs: the promise
says so. Cubes lie within the lungs: a nodule that their outline leaves out is beyond it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imaging.volume import FloatArray
from models.calibration.fit import Cases, sigmoid
from models.calibration.risk_control import (
    ALPHA,
    DELTA,
    Bound,
    ScoredNodules,
    ThresholdPath,
    control,
    losses,
    p_value,
    straight_path,
    upper_bound,
)

DISMISS_SHARE = 0.25
"""``dismiss`` as a part of ``final`` along the path."""

BOUND = Bound.HOEFFDING_BENTKUS

_DIGITS = 1e6


@dataclass(frozen=True)
class Asked:
    """What is to be promised: at most ``alpha`` missed, with confidence 1 - ``delta``."""

    alpha: float = ALPHA
    delta: float = DELTA


@dataclass(frozen=True)
class Read:
    """What a calibration was read with, which the manifest's ``guarantee`` names as well.

    ``screening`` is as `models.runtime.screener.read_by` has it, ``hybrid`` a version, ``slice_mm``
    the largest distance of slices, ``region_side`` that of the regions in voxels; ``basis`` is what
    the nodules lay in.
    """

    screening: str
    hybrid: str
    slice_mm: float
    region_side: int
    basis: str = "nodules in cubes of 50 mm"


def nodules_of(
    cases: Cases, settings: Mapping[str, Any], cloud: Mapping[str, Any]
) -> ScoredNodules:
    """The nodules of ``cases`` as readers with these settings score them; the missed ones last.

    Where nobody knows whose they are, each counts as a patient.
    """
    edge = _scaled(cases.edge[cases.nodule], settings["calibration"])
    second = _scaled(cases.cloud[cases.nodule], cloud["calibration"])
    bias, edge_weight, cloud_weight, most = settings["merge"]
    merged = bias + edge_weight * edge + cloud_weight * np.minimum(second, most)
    return ScoredNodules(
        np.concatenate([sigmoid(edge), np.full(cases.missed, -np.inf)]),
        np.concatenate([sigmoid(merged), np.zeros(cases.missed)]),
        _owners(cases),
    )


def promise(
    nodules: ScoredNodules, fitted: Mapping[str, float], asked: Asked, merge: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """The settings ``thresholds`` and ``guarantee``: ``final`` as fitted or lower, and the promise.

    ``merge`` is the manifest's, see `out_of_reach`.

    Raises:
        ValueError: every nodule is lost, or ``asked`` is not in (0, 1).
    """
    report, delta = fitted["report"], asked.delta
    path = straight_path(DISMISS_SHARE)
    found = control(nodules, path, report=report, alpha=asked.alpha, delta=delta, bound=BOUND)
    holds = found.guarantee.holds
    final = min(fitted["final"], found.final) if holds else fitted["final"]
    point = ThresholdPath(np.array([DISMISS_SHARE * final]), np.array([final]))
    shares = losses(nodules, point, report)[:, 0]
    mean, n = float(shares.mean()), len(shares)
    reached = upper_bound(mean, n, delta, BOUND)
    if reached >= 1:
        raise ValueError(f"all nodules of {n} patients are lost: nothing can be promised")
    dismiss = max(min(fitted["dismiss"], DISMISS_SHARE * final), out_of_reach(final, merge))
    moved = {"dismiss": dismiss, "final": final, "alone": max(fitted["alone"], dismiss)}
    moved["report"] = max(report, moved["alone"])
    guarantee = {
        "alpha": asked.alpha if holds else math.ceil(reached * _DIGITS) / _DIGITS,
        "delta": delta,
        "patients": n,
        "calibration": nodules.identity,
        "asked_alpha": asked.alpha,
        "confidence": _down(1 - float(p_value(mean, n, asked.alpha, BOUND))),
        "holds": holds,
    }
    thresholds = {**fitted, **{name: _down(value) for name, value in moved.items()}}
    return {"thresholds": thresholds, "guarantee": guarantee}


def out_of_reach(final: float, merge: Sequence[float]) -> float:
    """The edge's score below which no verdict brings the merged score to ``final``.

    ``merge`` is ``[bias, edge, cloud, most]``: the cloud's logit counts no further than ``most``.
    0 where it counts without end or the edge does not count.
    """
    bias, edge, cloud, *most = merge
    if not most or edge <= 0 or cloud < 0 or not 0 < final < 1:
        return 0.0
    logit = (math.log(final / (1 - final)) - bias - cloud * most[0]) / edge
    return 1 / (1 + math.exp(-logit))


def widest_slices_mm(index: Path, split: str) -> float:
    """The largest distance of slices among the scans of ``split`` in `index.csv`."""
    with index.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    return max(float(row["slice_spacing"]) for row in rows)


def _owners(cases: Cases) -> np.ndarray:
    if not cases.patient:
        return np.array([f"nodule {i}" for i in range(int(cases.nodule.sum()) + cases.missed)])
    return np.array([*np.array(cases.patient)[cases.nodule], *cases.missed_patient])


def _scaled(logit: FloatArray, calibration: tuple[float, float]) -> FloatArray:
    slope, bias = calibration
    return np.asarray(slope * logit + bias)


def _down(value: float) -> float:
    """Rounded towards the cautious side."""
    return math.floor(value * _DIGITS) / _DIGITS
