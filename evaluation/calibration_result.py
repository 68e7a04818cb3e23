"""The figures of calibration for machines: each reader before and after, and what else there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluation.calibration import (
    EVEN,
    BoolArray,
    Reliability,
    at_prior,
    brier,
    class_weights,
    ece_interval,
    log_loss,
    reliability,
)
from evaluation.calibration_cases import Candidates
from evaluation.calibration_methods import METHODS, cross_validated
from evaluation.scores import Fitted, calibrated
from imaging.volume import FloatArray

READERS = ("edge", "cloud", "merged")

PRIOR = (
    "Class prior 0.5: nodules and false candidates weigh the same, as in the fit. Where it is said"
    " to be as found, each candidate counts once, and scores are taken to the share of nodules"
    " that the fitting split has. Before: the networks' own logits, for merged their mean."
)


def before(of: Candidates) -> dict[str, FloatArray]:
    """Scores without any fit."""
    logits = {"edge": of.edge, "cloud": of.cloud, "merged": (of.edge + of.cloud) / 2}
    return {name: calibrated(logit) for name, logit in logits.items()}


def after(of: Candidates, fitted: Fitted) -> dict[str, FloatArray]:
    """Scores as they are shipped."""
    edge, merged = fitted.scores(of.edge, of.cloud)
    return {"edge": edge, "cloud": calibrated(of.cloud, fitted.cloud), "merged": merged}


def as_json(
    splits: Mapping[str, Candidates], fitted: Fitted, fit_split: str, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Every split and reader; ``fit_split`` is the one that calibration was fitted on.

    Raises:
        KeyError: ``fit_split`` is none of the splits.
    """
    learnt = splits[fit_split]
    found = float(learnt.nodule.mean())
    return {
        "prior": PRIOR,
        "fitted_on": fit_split,
        "prior_as_found": found,
        "splits": {
            name: {
                "candidates": int(of.nodule.size),
                "nodules": int(of.nodule.sum()),
                "groups": int(np.unique(of.group).size),
                "readers": {
                    reader: _reader_json(of, fitted, reader, found, resamples, seed)
                    for reader in READERS
                },
            }
            for name, of in splits.items()
        },
        "methods": _methods_json(splits, fitted, fit_split, resamples, seed),
    }


def _reader_json(
    of: Candidates, fitted: Fitted, reader: str, found: float, resamples: int, seed: int
) -> dict[str, Any]:
    raw, shipped = before(of)[reader], after(of, fitted)[reader]
    return {
        "before": _judged(raw, of, EVEN, resamples, seed),
        "after": _judged(shipped, of, EVEN, resamples, seed),
        "before_as_found": _judged(raw, of, found, resamples, seed),
        "after_as_found": _judged(at_prior(shipped, found), of, found, resamples, seed),
    }


def _methods_json(
    splits: Mapping[str, Candidates], fitted: Fitted, fit_split: str, resamples: int, seed: int
) -> dict[str, Any]:
    """Each method on the fitting split by cross-validation, on the others fitted on all of it."""
    return {
        reader: {
            method: {
                name: _judged(
                    _by_method(method, reader, of, splits[fit_split], fitted, seed),
                    of, EVEN, resamples, seed,
                )
                for name, of in splits.items()
            }
            for method in METHODS
        }
        for reader in READERS
    }  # fmt: skip


def _by_method(
    method: str, reader: str, of: Candidates, learnt: Candidates, fitted: Fitted, seed: int
) -> FloatArray:
    fit, logit = METHODS[method], _logit_of(learnt, fitted, reader)
    if of is learnt:
        return cross_validated(fit, logit, learnt.nodule, learnt.group, seed)
    return fit(logit, learnt.nodule)(_logit_of(of, fitted, reader))


def _logit_of(of: Candidates, fitted: Fitted, reader: str) -> FloatArray:
    """What a method is fitted on: a network's own logit, or that of the shipped merger."""
    if reader != "merged":
        return of.edge if reader == "edge" else of.cloud
    merged = np.clip(after(of, fitted)["merged"], 1e-9, 1 - 1e-9)
    return np.asarray(np.log(merged / (1 - merged)))


def _judged(
    score: FloatArray, of: Candidates, prior: float, resamples: int, seed: int
) -> dict[str, Any]:
    weight = class_weights(of.nodule, prior)
    error = ece_interval(score, of.nodule, of.group, prior, resamples=resamples, seed=seed)
    return {
        "ece": error.as_json(),
        "log_loss": log_loss(score, of.nodule, weight),
        "brier": brier(score, of.nodule, weight),
        "bins": _bins_json(score, of.nodule, weight),
    }


def _bins_json(score: FloatArray, nodule: BoolArray, weight: FloatArray) -> dict[str, list[float]]:
    found: Reliability = reliability(score, nodule, weight)
    return {"score": found.score.round(5).tolist(), "share": found.share.round(5).tolist()}
