"""Comparing trained networks on validation: results that are kept, and intervals of differences.

Pruning and distillation train one network a seed for each variant. Finished ones are kept in a
folder, so a comparison that was interrupted continues.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from imaging.volume import FloatArray
from models.runtime.errors import DamagedArtifact, UnfitArtifact
from models.training.run_folder import require_same, write_atomically
from models.training.screening import RATES, hits, summary

UNSEEN = -1e9
"""The logit, in a file, of a nodule without a peak."""

RESAMPLES = 2000

DATA_FILES = (
    "nodules/*.csv", "nodules/train.npz", "nodules/val.npz", "ct/scans.csv", "ct/marks.csv",
    "ct/*/**/*", "lidc/scans.csv", "lidc/marks.csv", "lidc/*/**/*",
)  # fmt: skip
"""What results depend on in a data folder; every scan is taken, whatever its role."""

Scores = dict[str, list[float]]
"""Logits of the nodules (``found``) and of the false positives (``false_positives``)."""


def as_scores(found: FloatArray, false: FloatArray) -> Scores:
    """Return the logits of the nodules, -inf without a peak, and of the false positives."""
    return {
        "found": np.where(np.isfinite(found), found.round(4), UNSEEN).tolist(),
        "false_positives": false.round(4).tolist(),
    }


def figures(scores: Scores, scans: int) -> dict[str, float]:
    """Return CPM and sensitivities in equal context."""
    return summary(*_logits(scores), scans)


def _logits(scores: Scores) -> tuple[FloatArray, FloatArray]:
    found = np.array(scores["found"])
    return np.where(found > UNSEEN, found, -np.inf), np.array(scores["false_positives"])


def points(change: FloatArray, patients: Sequence[str]) -> dict[str, float]:
    """Return the mean of ``change`` (seeds, nodules) in points of a hundred, and its 95 % interval.

    Each resample draws seeds, and the ``patients`` of the nodules, with replacement. The false
    positives of the few scans are not resampled.
    """
    rng, owner = np.random.default_rng(0), np.unique(patients, return_inverse=True)[1]
    count = int(owner.max()) + 1
    # a patient that is drawn twice has nodules of twice the weight
    weight = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)[:, owner]
    each = weight @ change.T / weight.sum(1, keepdims=True)  # (resamples, seeds)
    seeds = rng.integers(len(change), size=each.shape)
    means = np.take_along_axis(each, seeds, 1).mean(1)
    value, (low, high) = float(change.mean()), np.quantile(means, [0.025, 0.975])
    if high - low < 1e-9:  # all patients are alike: at most as many differ as of 0 of n (exact)
        unlike = 1 - 0.025 ** (1 / count)
        low, high = value - unlike, value + unlike
    return {"value": 100 * value, "low": 100 * float(low), "high": 100 * float(high)}


def gained(
    more: Sequence[Scores], less: Sequence[Scores], patients: Sequence[str], scans: int
) -> dict[str, dict[str, float]]:
    """Return the points that ``more`` is above ``less`` in each of the `figures`, by `points`.

    Both hold one network a seed, in the same order.
    """
    at = [np.stack([hits(*_logits(one), scans) for one in seeds]) for seeds in (more, less)]
    gain = at[0] - at[1]
    each = {"cpm": gain.mean(2)}
    each |= {f"at_{rate:g}": gain[:, :, i] for i, rate in enumerate(RATES) if rate >= 1}
    return {name: points(change, patients) for name, change in each.items()}


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the JSON of a file, which is made and written first if it is missing."""
    if not path.exists():
        text = json.dumps(make(), indent=1, allow_nan=False) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise DamagedArtifact(f"{path}: no JSON ({error}); remove it to have it made") from error
    return found


def check_plan(folder: Path, wanted: dict[str, Any], data: Path) -> None:
    """Compare what a folder is made of with what is there; a folder without results may be taken.

    A path stands for the content of its file, ``data`` for all files of a data folder.

    Raises:
        UnfitArtifact: the folder has results of something else.
    """
    found = hashlib.sha256()
    for one in sorted({one for pattern in DATA_FILES for one in data.glob(pattern)}):
        if one.is_file():
            found.update(f"{one.relative_to(data)} {digest(one)} ".encode())
    named = json.dumps(
        {**wanted, "data": found.hexdigest()[:12]},
        default=lambda v: digest(v) if isinstance(v, Path) else asdict(v),
    )
    path, stated = folder / "plan.json", json.loads(named)
    if not any(one.is_file() and one != path for one in folder.glob("**/*")):
        path.unlink(missing_ok=True)  # of a comparison that ended before its first result
    elif not path.exists():
        raise UnfitArtifact(f"{folder}: has files and no {path.name}; expected a new folder")
    require_same(path, kept(path, lambda: stated), stated)


def digest(path: Path) -> str:
    """Return twelve hexadecimal digits of the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
