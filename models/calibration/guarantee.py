"""Fit the settings of both artifacts, and the guarantee on missed nodules of their thresholds.

A nodule is missed if it is in neither list of the report, findings and possible findings. So the
guarantee is sought along a path of the threshold ``possible``; ``dismiss`` is what validation
gave.

- If the requested guarantee holds somewhere on the path, ``possible`` is lowered to it.
- If not, it stays, and the bound for it alone is stated. This is valid because no threshold was
  chosen from calibration patients.
- Last, ``dismiss`` is raised to the lowest edge score at which a verdict can reach ``possible``:
  requests below it cost time and find nothing.

Calibration, merger and thresholds are fitted on validation patients, the guarantee on patients of
the split ``calibration``, which nothing else was fitted on. Limits: their nodules are read in
cubes, and cubes lie inside the lungs; `overread-eval lesion-insertion` and `overread-eval whole`
measure what that changes.
"""

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from models.calibration.fit import CLOUD_QUANTILE, Cases, gather, logistic, thresholds
from models.calibration.risk_control import (
    ALPHA,
    DELTA,
    Bound,
    ScoredNodules,
    ThresholdPath,
    control,
    expected_bound,
    losses,
    p_value_of,
    straight_path,
    upper_bound_of,
)
from models.patients import CALIBRATION
from models.runtime.artifacts import Artifact, find
from models.runtime.screener import Screener, read_by
from models.runtime.second_reader import SecondReader
from models.runtime.session import open_session
from models.runtime.sigmoid import sigmoid

OUTLINE_LOGIT = 1.0
"""Mask logit of the region in which HU is measured, about as wide as readers draw. From 0 to 2 the
diameters of spheres differ by at most 0.4 mm."""

BOUND = Bound.BETTING
"""Patients with several nodules lose a part of them, which the exact bound would count as all."""

_DIGITS = 1e6


@dataclass(frozen=True)
class Target:
    """The requested guarantee: at most ``alpha`` missed, with confidence 1 - ``delta``."""

    alpha: float = ALPHA
    delta: float = DELTA


@dataclass(frozen=True)
class ReadWith:
    """What the calibration was read with; the manifest's ``guarantee`` names it.

    ``screening`` is as `models.runtime.screener.read_by` has it, ``hybrid`` a version, ``slice_mm``
    the largest distance of slices, ``region_side`` that of the regions in voxels; ``basis`` is what
    the nodules lay in.

    The headers of the calibration's scans are known of one alone. So ``kernels`` and ``contrast``
    are those of ten scans of the same collection, LIDC-IDRI, whose headers are known: eight
    STANDARD and two BONE (of GE), five of the ten with contrast medium.
    """

    screening: str
    hybrid: str
    slice_mm: float
    region_side: int
    basis: str = "nodules in cubes of 50 mm, where they are easier to find than in whole lungs"
    min_age: int = 18
    kernels: tuple[str, ...] = ("BONE", "STANDARD")
    contrast: bool = True


def run_fit(
    data: Path, screening: str, hybrid: str, target: Target, *, keep_hybrid: bool = False
) -> None:
    """Fit the settings of both artifacts on validation, and their guarantee on calibration.

    Both are entered in the manifest. No patient is in both. A hybrid that serves several screening
    networks has one calibration: ``keep_hybrid`` leaves its settings as they are.
    """
    # these need the extra `train`, which `guaranteed_settings` does without
    from models.export.manifest import amend
    from models.training.data import boxes_of_role, load_cubes

    console = Console(stderr=True)
    screener = Screener(open_session(uncalibrated(find(screening))))
    reader = SecondReader(open_session(uncalibrated(find(hybrid))))
    cubes, held_out = (load_cubes(data / "nodules", name) for name in ("val", CALIBRATION))
    with console.status("reading validation cases"):
        scans = boxes_of_role(data, "val")
        cases = gather(screener, reader, cubes.pieces, cubes.patients, scans)
    kept = find(hybrid).settings if keep_hybrid else {}
    settings, cloud = fit_settings(cases, kept.get("calibration"))
    if not keep_hybrid:
        cloud["outline"] = [OUTLINE_LOGIT]
    with console.status("reading calibration cases"):
        others = gather(screener, reader, held_out.pieces, held_out.patients)
    nodules = nodules_of(others, settings, cloud)
    settings |= guaranteed_settings(nodules, settings["thresholds"], target, settings["merge"])
    slice_mm = widest_slices_mm(data / "nodules" / "index.csv", set(held_out.patients))
    side = reader.roi_shape[0]
    read = ReadWith(read_by(find(screening).version), find(hybrid).version, slice_mm, side)
    settings["guarantee"] |= asdict(read) | {"kernels": list(read.kernels)}
    amend(screening, "settings", settings)
    amend(hybrid, "settings", cloud)
    console.print(settings, cloud)


def uncalibrated(artifact: Artifact) -> Artifact:
    """Return the artifact with its raw logits; the one in the manifest stays calibrated."""
    return replace(artifact, settings={**artifact.settings, "calibration": [1.0, 0.0]})


def fit_settings(
    cases: Cases, cloud_calibration: Sequence[float] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the edge's settings (calibration, merge, thresholds) and the cloud's (calibration).

    ``cloud_calibration``, slope and intercept, is kept if it is given.
    """
    # Platt calibration of each reader alone
    edge_bias, edge_slope = logistic(cases.edge[:, None], cases.nodule)
    if cloud_calibration is None:
        cloud_bias, cloud_slope = logistic(cases.cloud[:, None], cases.nodule)
    else:
        cloud_slope, cloud_bias = cloud_calibration
    edge, cloud = edge_bias + edge_slope * cases.edge, cloud_bias + cloud_slope * cases.cloud
    # the merger: a logistic regression on the sum of both logits, the cloud's clipped at the top.
    # With a weight for each, cubes gave the cloud two thirds; any share of the edge up to 0.6 was
    # as good for nodules planted into whole scans, and the edge is the better one there
    most = float(np.quantile(cloud[cases.nodule], CLOUD_QUANTILE))
    total = edge + np.minimum(cloud, most)  # see `edge.merge.MergeWeights`
    bias, weight = logistic(total[:, None], cases.nodule)
    merged = sigmoid(bias + weight * total)
    settings = {
        "calibration": _rounded(edge_slope, edge_bias),
        "merge": _rounded(bias, weight, weight, most),
        "thresholds": thresholds(sigmoid(edge), merged, cases),
    }
    return settings, {"calibration": _rounded(cloud_slope, cloud_bias)}


def _rounded(*values: float) -> list[float]:
    return [round(float(v), 6) for v in values]


def nodules_of(
    cases: Cases, settings: Mapping[str, Any], cloud: Mapping[str, Any]
) -> ScoredNodules:
    """Return the nodules of ``cases`` as scored with these settings; the missed ones come last.

    Where the patients are unknown, each nodule counts as a patient.
    """
    # as the edge does it: calibrate both logits, clip the cloud's, merge
    (slope, shift), (cloud_slope, cloud_shift) = settings["calibration"], cloud["calibration"]
    edge = slope * cases.edge[cases.nodule] + shift
    second = cloud_slope * cases.cloud[cases.nodule] + cloud_shift
    bias, edge_weight, cloud_weight, most = settings["merge"]
    merged = bias + edge_weight * edge + cloud_weight * np.minimum(second, most)
    patient = np.array([f"nodule {i}" for i in range(int(cases.nodule.sum()) + cases.missed)])
    if cases.patient:
        patient = np.array([*np.array(cases.patient)[cases.nodule], *cases.missed_patient])
    # a missed nodule has no edge score, and no merged one that could reach a threshold
    return ScoredNodules(
        np.concatenate([sigmoid(edge), np.full(cases.missed, -np.inf)]),
        np.concatenate([sigmoid(merged), np.zeros(cases.missed)]),
        patient,
    )


def guaranteed_settings(
    nodules: ScoredNodules, fitted: Mapping[str, float], target: Target, merge: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Return the settings ``thresholds``, as fitted or lowered, and ``guarantee``.

    ``merge`` is the manifest's, see `out_of_reach`.

    Raises:
        ValueError: every nodule is lost, or ``target`` is not in (0, 1).
    """
    report, delta = fitted["report"], target.delta
    # the furthest point of the path at which the guarantee holds; the fitted one if none does
    path = straight_path(fitted["dismiss"])
    found = control(nodules, path, report=report, alpha=target.alpha, delta=delta, bound=BOUND)
    holds = found.guarantee.holds
    possible = min(fitted["possible"], found.possible) if holds else fitted["possible"]
    # the loss of every patient at that one point of the path, and the bound on its mean
    point = ThresholdPath(np.array([fitted["dismiss"]]), np.array([possible]))
    shares = losses(nodules, point, report)[:, 0]
    n, reached = len(shares), upper_bound_of(shares, delta, BOUND)
    if shares.all():
        raise ValueError(f"all nodules of {n} patients are lost: nothing can be guaranteed")
    # dismiss rises to where requests are useless; alone and report never lie below it
    dismiss = max(fitted["dismiss"], out_of_reach(possible, merge))
    moved = {"dismiss": dismiss, "possible": possible, "alone": max(fitted["alone"], dismiss)}
    moved["report"] = max(report, moved["alone"])
    guarantee = {
        "alpha": target.alpha if holds else _up(reached),
        "delta": delta,
        "average": _up(expected_bound(float(shares.mean()), n)),
        "patients": n,
        "calibration": nodules.identity,
        "asked_alpha": target.alpha,
        "confidence": _down(1 - float(p_value_of(shares, target.alpha, delta, BOUND))),
        "holds": holds,
    }
    return {
        "thresholds": {**fitted, **{name: _down(value) for name, value in moved.items()}},
        "guarantee": guarantee,
    }


def out_of_reach(least: float, merge: Sequence[float]) -> float:
    """Return the lowest edge score at which a verdict can bring the merged score to ``least``.

    ``merge`` is ``[bias, edge, cloud, most]``: the cloud's logit counts no further than ``most``.
    0 if it counts without limit or the edge does not count.
    """
    bias, edge, cloud, *most = merge
    if not most or edge <= 0 or cloud < 0 or not 0 < least < 1:
        return 0.0
    # solve least = sigmoid(bias + edge * logit + cloud * most) for the edge's logit
    logit = (math.log(least / (1 - least)) - bias - cloud * most[0]) / edge
    return 1 / (1 + math.exp(-logit))


def widest_slices_mm(index: Path, patients: Collection[str]) -> float:
    """Return the largest distance of slices among the scans of ``patients`` in `index.csv`."""
    with index.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["patient"] in patients]
    return max(float(row["slice_spacing"]) for row in rows)


def _up(value: float) -> float:
    """Round towards the cautious side of a bound."""
    return math.ceil(value * _DIGITS) / _DIGITS


def _down(value: float) -> float:
    """Round towards the cautious side."""
    return math.floor(value * _DIGITS) / _DIGITS
