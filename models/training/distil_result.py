"""The comparison's figures as JSON: teachers, arms, and what each arm gains over no teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imaging.volume import FloatArray
from models.training.distil_figures import Scores, figures, points_gained
from models.training.distil_pool import Pool
from models.training.distil_teachers import Teacher, best_of, held_out_loss

CLAIM_POINTS = 2.3
"""What the published system says that its distillation gained."""


def result(
    pool: Pool, teachers: Sequence[Teacher], weights: FloatArray,
    scores: Mapping[str, Sequence[Scores]], start: Scores,
) -> dict[str, Any]:  # fmt: skip
    """``weights`` are those of `weigh` ``(teachers, n)``; ``scores`` has one reader a seed."""
    scans = int(pool.scans[0])
    base = scores["none"]
    return {
        "claim_points": CLAIM_POINTS,
        "pool": _counts(pool),
        "best_single": best_of(teachers, pool).name,
        "teachers": [
            _teacher(teacher, pool, share)
            for teacher, share in zip(teachers, _shares(weights), strict=True)
        ],
        "at_start": figures(start, scans),
        "arms": {arm: _spread([figures(s, scans) for s in of]) for arm, of in scores.items()},
        "gained": {
            arm: points_gained(of, base, pool.val_patients, scans)
            for arm, of in scores.items()
            if arm != "none"
        },
    }


def _counts(pool: Pool) -> dict[str, int]:
    return {
        "learnt": pool.learnt,
        "held_out": len(pool.voxels) - pool.learnt,
        "with_nodule": int(pool.label.sum()),
        "val_nodules": len(pool.val_nodules),
        "val_patients": len(np.unique(pool.val_patients)),
        "val_scans": int(pool.scans[0]),
        "val_scan_alarms": len(pool.scan_alarms),
        "val_cube_alarms": len(pool.cube_alarms),
    }


def _shares(weights: FloatArray) -> list[dict[str, float]]:
    """Of each teacher: its mean weight, and how often it has the largest."""
    first = weights.argmax(0)
    return [
        {"mean_weight": float(own.mean()), "first": float((first == k).mean())}
        for k, own in enumerate(weights)
    ]


def _teacher(teacher: Teacher, pool: Pool, share: dict[str, float]) -> dict[str, Any]:
    return {
        "name": teacher.name,
        "weights": teacher.digest,
        "temperature": round(teacher.temperature, 3),
        "held_out_loss": held_out_loss(teacher, pool),
        **share,
        "figures": figures(teacher.validation, int(pool.scans[0])),
    }


def _spread(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Of every figure: mean and standard deviation over the seeds, and each seed's."""
    found = {}
    for name in runs[0]:
        each = [run[name] for run in runs]
        sd = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
        found[name] = {"mean": float(np.mean(each)), "sd": sd, "seeds": each}
    return found
