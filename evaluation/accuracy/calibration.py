"""``overread-eval calibration``: probabilities, the choice of the thresholds, and the guarantee.

A candidate weighs as in the fit: as many nodules a scan as in whole scans (`weights_of`). So a
probability can be compared with the share of nodules among such candidates.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from cloud.settings import load_settings as load_cloud_settings
from edge.merge import MergeWeights
from edge.settings.core import load_settings
from evaluation.accuracy.bootstrap import draw, poisson
from evaluation.run import SHARE, Bar, CloudModel, Model, Result, Table, command, each
from imaging.volume import FloatArray
from models.calibration.cases import Cases, Readers, candidates_of, inserted, read_scans
from models.calibration.fit import probabilities, weights_of
from models.calibration.guarantee import (
    COMPARED,
    FITTED_ON,
    PLACEMENTS,
    SEED,
    UNTRAINED,
    losses,
    part_of,
    uncalibrated_readers,
)
from models.calibration.statistics import upper_bound
from models.data.folder import CALIBRATION
from models.runtime.artifacts import find
from models.runtime.detection import sigmoid

RANGES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 0.7, 0.9, 1.0)
"""Limits of the ranges of probability in which the share of nodules is counted."""

SETS = 1000
"""Calibration sets that are drawn to see how often a guarantee holds."""

FITTED, UNSEEN = "fitted on", "test"
EDGE, BOTH = READERS = ("edge", "edge and cloud")
LISTS = {"findings": "findings", "listed": "both lists"}

RATE = ("false a scan", "{:.2f}")


@dataclass(frozen=True)
class Settings:
    """What the manifest has of both networks."""

    edge: Mapping[str, Any]
    cloud: Mapping[str, Any]

    def scores(self, cases: Cases) -> dict[str, FloatArray]:
        """Return the probabilities of each reader ``(n,)``."""
        edge, both = probabilities(cases, self.edge, self.cloud)
        slope, bias = self.cloud["calibration"]
        return {EDGE: edge, "cloud": sigmoid(slope * cases.cloud + bias), BOTH: both}

    @property
    def limits(self) -> Mapping[str, float]:
        """The thresholds."""
        limits: Mapping[str, float] = self.edge["thresholds"]
        return limits


def bars(result: Result) -> Iterator[Bar]:
    """Yield the misses of test patients, which the guarantee limits."""
    for row in result["missed"]:
        if row["patients"] == UNSEEN:
            shown = f"{100 * row['miss_rate']:.1f} %, of {row['number']} patients"
            what = f"nodules of test patients missed, {row['list']}"
            yield Bar(what, row["miss_rate"], row["guaranteed"], SHARE, shown=shown)


@command(
    Table("thresholds", {
        "cases": "scans and nodules", "reader": "reader", "threshold": "threshold",
        "probability": ("probability", "{:.4f}"), "found": "nodules kept", "nodules": "of",
        "sensitivity": ("share", SHARE), "false_per_scan": RATE,
    }, title="Thresholds"),
    Table("false_findings", {"scans": "scans", "reader": "reader", "number": "number",
                             "false_per_scan": RATE}, title="False findings of each role"),
    Table("verdicts", {
        "cases": "scans and nodules", "nodules_added": "nodules that became findings",
        "nodules_removed": "nodules removed",
        "false_added": "false candidates that became findings",
        "false_removed": "false candidates removed",
    }, title="By verdicts"),
    Table("reliability", {
        "cases": "scans and nodules", "reader": "reader", "from": "from", "to": "to",
        "mean": ("mean", "{:.3f}"), "share": ("share of nodules", "{:.3f}"), "nodules": "nodules",
        "false": "false",
    }, title="Probabilities"),
    Table("missed", {
        "patients": "patients", "number": "number", "list": "list", "miss_rate": ("missed", SHARE),
        "at_most": ("at most", SHARE), "guaranteed": ("guaranteed", SHARE), "within": "within",
    }, title="The guarantee"),
    "The bound of drawn sets holds: findings {kept_by_sets[findings]:.1%}, both lists"
    " {kept_by_sets[listed]:.1%}.",
    "With the surest verdict a candidate that is dismissed could reach {reach[dismissed]:.2f}; with"
    " the least sure one that is reported keeps {reach[reported]:.3f} or more.",
    bars=bars,
)  # fmt: skip
def calibration(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder with nodules/, lidc/ and ct/.")],
    model: Model = None,
    cloud_model: CloudModel = None,
) -> dict[str, Any]:
    """Probabilities against shares of nodules, the choice of thresholds, and the guarantee."""
    import torch  # noqa: F401 - a lack of it is told now, not after an hour of reading

    from models.training.data import load_cubes
    from models.training.insertions import donors_of

    screening = model or load_settings().screening_model
    hybrid = cloud_model or load_cloud_settings().model
    edge, second = find(screening), find(hybrid)
    settings, readers = Settings(edge.settings, second.settings), uncalibrated_readers(edge, second)
    read = {}
    parts = {"val": FITTED_ON, CALIBRATION: UNTRAINED, UNSEEN: ("test",)}
    for split, roles in each(parts.items(), "splits", len(parts)):
        donors = donors_of(load_cubes(data / "nodules", split))
        read[split] = _read(data, roles, donors, readers)
    return as_dict(read, settings)


def _read(data: Path, roles: tuple[str, ...], donors: Any, readers: Readers) -> dict[str, Cases]:
    scans = {role: read_scans(data, (role,), readers) for role in roles}
    every = [one for of in scans.values() for one in of]
    nodules = inserted(every, donors, readers, placements=PLACEMENTS, seed=SEED)
    return {"nodules": nodules, **{role: candidates_of(of, readers) for role, of in scans.items()}}


def joined(read: Mapping[str, Mapping[str, Cases]]) -> dict[str, Cases]:
    """Return nodules and scans together, of what the fit has seen and of test."""
    found = {}
    for name, split in ((FITTED, "val"), (UNSEEN, "test")):
        first, *rest = read[split].values()
        found[name] = sum(rest, first)
    return found


def as_dict(read: Mapping[str, Mapping[str, Cases]], settings: Settings) -> dict[str, Any]:
    """Return all figures; ``read`` has the nodules and the scans of each split."""
    terms, rng = settings.edge["guarantee"], np.random.default_rng(SEED)
    limits, merge = settings.limits, MergeWeights.from_manifest(settings.edge)
    held_out = read[CALIBRATION]["nodules"]
    by_list = losses(held_out, settings.edge, settings.cloud)
    scores = {name: (cases, settings.scores(cases)) for name, cases in joined(read).items()}
    return {
        "limits": dict(limits),
        "merge": settings.edge["merge"],
        # the highest merged probability below ``dismiss``, and the lowest from ``report`` on
        "reach": {"dismissed": merge.merged(limits["dismiss"], 1.0, 0.0),
                  "reported": merge.merged(limits["report"], 0.0, 0.0)},
        "thresholds": [
            {"cases": name, "reader": reader, "threshold": what,
             **listed(of[reader], cases, settings, limits[what])}
            for name, (cases, of) in scores.items()
            for reader in READERS
            for what in ("finding", "possible")
        ],
        "false_findings": [
            {"scans": role, "reader": reader, "number": cases.scans,
             "false_per_scan": listed(settings.scores(cases)[reader], cases, settings,
                                      settings.limits["finding"])["false_per_scan"]}
            for role, cases in {**read["val"], **read["test"]}.items()
            if role != "nodules"
            for reader in READERS
        ],
        "verdicts": [
            {"cases": name, **changed(cases, settings)} for name, (cases, _) in scores.items()
        ],
        "reliability": [
            {"cases": name, "reader": reader, **row}
            for name, (cases, of) in scores.items()
            for reader, score in of.items()
            for row in reliability(score, cases)
        ],
        "terms": dict(terms),
        "missed": [
            {"patients": split, **row}
            for split, cases in ((CALIBRATION, held_out), (UNSEEN, read["test"]["nodules"]))
            for row in missed(cases, settings)
        ],
        "compared": COMPARED,
        "kept_by_sets": {
            name: kept_by_sets(shares, part_of(terms["delta"]), rng)
            for name, shares in zip(LISTS, by_list, strict=True)
        },
    }  # fmt: skip


def reliability(score: FloatArray, cases: Cases) -> Iterator[dict[str, float]]:
    """Yield for each of `RANGES` the mean probability, the share of nodules, and the counts."""
    weight = weights_of(cases)
    at = np.clip(np.searchsorted(RANGES, score, "right") - 1, 0, len(RANGES) - 2)
    for number in range(len(RANGES) - 1):
        inside = at == number
        if mass := float(weight[inside].sum()):
            yield {
                "from": RANGES[number],
                "to": RANGES[number + 1],
                "mean": float((score * weight)[inside].sum() / mass),
                "share": float(weight[inside & cases.nodule].sum() / mass),
                "nodules": int((inside & cases.nodule).sum()),
                "false": int((inside & ~cases.nodule).sum()),
            }


def listed(score: FloatArray, cases: Cases, settings: Settings, least: float) -> dict[str, Any]:
    """Return nodules and false candidates from ``least`` on that the edge does not dismiss."""
    kept = (score >= least) & not_dismissed(cases, settings)
    found, false = int((kept & cases.nodule).sum()), int((kept & ~cases.nodule).sum())
    return {
        "probability": least,
        "found": found,
        "nodules": cases.nodules,
        "sensitivity": found / max(cases.nodules, 1),
        "false": false,
        "scans": cases.scans,
        "false_per_scan": poisson(false, cases.scans).as_dict(),
    }


def not_dismissed(cases: Cases, settings: Settings) -> npt.NDArray[np.bool_]:
    """Return which candidates ``(n,)`` the edge does not dismiss."""
    return (settings.scores(cases)[EDGE] >= settings.limits["dismiss"]) | cases.mass


def changed(cases: Cases, settings: Settings) -> dict[str, int]:
    """Count the findings that verdicts make and take away, of nodules and of false candidates."""
    scores, limit = settings.scores(cases), settings.limits["finding"]
    alone, both = scores[EDGE] >= limit, (scores[BOTH] >= limit) & not_dismissed(cases, settings)
    return {
        f"{kind}_{what}": int((which & moved).sum())
        for kind, which in (("nodules", cases.nodule), ("false", ~cases.nodule))
        for what, moved in (("added", both & ~alone), ("removed", alone & ~both))
    }


def missed(cases: Cases, settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield the miss rate of patients by either list, with its upper limit."""
    terms = settings.edge["guarantee"]
    limits = (terms["alpha_findings"], terms["alpha"])
    shares = losses(cases, settings.edge, settings.cloud)
    for name, of, limit in zip(LISTS.values(), shares, limits, strict=True):
        yield {
            "number": len(of),
            "list": name,
            "miss_rate": float(of.mean()),
            "at_most": upper_bound(of, part_of(terms["delta"])),
            "guaranteed": limit,
            "within": bool(of.mean() <= limit),
        }


def kept_by_sets(shares: FloatArray, delta: float, rng: np.random.Generator) -> float:
    """Return how often the bound of patients drawn with replacement is at least the true rate.

    All patients stand for the population: their mean loss is the true rate.
    """
    sets = (np.repeat(shares, draw(len(shares), rng).astype(int)) for _ in range(SETS))
    bounds = np.array([upper_bound(one, delta) for one in sets])
    return float((bounds >= shares.mean()).mean())
