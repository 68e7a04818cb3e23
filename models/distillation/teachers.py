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

Teachers cost many times what a student costs. So each composed sample is drawn and read once, and
all students see the same. A distillation sample is a file, and those that are missing are made.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from scipy.special import entr
from torch import nn

from imaging.roi import cut_roi
from imaging.volume import FloatArray
from models.networks.hybrid import HybridNetwork
from models.runtime.detection import sigmoid
from models.training.compose import Composer
from models.training.data import Piece
from models.training.hybrid import LEAST_LOGIT
from models.training.screening import apart, peaks_of, place_of

EACH = 4
"""The most nodules, and the most false positives, that teachers read in one sample."""


@dataclass(frozen=True, eq=False)
class DistillationSample:
    """A sample, and the teachers' answers at ``n`` places in it.

    Attributes:
        sample: as `Composer` draws it.
        places: candidates of a screening network ``(n, 3)`` in voxels, and nodules that it missed.
        label: 1 at a nodule, 0 at a false positive ``(n,)``.
        logits: of each teacher ``(teachers, n)``.
    """

    sample: Piece
    places: FloatArray
    label: FloatArray
    logits: FloatArray


def draw_sample(
    composer: Composer, screener: nn.Module, teachers: HybridNetwork, rng: np.random.Generator
) -> DistillationSample:
    """Draw a sample; let the members of ``teachers`` read it where ``screener`` has candidates."""
    sample = composer.draw(rng)
    peaks = peaks_of(screener, sample.voxels)
    near = peaks.index_zyx[peaks.logit > LEAST_LOGIT]
    # the strongest false positives; of each nodule the candidate that hit it, or its middle
    false = apart(peaks, sample, 2.0, LEAST_LOGIT).index_zyx[:EACH]
    chosen = rng.permutation(len(sample.nodules))[:EACH]
    found = [place_of(nodule, near) for nodule in sample.nodules[chosen]]
    # nodules first: the label follows from the position
    places = np.concatenate([np.array(found).reshape(-1, 3), false])
    label = (np.arange(len(places)) < len(found)).astype(np.float64)
    return DistillationSample(sample, places, label, read(teachers, sample, places))


def read(teachers: HybridNetwork, sample: Piece, places: FloatArray) -> FloatArray:
    """Return the logit of each member at each place ``(members, n)``."""
    if not len(places):
        return np.zeros((len(teachers.members), 0))
    device = next(teachers.parameters()).device
    regions = torch.from_numpy(np.stack([cut_roi(sample.voxels, at) for at in places])).to(device)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        each = teachers.each(regions[:, None].float() / 255)
    return np.stack([answers.logit[:, 0].float().cpu().numpy() for answers in each]).astype(float)


def make_samples(
    folder: Path,
    count: int,
    draw: Callable[[np.random.Generator], DistillationSample],
    *,
    seed: int,
) -> list[Path]:
    """Return the files of ``count`` samples in ``folder``; those that are missing are drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}.npz" for number in range(count)]
    missing = [(number, path) for number, path in enumerate(paths) if not path.exists()]
    for number, path in track(missing, f"drawing samples, {folder.name}"):
        rng = np.random.default_rng((seed, number))
        save_sample(draw(rng), path)
    return paths


def save_sample(drawn: DistillationSample, path: Path) -> None:
    """Write a sample atomically; the mask is kept as bits."""
    sample = drawn.sample
    part = path.with_suffix(".partial.npz")
    np.savez_compressed(
        part, voxels=sample.voxels, mask=np.packbits(sample.mask > 127), nodules=sample.nodules,
        ignored=sample.ignored, places=drawn.places, label=drawn.label, logits=drawn.logits,
    )  # fmt: skip
    os.replace(part, path)


def load_sample(path: Path) -> DistillationSample:
    """Read a file of `save_sample`."""
    with np.load(path) as found:
        voxels = found["voxels"]
        bits = np.unpackbits(found["mask"], count=voxels.size).reshape(voxels.shape)
        sample = Piece(voxels, bits * np.uint8(255), found["nodules"], found["ignored"])
        return DistillationSample(sample, found["places"], found["label"], found["logits"])


def answers_of(path: Path) -> tuple[FloatArray, FloatArray]:
    """Return label ``(n,)`` and logits ``(teachers, n)`` of a sample without reading its voxels."""
    with np.load(path) as found:
        return found["label"], found["logits"]


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
        temperature = temperature_of(right, held_label)
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
    """Return 1 minus the distance from the mean of the other teachers."""
    others = (chance.sum(0) - chance) / max(len(chance) - 1, 1)
    return np.asarray(1 - np.abs(chance - others))


def entropy(chance: FloatArray) -> FloatArray:
    """Return the binary entropy in bits."""
    return np.asarray((entr(chance) + entr(1 - chance)) / np.log(2))


def weighted_target(logits: FloatArray, weights: FloatArray, temperature: float) -> FloatArray:
    """Return the soft target ``(n,)``; ``logits`` and ``weights`` are ``(teachers, n)``."""
    return np.asarray((weights * sigmoid(logits / temperature)).sum(0))


def mean_target(logits: FloatArray, temperature: float) -> FloatArray:
    """Return the soft target with equal weights."""
    return weighted_target(logits, np.full_like(logits, 1 / len(logits)), temperature)
