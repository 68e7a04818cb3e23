"""Fit probabilities and their thresholds on cases that the guarantee does not use.

**One scale.** A probability is the share of nodules among such candidates of whole scans, with
`NODULES_PER_SCAN` nodules a scan. The edge's score, the cloud's and the merged one are three fits
of it. So a candidate is on the same scale with and without a verdict, and one threshold serves.

**The thresholds** follow from the scale. ``finding`` is the lowest that leaves at most
`FALSE_FINDINGS` false findings a scan, by the upper limit of the rate. ``possible`` leaves
`FALSE_LISTED` false candidates a scan in both lists. From ``report`` on no verdict takes a finding
away. Below ``dismiss`` none makes it possible, or more than `REGIONS` false candidates a scan would
be sent: then a verdict could list some of those that are dismissed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from imaging.volume import FloatArray
from models.calibration.cases import Cases
from models.calibration.statistics import logistic, poisson_limit
from models.runtime.detection import sigmoid

NODULES_PER_SCAN = 1186 / 888
"""Nodules that at least three of four readers marked, in the scans of LUNA16."""

FALSE_FINDINGS, CONFIDENCE = 1.0, 0.9
"""False findings a scan, at most, with this confidence: the scans are few."""

FALSE_LISTED = 3.0
"""False candidates a scan in both lists, findings and possible findings."""

REGIONS = 30.0
"""False candidates that are sent for a scan, at most, on average."""


def fit_settings(
    cases: Cases, cloud_calibration: Sequence[float] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the edge's settings (calibration, merge, thresholds) and the cloud's (calibration).

    ``cloud_calibration``, slope and intercept, is kept if it is given.

    Raises:
        ValueError: the fit gives a reader no weight, so that its scores do not rank nodules.
    """
    weight, nodule = weights_of(cases), cases.nodule
    bias, slope = logistic(cases.edge[:, None], nodule, weight)
    edge_by = (slope, bias)
    if cloud_calibration is None:
        bias, slope = logistic(cases.cloud[:, None], nodule, weight)
        cloud_calibration = (slope, bias)
    edge, cloud = (s * x + b for x, (s, b) in
                   ((cases.edge, edge_by), (cases.cloud, cloud_calibration)))  # fmt: skip
    # masses are left to the edge, so they have no say in the weights
    read = ~cases.mass
    # no nodule lies beyond: nothing tells how much more certain the cloud is there
    least, most = cloud[nodule & read].min(), cloud[nodule & read].max()
    clipped = np.clip(cloud, least, most)
    share = best_share(edge[read], clipped[read], nodule[read], cases.scans)
    both = share * edge + (1 - share) * clipped
    bias, slope = logistic(both[read, None], nodule[read], weight[read])
    merge = _rounded(bias, slope * share, slope * (1 - share), least, most)
    if min(edge_by[0], cloud_calibration[0], merge[1], merge[2]) <= 0:
        raise ValueError(f"slopes {edge_by[0]:.2g}, {cloud_calibration[0]:.2g}, weights {merge}: "
                         "expected above 0, the readers do not rank these nodules")  # fmt: skip
    settings = {
        "calibration": _rounded(*edge_by),
        "merge": merge,
        "thresholds": thresholds(edge, merged(edge, cloud, cases.mass, merge), cases, merge),
    }
    return settings, {"calibration": _rounded(*cloud_calibration)}


def best_share(
    edge: FloatArray, cloud: FloatArray, nodule: npt.NDArray[np.bool_], scans: int
) -> float:
    """Return the edge's share in the mean of both logits ``(n,)`` at which most nodules are found.

    What counts is the CPM, averaged over neighbouring shares, since its steps are coarse. A
    logistic regression would follow the few nodules that a reader rates lowest. It is 1 where the
    cloud adds nothing.
    """
    from models.training.screening import hits  # imports torch

    shares = np.linspace(0.05, 1.0, 20)
    mixed = (share * edge + (1 - share) * cloud for share in shares)
    cpm = [hits(both[nodule], both[~nodule], scans).mean() for both in mixed]
    smooth = np.convolve(np.pad(cpm, 2, mode="edge"), np.full(5, 0.2), "valid")
    return float(shares[np.argmax(smooth)])


def weights_of(cases: Cases) -> FloatArray:
    """Return the weight of each candidate ``(n,)``: nodules are as frequent as in whole scans."""
    share = NODULES_PER_SCAN * cases.scans / max(cases.nodules, 1)
    return np.where(cases.nodule, share, 1.0)


def merged(
    edge: FloatArray, cloud: FloatArray, mass: npt.NDArray[np.bool_], merge: Sequence[float]
) -> FloatArray:
    """Return the merged logits ``(n,)`` of calibrated ones, as `edge.merge.MergeWeights` does."""
    bias, edge_weight, cloud_weight, least, most = merge
    both = bias + edge_weight * edge + cloud_weight * np.clip(cloud, least, most)
    return np.where(mass, edge, both)


def thresholds(
    edge: FloatArray, both: FloatArray, cases: Cases, merge: Sequence[float]
) -> dict[str, float]:
    """Return the four thresholds; ``edge`` and ``both`` are calibrated logits ``(n,)``."""
    false = ~cases.nodule
    # the bound on regions comes first: what is never sent has no merged score to judge
    sent = _leaving(edge, false, int(REGIONS * cases.scans))
    false &= (edge >= sent) | cases.mass  # the others are dismissed
    finding = _leaving(both, false, allowed(cases.scans))
    possible = min(_leaving(both, false, int(FALSE_LISTED * cases.scans)), finding)
    bias, edge_weight, cloud_weight, least, most = merge
    # the edge's logit at which the most extreme verdict just reaches a threshold
    out_of_reach = (possible - bias - cloud_weight * most) / edge_weight
    beyond_doubt = (finding - bias - cloud_weight * least) / edge_weight
    # below ``dismiss`` no verdict could make it possible, or too many would be sent; above
    # ``report`` none could take it back
    dismiss = max(out_of_reach, sent)
    report = max(beyond_doubt, dismiss)
    values = {"possible": possible, "finding": finding, "dismiss": dismiss, "report": report}
    chances = {name: float(sigmoid(np.array(value))) for name, value in values.items()}
    # upwards: near 1 the sixth digit counts, and a lower one would let a verdict take findings back
    chances["report"] = math.ceil(chances["report"] * 1e6) / 1e6
    return {name: round(chance, 6) for name, chance in chances.items()}


def allowed(scans: int) -> int:
    """Return how many false findings of ``scans`` scans keep the rate within `FALSE_FINDINGS`."""
    count = 0
    while poisson_limit(count + 1, CONFIDENCE) <= FALSE_FINDINGS * scans:
        count += 1
    return count


def _leaving(logit: FloatArray, false: npt.NDArray[np.bool_], count: int) -> float:
    """Return the lowest threshold that leaves ``count`` of the false candidates, -30 for all.

    It lies in the middle between two candidates.
    """
    ranked = np.sort(logit[false])[::-1]
    if count >= len(ranked):
        return -30.0
    least = float(ranked[count])
    return (least + float(logit[logit > least].min(initial=least + 2.0))) / 2


def probabilities(
    cases: Cases, settings: Mapping[str, Any], cloud: Mapping[str, Any]
) -> tuple[FloatArray, FloatArray]:
    """Return the edge's probabilities and the merged ones ``(n,)`` with these settings."""
    (slope, bias), (cloud_slope, cloud_bias) = settings["calibration"], cloud["calibration"]
    edge = slope * cases.edge + bias
    both = merged(edge, cloud_slope * cases.cloud + cloud_bias, cases.mass, settings["merge"])
    return sigmoid(edge), sigmoid(both)


def _rounded(*values: float) -> list[float]:
    return [round(float(v), 6) for v in values]
