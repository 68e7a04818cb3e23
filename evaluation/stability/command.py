"""``overread-eval robustness``: how much readings change where they should not.

The same nodule is read before and after a change of its lung box that leaves the nodule as it is
(`evaluation.stability.changes`), and so are false positives of the edge, for comparison.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from evaluation.accuracy.bootstrap import RESAMPLES, Interval, draw, interval
from evaluation.accuracy.truth import UNKNOWN, fully_marked, scan_name
from evaluation.common import cli
from evaluation.lesion_insertion.donors import read_donors
from evaluation.stability.changes import LARGEST_PASTED_MM
from evaluation.stability.locations import (
    FALSE_POSITIVE,
    NODULE,
    Sample,
    read_cube_samples,
    read_scan_sample,
    with_false_positives,
)
from evaluation.stability.readings import (
    CHANGES,
    CUT,
    ERASE,
    PASTE,
    READERS,
    SHIFT,
    Difference,
    differences,
    open_raw,
)
from imaging.volume import FloatArray
from models.markdown import Rows, percent
from models.markdown import interval as show_interval
from models.runtime.screener import LEAST_LOGIT

LOCATIONS = (NODULE, FALSE_POSITIVE)

MATERIAL = ("cubes", "scans")

LIMITS: Mapping[str, tuple[float, float | None]] = {
    CUT: (0.3, 1.0), SHIFT: (0.3, 1.0), ERASE: (0.15, None), PASTE: (0.15, None)
}  # fmt: skip
"""The largest median and 95th percentile of the absolute change of a nodule's logit."""

EXPLAINED = (
    "Change of the logit, before calibration: median and 95th percentile of its absolute value with"
    " 95 % intervals by bootstrap over patients, and its mean. Lost: of the locations where the"
    " edge had a candidate, those without one after the change."
)

Statistic = Callable[[FloatArray], Any]


def robustness_command(
    data: cli.Data,
    split: cli.Split,
    scans: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Whole scan with marks, or a folder of scans."),
    ] = None,
    more_scans: cli.MoreScans = None,
    marks: Annotated[
        list[Path] | None,
        cli.csv_option("Marks of whole scans: scan, kind, x, y, z, diameter_mm; may be repeated."),
    ] = None,
    model: cli.Model = None,
    hybrid: cli.CloudModel = None,
    most: cli.Limit = 0,
    resamples: cli.Resamples = RESAMPLES,
    seed: Annotated[int, typer.Option(min=0, help="Seed of changes, choice and bootstrap.")] = 0,
    as_json: cli.Json = False,
) -> None:
    """Change of logits under cut, shift, mirror, noise, and a nodule erased or pasted nearby."""
    folders, known = cli.known_scans(scans or [], more_scans, marks or [])
    if bool(folders) != bool(known):
        raise typer.BadParameter("--scans and --marks belong together: give both or neither")
    splits = tuple(split.split(","))
    readers = open_raw(model, hybrid)
    donors = [
        donor for donor in read_donors(data, splits)[0] if donor.diameter_mm <= LARGEST_PASTED_MM
    ]
    cubes = read_cube_samples(data, splits, most, seed)
    whole = [
        read_scan_sample(folder, known.get(scan_name(folder), UNKNOWN))
        for folder in cli.each(fully_marked(folders, known), "scans from their files")
    ]
    result: dict[str, Any] = {
        "split": split, "seed": seed, "least_logit": LEAST_LOGIT, "limits": LIMITS,
    }  # fmt: skip
    for name, samples in zip(MATERIAL, (cubes, whole), strict=True):
        seen = [readers.edge(sample.box) for sample in cli.each(samples, f"{name}, unchanged")]
        chosen = with_false_positives(samples, seen)
        found = [
            difference
            for sample in cli.each(chosen, f"{name}, changed")
            for difference in differences(sample, readers, donors, seed)
        ]
        result[name] = {
            **_counts(chosen),
            "results": summaries(found, resamples=resamples, seed=seed),
        }
    cli.show(result, as_json, *tables(result))


def _counts(samples: Sequence[Sample]) -> dict[str, Any]:
    kinds = [location.kind for sample in samples for location in sample.locations]
    return {
        "samples": [sample.name for sample in samples],
        "patients": len({sample.patient for sample in samples if sample.locations}),
        "nodules": kinds.count(NODULE),
        "false_positives": kinds.count(FALSE_POSITIVE),
    }


def summaries(found: Sequence[Difference], *, resamples: int, seed: int) -> dict[str, Any]:
    """Return the figures for JSON, by kind of location, reader, and change."""
    shown: dict[str, Any] = {location: {name: {} for name in READERS} for location in LOCATIONS}
    for location, reader, change in product(LOCATIONS, READERS, CHANGES):
        group = [
            one for one in found if (one.kind, one.reader, one.change) == (location, reader, change)
        ]
        if not group:
            continue
        details = sorted({one.detail for one in group})
        parts = {
            detail: _figures([one for one in group if one.detail == detail], resamples, seed)
            for detail in (details if len(details) > 1 else ())
        }
        whole = _figures(group, resamples, seed)
        within = _within(change, whole) if location == NODULE else None
        shown[location][reader][change] = {**whole, "within": within, "parts": parts}
    return shown


def _figures(group: Sequence[Difference], resamples: int, seed: int) -> dict[str, Any]:
    """Return number, and median, 95th percentile, mean and lost share with their intervals."""
    known = [one for one in group if one.logit is not None]
    asked = [one for one in group if one.lost is not None]
    change = np.array([one.logit for one in known], float)
    lost = np.array([one.lost for one in asked], float)
    statistics: dict[str, tuple[list[Difference], FloatArray, Statistic]] = {
        "median": (known, np.abs(change), np.median),
        "p95": (known, np.abs(change), _p95),
        "mean": (known, change, np.mean),
        "lost": (asked, lost, np.mean),
    }
    shown: dict[str, Any] = {"count": len(known), "compared": len(group)}
    for name, (of, values, statistic) in statistics.items():
        shown[name] = None
        if len(values):
            patients = [one.patient for one in of]
            shown[name] = _interval(values, patients, statistic, resamples, seed).as_dict()
    return shown


def _p95(values: FloatArray) -> float:
    return float(np.quantile(values, 0.95))


def _interval(
    values: FloatArray, patients: Sequence[str], statistic: Statistic, resamples: int, seed: int
) -> Interval:
    """Return a statistic of ``values`` with its interval, by bootstrap over patients."""
    _, group = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        times = draw(int(group.max()) + 1, rng)[group].astype(int)
        drawn.append(statistic(np.repeat(values, times)))
    return interval(float(statistic(values)), np.array(drawn, float))


def _within(change: str, figures: Mapping[str, Any]) -> bool | None:
    """Return whether the limits of a change hold; None where there is no limit or no figure."""
    if change not in LIMITS or figures["median"] is None:
        return None
    median, p95 = LIMITS[change]
    return bool(
        figures["median"]["value"] <= median and (p95 is None or figures["p95"]["value"] <= p95)
    )


def tables(result: Mapping[str, Any]) -> list[Rows | str]:
    """Return a table for each kind of location and reader, and name the changes beyond limits."""
    shown, beyond = list[Rows | str](), list[str]()
    heads = ["change", "n", "median", "p95", "mean", "lost"]
    for name, location, reader in product(MATERIAL, LOCATIONS, READERS):
        rows = result[name]["results"][location][reader]
        if rows:
            cells = [_cells(change, row) for change, row in rows.items()]
            shown.append(Rows(heads, cells, f"{name}, {location}s, {reader}"))
        beyond += [
            f"{change} ({name}, {reader})" for change, row in rows.items() if row["within"] is False
        ]
    return [*shown, EXPLAINED, f"Beyond the limits: {', '.join(beyond) or 'nothing'}."]


def _cells(change: str, row: Mapping[str, Any]) -> list[str]:
    size = ["-" if row[key] is None else show_interval(row[key], 2) for key in ("median", "p95")]
    mean = "-" if row["mean"] is None else f"{row['mean']['value']:+.2f}"
    lost = "-" if row["lost"] is None else percent(row["lost"]["value"])
    return [change, str(row["count"]), *size, mean, lost]
