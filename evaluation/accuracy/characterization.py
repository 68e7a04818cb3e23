"""What the second reader says of a nodule beyond that it is one: kind, size and outline.

Every nodule of the cubes is read at its own centre, so that finding it plays no part. Figures are
held against the readers of LIDC-IDRI; ratings and outlines whose centre lies more than 5 mm from
the nodule's may be a neighbour's and are left out.

``overread-eval characterization``: what the second reader says of a nodule beyond that it is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.accuracy.bootstrap import RESAMPLES, Interval, interval
from evaluation.accuracy.data import Cube, read_cubes, read_table, read_votes
from evaluation.common.cli import CloudModel, Data, Json, Resamples, Seed, Split, each, show
from evaluation.common.readers import ReadsRegions, open_second
from imaging.roi import cut_roi
from imaging.volume import FloatArray
from models.auc import auc
from models.markdown import Rows, number
from models.runtime.second_reader import TEXTURES, Reading


def characterization_table(result: Mapping[str, Any]) -> Rows:
    """What the second reader says of nodules, each figure with its interval."""
    title = f"{result['nodules']} nodules of {result['patients']} patients"
    textures = ", ".join(f"{n} {name}" for name, n in result["textures"].items())
    rows = {
        "malignancy_auc": ("malignancy, AUC", f"{result['malignant']} of {result['rated']} rated"),
        "texture_recall": ("texture, mean recall", textures),
        "dice_median": ("outline, median Dice", f"{result['outlined']} nodules"),
        "diameter_error_mm": ("diameter, mean error, mm", "all"),
        "diameter_bias_mm": ("diameter, mean bias, mm", "all"),
    }
    cells = []
    for name, (words, source) in rows.items():
        value, low, high = (number(result[name][key]) for key in ("value", "low", "high"))
        cells.append([words, value, f"{low} to {high}", source])
    return Rows(["", "value", "95 % interval", "taken from"], cells, title)


MATCH_MM = 5.0


VOTES = 2
"""A voxel is nodule where so many of the four readers drew it."""

OUTLINED_MM = 6.0
"""Outlines are compared from this diameter on: below it a voxel's rim is half the nodule."""


@dataclass(frozen=True, eq=False)
class Characterization:
    """What was said and what readers say, each ``(n,)``; NaN where they say nothing.

    ``malignancy`` and ``texture`` are the readers' means, 1 to 5; ``dice`` is the overlap with
    their outline.
    """

    patients: tuple[str, ...]
    diameter_mm: FloatArray
    malignancy: FloatArray
    texture: FloatArray
    predicted_diameter_mm: FloatArray
    predicted_malignancy: FloatArray
    predicted_texture: npt.NDArray[np.int64]
    dice: FloatArray


def read_characterization(
    folder: Path,
    splits: tuple[str, ...],
    reader: ReadsRegions,
    progress: Callable[[list[Cube]], Iterable[Cube]],
) -> Characterization:
    """Reads every cube of `splits`; errors as `evaluation.accuracy.data.read_cubes`."""
    cubes = read_cubes(folder, splits)
    index = read_table(folder / "index.csv", ("match_mm", "malignancy_mean", "texture_mean"))
    line = {f"{s}/{int(r)}": i for i, (s, r) in enumerate(
        zip(index.text("split"), index.numbers("row"), strict=True))}  # fmt: skip
    lines = np.array([line[cube.name] for cube in cubes])
    sure = index.numbers("match_mm")[lines] <= MATCH_MM
    malignancy, texture = (
        np.where(sure, index.numbers(f"{name}_mean")[lines], np.nan)
        for name in ("malignancy", "texture")
    )
    votes = [v for split in splits for v in read_votes(folder, split)]
    shape = reader.roi_shape
    said, dice = [], []
    for cube, vote, known in zip(progress(cubes), votes, sure, strict=True):
        reading = reader.read(cut_roi(cube.voxels, cube.centre_zyx, shape)[None])[0]
        said.append(reading)
        truth = cut_roi(vote, cube.centre_zyx, shape) >= VOTES
        outlined = known and cube.diameter_mm >= OUTLINED_MM
        dice.append(overlap(reading, truth) if outlined else np.nan)
    return Characterization(
        patients=tuple(cube.patient for cube in cubes),
        diameter_mm=np.array([cube.diameter_mm for cube in cubes]),
        malignancy=malignancy,
        texture=texture,
        predicted_diameter_mm=np.array([one.diameter_mm for one in said]),
        predicted_malignancy=np.array([one.malignancy for one in said]),
        predicted_texture=np.array([TEXTURES.index(one.texture) for one in said]),
        dice=np.array(dice),
    )


def overlap(reading: Reading, truth: npt.NDArray[np.bool_]) -> float:
    """Dice's coefficient of the outline and the truth, both bool ``(z, y, x)``."""
    both = int((reading.mask & truth).sum())
    return 2 * both / max(int(reading.mask.sum()) + int(truth.sum()), 1)


def as_dict(read: Characterization, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Each figure with its interval by bootstrap over patients, and what it was taken from."""
    rated = np.isfinite(read.malignancy) & ((read.malignancy >= 4) | (read.malignancy <= 2))
    seen, drawn = np.isfinite(read.texture), np.isfinite(read.dice)
    classes = np.digitize(np.where(seen, read.texture, 5.0), [2.5, 4.0])
    error = read.predicted_diameter_mm - read.diameter_mm

    def as_dict(chosen: npt.NDArray[np.int64]) -> dict[str, float]:
        malignant, textured, outlined = (chosen[m[chosen]] for m in (rated, seen, drawn))
        right = read.predicted_texture[textured] == classes[textured]
        return {
            "malignancy_auc": auc(
                read.predicted_malignancy[malignant], read.malignancy[malignant] > 3
            ),
            "texture_recall": _mean_recall(right, classes[textured]),
            "dice_median": float(np.median(read.dice[outlined])) if outlined.size else np.nan,
            "diameter_error_mm": float(np.abs(error[chosen]).mean()),
            "diameter_bias_mm": float(error[chosen].mean()),
        }

    values = as_dict(np.arange(len(read.patients)))
    draws = [as_dict(chosen) for chosen in _resampled(read.patients, resamples, seed)]
    intervals = {name: _interval(value, [d[name] for d in draws]) for name, value in values.items()}
    counts = {
        "nodules": len(read.patients),
        "patients": len(set(read.patients)),
        "rated": int(rated.sum()),
        "malignant": int((rated & (read.malignancy > 3)).sum()),
        "textures": {name: int((seen & (classes == i)).sum()) for i, name in enumerate(TEXTURES)},
        "outlined": int(drawn.sum()),
    }
    return counts | {name: found.as_dict() for name, found in intervals.items()} | {"seed": seed}


def _mean_recall(right: npt.NDArray[np.bool_], classes: npt.NDArray[np.int64]) -> float:
    """The mean over the classes that are there of the share that was recognised."""
    there = np.unique(classes)
    return float(np.mean([right[classes == one].mean() for one in there])) if there.size else np.nan


def _resampled(
    patients: tuple[str, ...], resamples: int, seed: int
) -> Iterable[npt.NDArray[np.int64]]:
    names, owner = np.unique(patients, return_inverse=True)
    of = [np.flatnonzero(owner == i) for i in range(len(names))]
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.concatenate([of[i] for i in rng.integers(len(names), size=len(names))])


def _interval(value: float, drawn: list[float]) -> Interval:
    known = np.array(drawn)[np.isfinite(drawn)]
    return interval(value, known) if known.size else Interval(value, np.inf, np.inf)


def characterization_command(
    data: Data,
    split: Split,
    cloud_model: CloudModel = None,
    resamples: Resamples = RESAMPLES,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Malignancy, texture, diameter and outline of the second reader against the readers'."""
    splits = tuple(split.split(","))
    read = read_characterization(
        data, splits, open_second(cloud_model), lambda c: each(c, "nodules")
    )
    result = {"split": split, **as_dict(read, resamples=resamples, seed=seed)}
    show(result, as_json, characterization_table(result))
