"""Teachers: training, their calibrated logits of the pool, and the weight of each per sample.

For teacher k and sample i with label y, let p be the teacher's calibrated probability, H(p) its
entropy in bits, a = p if y = 1 else 1 - p the probability that it gives the label, and m the mean
probability of the other teachers. Then

    s_ki = confidence (1 - H(p)) (2 a - 1) + correct a + peers (1 - |p - m|)
    w_ki = exp(sharpness s_ki) / sum_j exp(sharpness s_ji)

so that sum_k w_ki = 1 for every i. Confidence counts for a teacher that is right and against one
that is wrong. The soft target is

    q_i = sum_k w_ki sigmoid(z_ki / (T_k t)),

z the logit, T_k the teacher's calibration temperature, t that of the distillation (Hinton et al.,
arXiv:1503.02531). Weights of each sample from the label follow Zhang et al., Confidence-aware
multi-teacher knowledge distillation, arXiv:2201.00007; entropy and agreement are added here.

Some publications call the plain mean of the teachers' distributions dynamic weights. Here that is
`mean_target`, for comparison.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import nn

from imaging.volume import FloatArray, UInt8Array
from models.distillation.pool import Pool, stored
from models.distillation.scores import Scores
from models.networks.hybrid import HybridNetwork, HybridSpec
from models.networks.screening import ScreeningNetwork, ScreeningSpec
from models.networks.teacher import Kind, TeacherNetwork, TeacherSpec
from models.runtime.errors import UnfitArtifact
from models.runtime.sigmoid import sigmoid
from models.training.hybrid import logits
from models.training.loop import channels_last, train
from models.training.runs import Run, fitting, hybrid_task, load_weights, make_screening


def run_teacher(run: Run, screening: Sequence[Path], kind: Kind) -> None:
    """Train a teacher as the hybrid is trained: same regions, losses and figures."""
    torch.manual_seed(run.seed)
    screeners = [make_screening(path).eval() for path in screening]
    teacher = make_teacher(run.start, kind, screeners[-1])
    task = hybrid_task(run.material(), screeners, teacher)
    # a short decay of the weight average: a teacher has some hundred steps only
    train(task, replace(run.plan(decay=0.05), average=0.98))


def make_teacher(start: Path | None, kind: Kind, screening: ScreeningNetwork) -> TeacherNetwork:
    """Return a teacher with the weights of ``start`` and the known stem of ``screening``.

    Raises:
        UnfitArtifact: ``start`` holds another kind.
    """
    network = (
        TeacherNetwork(TeacherSpec.usual(kind, ScreeningSpec.of(screening.state_dict())))
        if start is None
        else open_teacher(start)
    )
    if not isinstance(network, TeacherNetwork) or network.spec.kind is not kind:
        raise UnfitArtifact(f"{start}: weights of a {kind_of(network)} teacher, expected {kind}")
    network.start_from(screening.state_dict())
    return network


def open_teacher(path: Path) -> HybridNetwork | TeacherNetwork:
    """Return the trained teacher of any kind whose weights are in ``path``.

    Raises:
        UnfitArtifact: the weights are not a teacher's.
    """
    weights = load_weights(path)
    with fitting(path, "teacher"):
        network: HybridNetwork | TeacherNetwork
        if "place" in weights:
            network = HybridNetwork(HybridSpec.of(weights))
        else:
            network = TeacherNetwork(TeacherSpec.of(weights))
        network.load_state_dict(weights)
    return network


def kind_of(network: nn.Module) -> str:
    """Return the kind of a teacher."""
    return network.spec.kind.value if isinstance(network, TeacherNetwork) else "hybrid"


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained teacher and its logits.

    Attributes:
        name: its kind, numbered if there are several.
        digest: twelve digits of its weights' SHA-256.
        temperature: the divisor of its logits, fitted on validation.
        pool: its logits of the pool's regions ``(n,)``, calibrated.
        validation: its raw logits of the validation regions.
    """

    name: str
    digest: str
    temperature: float
    pool: FloatArray
    validation: Scores


def read_teachers(paths: Sequence[Path], pool: Pool, folder: Path) -> list[Teacher]:
    """Return the teachers with these weights; ``folder`` caches their logits of the pool."""
    found = [_read_pool(path, pool, folder) for path in paths]
    kinds = [kind for kind, *_ in found]
    names = [
        kind if kinds.count(kind) == 1 else f"{kind}-{kinds[: i + 1].count(kind)}"
        for i, kind in enumerate(kinds)
    ]
    teachers = []
    for name, (_, digest, read) in zip(names, found, strict=True):
        scores = Scores(*(read[part] for part in Scores._fields))
        false_positives = np.concatenate([scores.scan_false_positives, scores.cube_false_positives])
        temperature = temperature_of(scores.nodules, false_positives)
        teachers.append(Teacher(name, digest, temperature, read["pool"] / temperature, scores))
    return teachers


def temperature_of(found: FloatArray, false_positives: FloatArray) -> float:
    """Return the temperature of least log loss (Guo et al., arXiv:1706.04599).

    Nodules and false positives weigh one half each.
    """
    tried = np.geomspace(0.1, 10.0, 401)
    return float(min(tried, key=lambda t: _loss(found / t) + _loss(-false_positives / t)))


def held_out_loss(teacher: Teacher, pool: Pool) -> float:
    """Return its log loss on the held-out regions of the pool."""
    logits, label = teacher.pool[pool.learnt :], pool.label[pool.learnt :]
    return _loss(np.where(label > 0, logits, -logits))


def best_of(teachers: Sequence[Teacher], pool: Pool) -> Teacher:
    """Return the one with the least `held_out_loss`."""
    return min(teachers, key=lambda teacher: held_out_loss(teacher, pool))


def _loss(logits: FloatArray) -> float:
    """Return the mean of -ln sigmoid(logit)."""
    return float(np.logaddexp(0, -logits).mean())


def _read_pool(path: Path, pool: Pool, folder: Path) -> tuple[str, str, dict[str, FloatArray]]:
    network = channels_last(open_teacher(path).eval())
    kind, digest = kind_of(network), hashlib.sha256(path.read_bytes()).hexdigest()[:12]

    def read() -> dict[str, FloatArray]:
        regions = {"pool": pool.voxels, **pool.validation}
        return {name: _read(network, part, f"{kind}, {name}") for name, part in regions.items()}

    return kind, digest, stored(folder / f"logits_{pool.key}_{digest}.npz", read)


def _read(network: nn.Module, regions: UInt8Array, what: str) -> FloatArray:
    starts = track(range(0, len(regions), 64), what)
    parts = [logits(network, regions[start : start + 64]) for start in starts]
    return np.concatenate(parts) if parts else np.zeros(0)


def weigh(
    logits: FloatArray, label: FloatArray,
    *, confidence: float = 1.0, correct: float = 1.0, peers: float = 1.0, sharpness: float = 2.0,
) -> FloatArray:  # fmt: skip
    """Return weights ``(teachers, n)`` that add up to 1 for each sample.

    ``logits`` ``(teachers, n)`` are calibrated, ``label`` ``(n,)`` is 0 or 1. The others are the
    factors of the formula.
    """
    chance = sigmoid(logits)
    given = np.where(label > 0, chance, 1 - chance)
    score = confidence * (1 - entropy(chance)) * (2 * given - 1)
    score += correct * given + peers * agreement(chance)
    raised = np.exp(sharpness * (score - score.max(0)))
    return np.asarray(raised / raised.sum(0))


def agreement(chance: FloatArray) -> FloatArray:
    """Return 1 minus the distance from the mean of the other teachers; 1 if there are none."""
    teachers = len(chance)
    if teachers == 1:
        return np.ones_like(chance)
    others = (chance.sum(0) - chance) / (teachers - 1)
    return np.asarray(1 - np.abs(chance - others))


def entropy(chance: FloatArray) -> FloatArray:
    """Return the binary entropy in bits."""
    p = np.clip(chance, 1e-12, 1 - 1e-12)
    return np.asarray(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


def weighted_target(logits: FloatArray, weights: FloatArray, temperature: float) -> FloatArray:
    """Return the soft target ``(n,)``; ``logits`` and ``weights`` are ``(teachers, n)``."""
    return np.asarray((weights * sigmoid(logits / temperature)).sum(0))


def mean_target(logits: FloatArray, temperature: float) -> FloatArray:
    """Return the soft target with equal weights."""
    return weighted_target(logits, np.full_like(logits, 1 / len(logits)), temperature)
