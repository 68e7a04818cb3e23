"""Teachers: their calibrated logits, and the weight of each in each region.

For teacher k and region i with label y, let p be the teacher's calibrated probability, H(p) its
entropy in bits, a = p if y = 1 else 1 - p the probability that it gives the label, and m the mean
probability of the other teachers. Then

    s_ki = confidence (1 - H(p)) (2 a - 1) + correct a + peers (1 - |p - m|)
    w_ki = exp(sharpness s_ki) / sum_j exp(sharpness s_ji)

so that sum_k w_ki = 1 for every i. Confidence counts for a teacher that is right and against one
that is wrong. The soft target is

    q_i = sum_k w_ki sigmoid(z_ki / (T_k t)),

z the logit, T_k the teacher's calibration temperature, t that of the distillation (Hinton et al.,
arXiv:1503.02531). Weights of each sample by the label follow Zhang et al., Confidence-aware
multi-teacher knowledge distillation, arXiv:2201.00007; entropy and agreement are added here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import entr

from imaging.volume import FloatArray
from models.runtime.detection import sigmoid


@dataclass(frozen=True, eq=False)
class Teacher:
    """A hybrid and its answers.

    ``temperature``, the divisor of its logits, and its log loss are those of held-out regions;
    ``logits`` ``(n,)`` are of the regions that students learn from, calibrated.
    """

    temperature: float
    logits: FloatArray
    held_out_loss: float


def calibrated(logits: FloatArray, held_out: FloatArray, held_label: FloatArray) -> Teacher:
    """Return a teacher by its logits of the regions to learn from, and of the held-out ones.

    ``held_label`` is NaN where a region does not teach whether it holds a nodule.
    """
    taught = np.isfinite(held_label)
    label = held_label[taught]
    # the logit of the right answer: the log loss depends on nothing else
    right = np.where(label > 0, 1, -1) * held_out[taught]
    temperature = temperature_of(right, label)
    loss = balanced_loss(right / temperature, label)
    return Teacher(temperature, logits / temperature, loss)


def temperature_of(right: FloatArray, label: FloatArray) -> float:
    """Return the temperature of least `balanced_loss` (Guo et al., arXiv:1706.04599)."""
    tried = np.geomspace(0.1, 10.0, 401)
    return float(min(tried, key=lambda t: balanced_loss(right / t, label)))


def balanced_loss(right: FloatArray, label: FloatArray) -> float:
    """Return the log loss of logits of the right answer; nodules and others weigh one half each."""
    lost = np.logaddexp(0, -right)  # -ln sigmoid
    means = (float(part.mean()) for part in (lost[label > 0], lost[label == 0]) if len(part))
    return sum(means) / 2


def weigh(
    logits: FloatArray, label: FloatArray,
    *, confidence: float = 1.0, correct: float = 1.0, peers: float = 1.0, sharpness: float = 2.0,
) -> FloatArray:  # fmt: skip
    """Return weights ``(teachers, n)`` that add up to 1 for each region.

    ``logits`` ``(teachers, n)`` are calibrated, ``label`` ``(n,)`` is 0 or 1. The others are the
    factors of the formula.
    """
    chance = sigmoid(logits)
    given = np.where(label > 0, chance, 1 - chance)
    bits = (entr(chance) + entr(1 - chance)) / np.log(2)
    others = (chance.sum(0) - chance) / max(len(chance) - 1, 1)
    score = confidence * (1 - bits) * (2 * given - 1)
    score += correct * given + peers * (1 - np.abs(chance - others))
    # less the largest score, so that the exponential does not overflow; the ratio is the same
    raised = np.exp(sharpness * (score - score.max(0)))
    return np.asarray(raised / raised.sum(0))


def soft_target(teachers: Sequence[Teacher], weights: FloatArray, temperature: float) -> FloatArray:
    """Return the soft target of each region ``(n,)``; ``weights`` are ``(teachers, n)``."""
    logits = np.stack([teacher.logits for teacher in teachers])
    return np.asarray((weights * sigmoid(logits / temperature)).sum(0))
