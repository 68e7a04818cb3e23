"""Malignancy, texture, diameter, volume and outline of nodules, against the annotations.

The second reader reads every cube at the nodule's own centre, so that detection plays no part. Its
readings are compared with the readers of LIDC-IDRI. Ratings and outlines whose centre lies more
than 5 mm from the nodule's may belong to a neighbour and are not used. Volume and diameter of the
report are compared with the voxels that two of the four readers drew, whose diameter is wider by
`READERS_MM`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.findings import READERS_MM, DecidedBy, Finding, Route
from edge.merge import outlined
from evaluation.accuracy.bootstrap import RESAMPLES, Interval, interval
from evaluation.accuracy.data import index_lines, read_cubes, read_table, read_votes
from evaluation.accuracy.readers import RoiReader
from evaluation.accuracy.subgroups import MATCH_MM
from evaluation.common import cli
from imaging.roi import cut_roi
from imaging.volume import FloatArray, Geometry, Triple
from models.auc import auc
from models.markdown import Rows, number
from models.runtime.second_reader import TEXTURES, Reading, nearest_piece

VOTES = 2
"""Readers of four that must have drawn a voxel of the nodule."""


@dataclass(frozen=True, eq=False)
class Characterization:
    """Readings of the second reader and of the readers, each ``(n,)``; NaN where there is none.

    ``malignancy`` and ``texture`` are the readers' means, 1 to 5; ``dice`` is the overlap with
    their outline. ``consensus_mm3`` is the volume of the readers' outlines, ``reported_mm3`` and
    ``reported_mm`` are volume and diameter of a report; NaN where a report states no volume.
    """

    patients: tuple[str, ...]
    diameter_mm: FloatArray
    malignancy: FloatArray
    texture: FloatArray
    predicted_diameter_mm: FloatArray
    predicted_malignancy: FloatArray
    predicted_texture: npt.NDArray[np.int64]
    dice: FloatArray
    consensus_mm3: FloatArray
    reported_mm3: FloatArray
    reported_mm: FloatArray


def read_characterization(
    folder: Path, splits: tuple[str, ...], reader: RoiReader
) -> Characterization:
    """Read every cube of ``splits``; errors as `evaluation.accuracy.data.read_cubes`."""
    cubes = read_cubes(folder, splits)
    index = read_table(folder / "index.csv", ("match_mm", "malignancy_mean", "texture_mean"))
    lines = index_lines(index, cubes)
    sure = index.numbers("match_mm")[lines] <= MATCH_MM
    malignancy, texture = (
        np.where(sure, index.numbers(f"{name}_mean")[lines], np.nan)
        for name in ("malignancy", "texture")
    )
    votes = read_votes(folder, cubes)
    readings, dice, sizes = [], [], []
    for cube, vote, known in zip(cli.each(cubes, "nodules"), votes, sure, strict=True):
        region = cut_roi(cube.voxels, cube.centre_zyx, reader.roi_shape)
        readings.append(reader.read(region[None])[0])
        truth = cut_roi(vote, cube.centre_zyx, reader.roi_shape) >= VOTES
        # of a smaller nodule a voxel's rim is half
        drawn = known and cube.diameter_mm >= 6.0
        dice.append(overlap(readings[-1], truth) if drawn else np.nan)
        consensus_mm3 = float(nearest_piece(truth).sum()) if drawn else np.nan
        finding = _finding(readings[-1], cube.centre_zyx)
        sizes.append((consensus_mm3, finding.volume_mm3 or np.nan, finding.diameter_mm))
    consensus_mm3, reported_mm3, reported_mm = np.array(sizes).T
    return Characterization(
        patients=tuple(cube.patient for cube in cubes),
        diameter_mm=np.array([cube.diameter_mm for cube in cubes]),
        malignancy=malignancy,
        texture=texture,
        predicted_diameter_mm=np.array([one.diameter_mm for one in readings]),
        predicted_malignancy=np.array([one.malignancy for one in readings]),
        predicted_texture=np.array([TEXTURES.index(one.texture) for one in readings]),
        dice=np.array(dice),
        consensus_mm3=consensus_mm3,
        reported_mm3=reported_mm3,
        reported_mm=reported_mm,
    )


def _finding(reading: Reading, index_zyx: Triple) -> Finding:
    """Return what a report states of a candidate at this place, with this reading."""
    z, y, x = index_zyx
    finding = Finding(
        (x, y, z), reading.diameter_mm, reading.probability, 1.0, DecidedBy.CLOUD, "",
        index_zyx, Route.ESCALATE,
    )  # fmt: skip
    return outlined(finding, reading.mask if reading.mask.any() else None, Geometry())


def overlap(reading: Reading, truth: npt.NDArray[np.bool_]) -> float:
    """Return Dice's coefficient of the outline and the truth, both bool ``(z, y, x)``."""
    both = int((reading.mask & truth).sum())
    return 2 * both / max(int(reading.mask.sum()) + int(truth.sum()), 1)


def as_dict(read: Characterization, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Return each figure with its interval by bootstrap over patients, and its counts."""
    stated = np.isfinite(read.consensus_mm3) & np.isfinite(read.reported_mm3)
    wider_mm = np.cbrt(6 / np.pi * read.consensus_mm3) - read.reported_mm
    left_mm = wider_mm - READERS_MM
    volume_left = (read.reported_mm / (read.reported_mm + left_mm)) ** 3 - 1
    rated = np.isfinite(read.malignancy) & ((read.malignancy >= 4) | (read.malignancy <= 2))
    textured, drawn = np.isfinite(read.texture), np.isfinite(read.dice)
    classes = np.digitize(np.where(textured, read.texture, 5.0), [2.5, 4.0])
    error = read.predicted_diameter_mm - read.diameter_mm

    def figures(chosen: npt.NDArray[np.int64]) -> dict[str, float]:
        rating, texture, outline, volume = (
            chosen[mask[chosen]] for mask in (rated, textured, drawn, stated)
        )
        right = read.predicted_texture[texture] == classes[texture]
        return {
            "malignancy_auc": auc(read.predicted_malignancy[rating], read.malignancy[rating] > 3),
            "texture_recall": _mean_recall(right, classes[texture]),
            "dice_median": _median(read.dice[outline]),
            "volume_ratio": _median(read.reported_mm3[volume] / read.consensus_mm3[volume]),
            "readers_wider_mm": _median(wider_mm[volume]),
            "left_mm": _median(np.abs(left_mm[volume])),
            "volume_left": _median(np.abs(volume_left[volume])),
            "diameter_error_mm": float(np.abs(error[chosen]).mean()),
            "diameter_bias_mm": float(error[chosen].mean()),
        }

    # Whole patients are drawn with replacement, each with the numbers of its nodules.
    names, owner = np.unique(read.patients, return_inverse=True)
    of = [np.flatnonzero(owner == i) for i in range(len(names))]
    rng = np.random.default_rng(seed)
    draws = [
        figures(np.concatenate([of[i] for i in rng.integers(len(names), size=len(names))]))
        for _ in range(resamples)
    ]
    values = figures(np.arange(len(read.patients)))
    counts = (int((textured & (classes == number)).sum()) for number in range(len(TEXTURES)))
    return {
        "nodules": len(read.patients),
        "patients": len(set(read.patients)),
        "rated": int(rated.sum()),
        "malignant": int((rated & (read.malignancy > 3)).sum()),
        "textures": dict(zip(TEXTURES, counts, strict=True)),
        "outlined": int(drawn.sum()),
        "volumes": int(stated.sum()),
        **{
            name: _interval(value, [one[name] for one in draws]).as_dict()
            for name, value in values.items()
        },
        "seed": seed,
    }


def _mean_recall(right: npt.NDArray[np.bool_], classes: npt.NDArray[np.int64]) -> float:
    """Return the mean over the classes present of the share that was recognised."""
    there = np.unique(classes)
    return float(np.mean([right[classes == one].mean() for one in there])) if there.size else np.nan


def _median(values: FloatArray) -> float:
    return float(np.median(values)) if values.size else np.nan


def _interval(value: float, drawn: list[float]) -> Interval:
    known = np.array(drawn)[np.isfinite(drawn)]
    return interval(value, known) if known.size else Interval(value, np.inf, np.inf)


def characterization_table(result: Mapping[str, Any]) -> Rows:
    """Return each figure with its interval and its source."""
    title = f"{result['nodules']} nodules of {result['patients']} patients"
    textures = ", ".join(f"{n} {name}" for name, n in result["textures"].items())
    volumes = f"{result['volumes']} nodules"
    rows = {
        "malignancy_auc": ("malignancy, AUC", f"{result['malignant']} of {result['rated']} rated"),
        "texture_recall": ("texture, mean recall", textures),
        "dice_median": ("outline, median Dice", f"{result['outlined']} nodules"),
        "volume_ratio": ("volume in the report / readers' outline, median", volumes),
        "readers_wider_mm": ("readers' diameter - that in the report, median, mm", volumes),
        "left_mm": (f"error of the diameter after {READERS_MM:g} mm, median, mm", volumes),
        "volume_left": ("the same as a part of the volume, median", volumes),
        "diameter_error_mm": ("network's diameter, mean error, mm", "all"),
        "diameter_bias_mm": ("network's diameter, mean bias, mm", "all"),
    }
    cells = []
    for name, (label, source) in rows.items():
        value, low, high = (number(result[name][key]) for key in ("value", "low", "high"))
        cells.append([label, value, f"{low} to {high}", source])
    return Rows(["", "value", "95 % interval", "taken from"], cells, title)
