"""How much each teacher counts for each sample.

For teacher k and sample i with label y, let p be the teacher's calibrated probability, H(p) its
entropy in bits, a = p if y = 1 else 1 - p the probability that it gives the label, and m the mean
probability of the other teachers. Then

    s_ki = confidence (1 - H(p)) (2 a - 1) + label a + peers (1 - |p - m|)
    w_ki = exp(sharpness s_ki) / sum_j exp(sharpness s_ji)

so that sum_k w_ki = 1 for every i. Confidence counts for a teacher that is right and against one
that is wrong; a teacher that does not know (p = 1/2) has none. The soft target is

    q_i = sum_k w_ki sigmoid(z_ki / (T_k t)),

z the logit, T_k the teacher's calibration temperature, t that of the distillation (Hinton et al.,
arXiv:1503.02531). Weights of each sample from the label follow Zhang et al., Confidence-aware
multi-teacher knowledge distillation, arXiv:2201.00007; entropy and agreement are added here.

A mean of the teachers' distributions, as it is often published under the name of dynamic weights,
is no weighting: every teacher counts 1/K for every sample, whatever it says. That is `mean_target`
here, and compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imaging.volume import FloatArray


@dataclass(frozen=True)
class Weighing:
    """What a weight is made of: the factors of the formula above."""

    confidence: float = 1.0
    label: float = 1.0
    peers: float = 1.0
    sharpness: float = 2.0


def weigh(logits: FloatArray, label: FloatArray, weighing: Weighing | None = None) -> FloatArray:
    """Weights ``(teachers, n)`` that add up to 1 for each sample.

    ``logits`` ``(teachers, n)`` are calibrated, ``label`` ``(n,)`` is 0 or 1.
    """
    by = weighing or Weighing()
    chance = probability(logits)
    given = np.where(label > 0, chance, 1 - chance)
    score = by.confidence * (1 - entropy(chance)) * (2 * given - 1)
    score += by.label * given + by.peers * agreement(chance)
    raised = np.exp(by.sharpness * (score - score.max(0)))
    return np.asarray(raised / raised.sum(0))


def agreement(chance: FloatArray) -> FloatArray:
    """1 less the distance from the mean of the other teachers, ``(teachers, n)``; alone: 1."""
    teachers = len(chance)
    if teachers == 1:
        return np.ones_like(chance)
    others = (chance.sum(0) - chance) / (teachers - 1)
    return np.asarray(1 - np.abs(chance - others))


def entropy(chance: FloatArray) -> FloatArray:
    """In bits, of a coin that falls so with that probability."""
    p = np.clip(chance, 1e-12, 1 - 1e-12)
    return np.asarray(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


def probability(logits: FloatArray) -> FloatArray:
    """sigmoid, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(logits / 2)))


def weighted_target(logits: FloatArray, weights: FloatArray, temperature: float) -> FloatArray:
    """The soft target ``(n,)`` at that temperature; both arguments are ``(teachers, n)``."""
    return np.asarray((weights * probability(logits / temperature)).sum(0))


def mean_target(logits: FloatArray, temperature: float) -> FloatArray:
    """The same with every teacher counting alike, whatever it says."""
    return weighted_target(logits, np.full_like(logits, 1 / len(logits)), temperature)
