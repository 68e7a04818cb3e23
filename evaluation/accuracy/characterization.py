"""Malignancy, texture, diameter, volume and outline of nodules, against the annotations.

The second reader reads every cube at the nodule's own centre, so that detection plays no part. Its
readings are compared with the readers of LIDC-IDRI. Ratings and outlines whose centre lies more
than 5 mm from the nodule's may belong to a neighbour and are not used. Volume and diameter of the
report are compared with the voxels that two of the four readers drew, whose diameter is wider by
`READERS_MM`.

Malignancy is also scored by the Brock model. The cubes state neither age nor sex, so that the model
gets diameter and type from the second reader, and its reference value for everything else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.clinical.brock import BrockInputs, probability
from edge.findings import READERS_MM, DecidedBy, Finding, Route
from edge.merge import outlined
from evaluation.accuracy.bootstrap import by_patient
from evaluation.accuracy.data import MATCH_MM, index_lines, read_cubes, read_table, read_votes
from evaluation.accuracy.readers import RoiReader
from evaluation.result import Table
from evaluation.run import each
from imaging.roi import cut_roi
from imaging.volume import FloatArray, Geometry, Triple
from models.calibration.statistics import auc, logistic
from models.runtime.second_reader import TEXTURES, Reading, nearest_piece

VOTES = 2
"""Readers of four that must have drawn a voxel of the nodule."""

TRUTH = (
    "The truth is the mean rating of the readers, 4 and more against 2 and less: their impression"
    " of the images, not pathology. The score of the network was trained on such ratings, so it is"
    " favoured. Size is one of the things that readers rate by. A published 92.3 % for the fusion"
    " of images with clinical data cannot be reproduced here: age, sex, smoking and pathology are"
    " not in the data. What is fused here is known from the image alone."
)

_FORM = "{:.3f}"
MEASURES = Table(
    "measures", {"measure": "measure", "figure": ("value", _FORM), "from": "taken from"},
    title="{nodules} nodules of {patients} patients, each read at its own centre",
)  # fmt: skip
MALIGNANCY = Table(
    "malignancy",
    {"score": "score", "auc": ("AUC", _FORM), "minus_image": ("minus the image alone", _FORM)},
    title="{malignant} malignant of {rated} rated nodules of {rated_patients} patients",
)


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

    @property
    def rated(self) -> npt.NDArray[np.int64]:
        """The numbers of the nodules that the readers call malignant or benign."""
        rating = self.malignancy
        return np.flatnonzero(np.isfinite(rating) & ((rating >= 4) | (rating <= 2)))

    @property
    def malignant(self) -> npt.NDArray[np.bool_]:
        """Whether the readers call each nodule malignant."""
        return np.asarray(self.malignancy > 3)


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
    for cube, vote, known in zip(each(cubes, "nodules"), votes, sure, strict=True):
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


def measures(read: Characterization) -> Any:
    """Return the rows of `MEASURES`, each with its interval by bootstrap over patients."""
    stated = np.isfinite(read.consensus_mm3) & np.isfinite(read.reported_mm3)
    wider_mm = np.cbrt(6 / np.pi * read.consensus_mm3) - read.reported_mm
    left_mm = wider_mm - READERS_MM
    volume_left = (read.reported_mm / (read.reported_mm + left_mm)) ** 3 - 1
    textured, drawn = np.isfinite(read.texture), np.isfinite(read.dice)
    classes = np.digitize(np.where(textured, read.texture, 5.0), [2.5, 4.0])
    error = read.predicted_diameter_mm - read.diameter_mm
    counts = ((textured & (classes == number)).sum() for number in range(len(TEXTURES)))
    outlines, volumes = f"{drawn.sum()} nodules of 6 mm and more", f"{stated.sum()} nodules"
    rows = {
        "malignancy, AUC: ratings of 4 and more against 2 and less":
            f"{read.malignant[read.rated].sum()} of {read.rated.size}",
        "texture, mean recall of the classes":
            ", ".join(f"{n} {name}" for n, name in zip(counts, TEXTURES, strict=True)),
        "outline against that of readers, who draw wider, median Dice": outlines,
        "volume in the report against the voxels that two of four readers drew, median ratio":
            volumes,
        "diameter of those voxels less that in the report, median in mm": volumes,
        f"error of the diameter when {READERS_MM:g} mm are added to the report's, median in mm":
            volumes,
        "the same as a part of the volume, median": volumes,
        "network's diameter against LUNA16's, mean error in mm": "all",
        "network's diameter against LUNA16's, mean bias in mm": "all",
    }  # fmt: skip

    def figures(chosen: npt.NDArray[np.int64]) -> list[float]:
        rating = chosen[np.isin(chosen, read.rated)]
        texture, outline, volume = (chosen[mask[chosen]] for mask in (textured, drawn, stated))
        right = read.predicted_texture[texture] == classes[texture]
        return [
            auc(read.predicted_malignancy[rating], read.malignant[rating]),
            _mean_recall(right, classes[texture]),
            _median(read.dice[outline]),
            _median(read.reported_mm3[volume] / read.consensus_mm3[volume]),
            _median(wider_mm[volume]),
            _median(np.abs(left_mm[volume])),
            _median(np.abs(volume_left[volume])),
            float(np.abs(error[chosen]).mean()),
            float(error[chosen].mean()),
        ]

    found = by_patient(read.patients, figures)
    return [
        {"measure": measure, "figure": one.as_dict(), "from": source}
        for (measure, source), one in zip(rows.items(), found, strict=True)
    ]


def _mean_recall(right: npt.NDArray[np.bool_], classes: npt.NDArray[np.int64]) -> float:
    """Return the mean over the classes present of the share that was recognised."""
    there = np.unique(classes)
    return float(np.mean([right[classes == one].mean() for one in there])) if there.size else np.nan


def _median(values: FloatArray) -> float:
    return float(np.median(values)) if values.size else np.nan


def brock_scores(read: Characterization) -> FloatArray:
    """Return the Brock model's probability of each nodule ``(n,)``, from diameter and type."""
    given = zip(read.reported_mm.tolist(), read.predicted_texture.tolist(), strict=True)
    inputs = (BrockInputs(diameter_mm=mm, texture=TEXTURES[texture]) for mm, texture in given)
    return np.array([probability(one) for one in inputs])


def fit_both(read: Characterization) -> FloatArray:
    """Fit bias and the weights of both logits ``(3,)`` on the rated nodules."""
    return logistic(_features(read)[read.rated], read.malignant[read.rated])


def _features(read: Characterization) -> FloatArray:
    """Return the logits of network and Brock model ``(n, 2)``."""
    chances = np.stack([read.predicted_malignancy, brock_scores(read)], axis=1)
    inside = np.clip(chances, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(inside / (1 - inside)))


def malignancy(read: Characterization, weights: FloatArray) -> list[dict[str, Any]]:
    """Return the rows of `MALIGNANCY`: the image alone, the Brock model, and both.

    ``weights`` are those of `fit_both`, fitted on other patients. A difference is of the same draw.
    """
    scores: dict[str, FloatArray] = {
        "malignancy score of the second reader, the image alone": read.predicted_malignancy,
        "Brock model with diameter and type": brock_scores(read),
        "both, by logistic regression": weights[0] + _features(read) @ weights[1:],
    }
    rated = read.rated

    def areas(chosen: npt.NDArray[np.int64]) -> Sequence[float]:
        of = rated[chosen]
        found = [auc(score[of], read.malignant[of]) for score in scores.values()]
        return [*found, *(one - found[0] for one in found[1:])]

    patients = np.array(read.patients)[rated].tolist()
    found = [one.as_dict() for one in by_patient(patients, areas)]
    minus = [None, *found[len(scores) :]]
    return [
        {"score": name, "auc": area, "minus_image": gain}
        for name, area, gain in zip(scores, found, minus, strict=False)
    ]
