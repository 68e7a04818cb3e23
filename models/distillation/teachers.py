"""Teachers: the calibrated logits of the hybrid's members, and the weight of each at each place.

For teacher k and place i with label y, let p be the teacher's calibrated probability, H(p) its
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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imaging.volume import FloatArray
from models.distillation.samples import answers_of
from models.runtime.detection import sigmoid


@dataclass(frozen=True, eq=False)
class Teacher:
    """A member of the hybrid and its answers.

    Attributes:
        name: the mm that it reads.
        temperature: the divisor of its logits, fitted on the held-out samples.
        logits: its logits at all places of the samples that students learn from ``(n,)``,
            calibrated.
        held_out_loss: its log loss on the held-out samples, calibrated.
    """

    name: str
    temperature: float
    logits: FloatArray
    held_out_loss: float


def read_teachers(
    reads: Sequence[int], learnt: Sequence[Path], held_out: Sequence[Path]
) -> tuple[list[Teacher], FloatArray]:
    """Return the teachers by their answers in the samples, and the label of each place ``(n,)``.

    ``reads`` are the mm that the members read, in order.
    """
    label, logits = _all_of(learnt)
    held_label, held = _all_of(held_out)
    teachers = []
    for number, mm in enumerate(reads):
        # the logit of the right answer: the log loss depends on nothing else
        right = np.where(held_label > 0, held[number], -held[number])
        temperature = temperature_of(right[held_label > 0], right[held_label == 0])
        teachers.append(
            Teacher(f"{mm} mm", temperature, logits[number] / temperature,
                    balanced_loss(right / temperature, held_label))
        )  # fmt: skip
    return teachers, label


def _all_of(samples: Sequence[Path]) -> tuple[FloatArray, FloatArray]:
    """Return the labels ``(n,)`` and the logits ``(teachers, n)`` of all places, in order."""
    found = [answers_of(path) for path in samples]
    return np.concatenate([label for label, _ in found]), np.concatenate(
        [logits for _, logits in found], axis=1
    )


def temperature_of(nodules: FloatArray, others: FloatArray) -> float:
    """Return the temperature of least log loss (Guo et al., arXiv:1706.04599).

    Given are the logits of the right answer; nodules and others weigh one half each.
    """
    tried = np.geomspace(0.1, 10.0, 401)
    return float(min(tried, key=lambda t: _loss(nodules / t) + _loss(others / t)))


def balanced_loss(right: FloatArray, label: FloatArray) -> float:
    """Return the log loss of logits of the right answer; nodules and others weigh one half each."""
    return (_loss(right[label > 0]) + _loss(right[label == 0])) / 2


def _loss(right: FloatArray) -> float:
    """Return the mean of -ln sigmoid(logit), 0 of none."""
    return float(np.logaddexp(0, -right).mean()) if len(right) else 0.0


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
    # less the largest score, so that the exponential does not overflow; the ratio is the same
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
