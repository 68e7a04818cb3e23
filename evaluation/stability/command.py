"""``overread-eval robustness``: how much readings change where they should not.

The same nodule is read before and after a change of its lung box that leaves the nodule as it is
(`evaluation.stability.readings`), and so are false positives of the edge, for comparison.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.accuracy.bootstrap import by_patient
from evaluation.accuracy.options import Marks, MoreScans, Scans, marked_scans
from evaluation.accuracy.truth import scan_name
from evaluation.result import SHARE, Table
from evaluation.run import CloudModel, Model, command, each
from evaluation.stability.readings import (
    CHANGES,
    CUT,
    FALSE_POSITIVE,
    NODULE,
    READERS,
    SHIFT,
    Difference,
    differences,
    open_raw,
    read_sample,
    with_false_positives,
)
from models.runtime.screener import LEAST_LOGIT

LIMITS: Mapping[str, tuple[float, float]] = {CUT: (0.3, 1.0), SHIFT: (0.3, 1.0)}
"""The largest median and 95th percentile of the absolute change of a nodule's logit."""


@command(
    Table("changes", {
        "reader": "reader", "change": "change", "count": "number",
        "median": ("median", "{:.2f}"), "p95": ("95th percentile", "{:.2f}"),
        "mean.value": ("mean", "{:+.2f}"), "lost.value": ("lost", SHARE),
        "within": "within limits", "beside": ("false positives, median", "{:.2f}"),
    }, title="{nodules} nodules and as many false positives in whole scans"),
    "Change of the logit, before calibration: median and 95th percentile of its absolute value with"
    " 95 % intervals by bootstrap over patients, and its mean. Lost: of the locations where the"
    " edge had a candidate, those without one after the change.",
)  # fmt: skip
def robustness(
    scans: Scans,
    truth: Marks,
    more_scans: MoreScans = None,
    model: Model = None,
    hybrid: CloudModel = None,
) -> dict[str, Any]:
    """Change of logits of nodules in whole scans under cut, shift, mirror and noise."""
    folders, known = marked_scans(scans, more_scans, truth)
    readers = open_raw(model, hybrid)
    samples = [
        read_sample(folder, known[scan_name(folder)])
        for folder in each(folders, "scans from their files")
    ]
    seen = [readers.edge(sample.box) for sample in each(samples, "scans, unchanged")]
    found = [
        difference
        for sample in each(with_false_positives(samples, seen), "scans, changed")
        for difference in differences(sample, readers)
    ]
    return {
        "scans": [sample.name for sample in samples],
        "nodules": sum(len(sample.locations) for sample in samples),
        "least_logit": LEAST_LOGIT,
        "limits": LIMITS,
        "changes": list(summaries(found)),
    }


def summaries(found: Sequence[Difference]) -> Iterator[dict[str, Any]]:
    """Yield the figures of nodules by reader and change, beside the median of false positives."""
    for reader, change in product(READERS, CHANGES):
        of = [one for one in found if (one.reader, one.change) == (reader, change)]
        nodules, beside = (
            _figures([one for one in of if one.kind == kind]) for kind in (NODULE, FALSE_POSITIVE)
        )
        if nodules["count"]:
            median = beside["median"] and beside["median"]["value"]
            within = _within(change, nodules)
            yield {
                "reader": reader,
                "change": change,
                **nodules,
                "within": within,
                "beside": median,
            }


def _within(change: str, figures: Mapping[str, Any]) -> bool | None:
    """Return whether the limits of a change hold; None where there is no limit."""
    if change not in LIMITS:
        return None
    pairs = zip(("median", "p95"), LIMITS[change], strict=True)
    return all(figures[key]["value"] <= limit for key, limit in pairs)


def _figures(group: Sequence[Difference]) -> dict[str, Any]:
    """Return number, and median, 95th percentile, mean and lost share with their intervals."""
    known = [one for one in group if one.logit is not None]
    asked = [one for one in group if one.lost is not None]
    change = np.array([one.logit for one in known], float)
    lost = np.array([one.lost for one in asked], float)

    def of_change(chosen: npt.NDArray[np.int64]) -> Sequence[float]:
        size = np.abs(change[chosen])
        return [np.median(size), np.quantile(size, 0.95), change[chosen].mean()]

    shown: dict[str, Any] = {
        "count": len(known),
        **dict.fromkeys(("median", "p95", "mean", "lost")),
    }
    if known:
        values = by_patient([one.patient for one in known], of_change)
        shown |= zip(("median", "p95", "mean"), (one.as_dict() for one in values), strict=True)
    if asked:
        (share,) = by_patient([one.patient for one in asked], lambda i: [lost[i].mean()])
        shown["lost"] = share.as_dict()
    return shown
