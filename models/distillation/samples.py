"""Distillation samples: composed samples with every teacher's answers at the candidates in them.

Teachers cost many times what a student costs. So each sample is drawn and read once, and all
students see the same. A distillation sample is a file, and those that are missing are made.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import nn

from imaging.roi import cut_roi
from imaging.volume import FloatArray
from models.networks.hybrid import HybridNetwork
from models.training.compose import Composer
from models.training.data import Piece, away_from_marks
from models.training.regions import LEAST_LOGIT
from models.training.screening import hit_of, peaks_of

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
    false = near[away_from_marks(near, sample, 2.0)][:EACH]
    chosen = rng.permutation(len(sample.nodules))[:EACH]
    hits = ((nodule, hit_of(nodule, near)) for nodule in sample.nodules[chosen])
    found = [nodule[:3] if hit is None else hit for nodule, hit in hits]
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
    _write(path, {
        "voxels": sample.voxels, "mask": np.packbits(sample.mask > 127),
        "nodules": sample.nodules, "ignored": sample.ignored,
        "places": drawn.places, "label": drawn.label, "logits": drawn.logits,
    })  # fmt: skip


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


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    part = path.with_suffix(".partial.npz")
    np.savez_compressed(part, **arrays)
    os.replace(part, path)
