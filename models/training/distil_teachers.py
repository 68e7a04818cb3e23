"""What every teacher says of the pool: asked once, kept beside the pool, calibrated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from torch import nn

from imaging.volume import FloatArray, UInt8Array
from models.training.distil_figures import Scores
from models.training.distil_pool import Pool, write_arrays
from models.training.hybrid import logits
from models.training.loop import channels_last
from models.training.teacher import kind_of, open_teacher

TEMPERATURES = np.geomspace(0.1, 10.0, 401)


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained teacher and its word.

    Attributes:
        name: its kind, numbered where there are several.
        digest: twelve digits of its weights' SHA-256.
        temperature: what its logits are divided by; fitted on validation.
        pool: its logits of the pool's regions ``(n,)``, calibrated.
        validation: its logits of the validation regions, as they came.
    """

    name: str
    digest: str
    temperature: float
    pool: FloatArray
    validation: Scores


def ask_teachers(paths: Sequence[Path], pool: Pool, folder: Path) -> list[Teacher]:
    """The teachers whose weights are given; ``folder`` keeps what each said of this pool."""
    asked = [_ask(path, pool, folder) for path in paths]
    kinds = [kind for kind, *_ in asked]
    names = [
        kind if kinds.count(kind) == 1 else f"{kind}-{kinds[: i + 1].count(kind)}"
        for i, kind in enumerate(kinds)
    ]
    return [
        _calibrated(name, digest, said)
        for name, (_, digest, said) in zip(names, asked, strict=True)
    ]


def temperature_of(found: FloatArray, alarms: FloatArray) -> float:
    """The temperature that makes the logits say how sure one may be, nodules and alarms even.

    The log loss is least there (Guo et al., arXiv:1706.04599); both classes weigh one half.
    """
    return float(min(TEMPERATURES, key=lambda t: _loss(found / t) + _loss(-alarms / t)))


def log_loss(logits: FloatArray, label: FloatArray) -> float:
    """The mean of -ln of the probability that the label was given."""
    return _loss(np.where(label > 0, logits, -logits))


def held_out_loss(teacher: Teacher, pool: Pool) -> float:
    """Its log loss on the regions of the pool that students do not learn from."""
    return log_loss(teacher.pool[pool.learnt :], pool.label[pool.learnt :])


def best_of(teachers: Sequence[Teacher], pool: Pool) -> Teacher:
    """The one with the least `held_out_loss`."""
    return min(teachers, key=lambda teacher: held_out_loss(teacher, pool))


def _loss(logits: FloatArray) -> float:
    return float(np.logaddexp(0, -logits).mean())


def _calibrated(name: str, digest: str, said: dict[str, FloatArray]) -> Teacher:
    scores = Scores(*(said[field.name] for field in fields(Scores)))
    alarms = np.concatenate([scores.scan_alarms, scores.cube_alarms])
    temperature = temperature_of(scores.nodules, alarms)
    return Teacher(name, digest, temperature, said["pool"] / temperature, scores)


def _ask(path: Path, pool: Pool, folder: Path) -> tuple[str, str, dict[str, FloatArray]]:
    network = channels_last(open_teacher(path).eval())
    kind, digest = kind_of(network), hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    kept = folder / f"logits_{pool.key}_{digest}.npz"
    if not kept.exists():
        regions = {"pool": pool.voxels, **pool.judged}
        said = {name: _read(network, part, f"{kind}, {name}") for name, part in regions.items()}
        write_arrays(kept, said)
    with np.load(kept) as found:
        return kind, digest, dict(found)


def _read(network: nn.Module, regions: UInt8Array, what: str) -> FloatArray:
    starts = track(range(0, len(regions), 64), what, console=Console(stderr=True))
    parts = [logits(network, regions[start : start + 64]) for start in starts]
    return np.concatenate(parts) if parts else np.zeros(0)
