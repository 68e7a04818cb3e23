"""``overread-eval clinical``: malignancy by the image alone, by the Brock model, and by both.

The truth is the impression of the readers of LIDC-IDRI: a mean rating of 4 and more against one of
2 and less, as in `evaluation.accuracy.characterization`. It is no pathology. The cubes state
neither age nor sex, so that the Brock model gets diameter and type from the second reader, and the
reference value of the model for everything else.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from edge.clinical.brock import BrockInputs, probability
from evaluation.accuracy.bootstrap import RESAMPLES, Interval, interval
from evaluation.accuracy.characterization import Characterization, read_characterization
from evaluation.accuracy.readers import open_second
from evaluation.common import cli
from imaging.volume import FloatArray
from models.auc import auc
from models.calibration.fit import logistic
from models.markdown import Rows, number
from models.runtime.second_reader import TEXTURES

IMAGE, BROCK, BOTH = "image", "brock", "both"
SCORES = {
    IMAGE: "second reader's malignancy score",
    BROCK: "Brock model with diameter and type",
    BOTH: "both, by logistic regression",
}
TRUTH = (
    "The truth is the mean rating of the readers, 4 and more against 2 and less: their impression"
    " of the images, not pathology. The score of the network was trained on such ratings, so it is"
    " favoured. Size is one of the things that readers rate by."
)
FUSION = (
    "A published 92.3 % for the fusion of images with clinical data cannot be reproduced here: age,"
    " sex, smoking and pathology are not in the data. What is fused here is known from the image"
    " alone."
)
_SMALLEST = 1e-6


def clinical_command(
    data: cli.Data,
    split: cli.Split,
    fit: Annotated[
        str, typer.Option(metavar="NAME[,NAME]", help="Splits that the combination is fitted on.")
    ] = "val",
    cloud_model: cli.CloudModel = None,
    resamples: cli.Resamples = RESAMPLES,
    seed: cli.Seed = 0,
    as_json: cli.Json = False,
) -> None:
    """Malignancy by the image alone, by the Brock model, and by both, against the readers."""
    splits, fitted_on = (tuple(names.split(",")) for names in (split, fit))
    if shared := set(splits) & set(fitted_on):
        raise typer.BadParameter(f"--fit: {', '.join(sorted(shared))} is measured")
    reader = open_second(cloud_model)
    weights = fit_both(read_characterization(data, fitted_on, reader))
    read = read_characterization(data, splits, reader)
    result = {
        "split": split,
        "fitted_on": fit,
        **as_dict(read, weights, resamples=resamples, seed=seed),
    }
    cli.show(result, as_json, clinical_table(result), TRUTH, FUSION)


def brock_scores(read: Characterization) -> FloatArray:
    """Return the Brock model's probability of each nodule ``(n,)``, from diameter and type."""
    given = zip(read.reported_mm.tolist(), read.predicted_texture.tolist(), strict=True)
    inputs = (BrockInputs(diameter_mm=mm, texture=TEXTURES[texture]) for mm, texture in given)
    return np.array([probability(one) for one in inputs])


def fit_both(read: Characterization) -> FloatArray:
    """Fit bias and the weights of both logits ``(3,)`` on the rated nodules."""
    rated = is_rated(read)
    return logistic(_features(read)[rated], read.malignancy[rated] > 3)


def is_rated(read: Characterization) -> npt.NDArray[np.bool_]:
    """Return which nodules the readers call malignant or benign ``(n,)``."""
    rating = read.malignancy
    return np.isfinite(rating) & ((rating >= 4) | (rating <= 2))


def _features(read: Characterization) -> FloatArray:
    return np.stack([_logit(read.predicted_malignancy), _logit(brock_scores(read))], axis=1)


def _logit(chance: FloatArray) -> FloatArray:
    inside = np.clip(chance, _SMALLEST, 1 - _SMALLEST)
    return np.asarray(np.log(inside / (1 - inside)))


def as_dict(
    read: Characterization, weights: FloatArray, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Return the AUC of each score, and the differences to the image alone, with intervals.

    Whole patients are drawn with replacement. A difference is of the same draw.
    """
    rated = np.flatnonzero(is_rated(read))
    malignant = read.malignancy > 3
    scores = {
        IMAGE: read.predicted_malignancy,
        BROCK: brock_scores(read),
        BOTH: weights[0] + _features(read) @ weights[1:],
    }

    def areas(chosen: npt.NDArray[np.int64]) -> list[float]:
        found = [auc(score[chosen], malignant[chosen]) for score in scores.values()]
        return [*found, *(one - found[0] for one in found[1:])]

    names, owner = np.unique(np.array(read.patients)[rated], return_inverse=True)
    of = [rated[owner == i] for i in range(len(names))]
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [
            areas(np.concatenate([of[i] for i in rng.integers(len(names), size=len(names))]))
            for _ in range(resamples)
        ]
    )
    values = [_interval(v, d).as_dict() for v, d in zip(areas(rated), drawn.T, strict=True)]
    return {
        "nodules": len(read.patients),
        "rated": len(rated),
        "malignant": int(malignant[rated].sum()),
        "patients": len(names),
        "auc": dict(zip(scores, values, strict=False)),
        "minus_image": dict(zip([BROCK, BOTH], values[len(scores) :], strict=True)),
        "weights": dict(zip(["bias", IMAGE, BROCK], map(float, weights), strict=True)),
        "truth": TRUTH,
        "fusion": FUSION,
        "seed": seed,
    }


def _interval(value: float, drawn: FloatArray) -> Interval:
    known = drawn[np.isfinite(drawn)]  # a draw may hold one class only
    return interval(value, known) if known.size else Interval(value, np.inf, np.inf)


def clinical_table(result: Mapping[str, Any]) -> Rows:
    """Return the AUC of each score with its interval, and the difference to the image alone."""
    title = f"{result['malignant']} malignant of {result['rated']} rated nodules of"
    title += f" {result['patients']} patients"
    cells = []
    for name, label in SCORES.items():
        area, gain = result["auc"][name], result["minus_image"].get(name)
        cells.append([label, *_cells(area), *(_cells(gain) if gain else ("", ""))])
    heads = ["score", "AUC", "95 % interval", "minus image", "95 % interval"]
    return Rows(heads, cells, title)


def _cells(value: Mapping[str, float]) -> tuple[str, str]:
    shown, low, high = (number(value[key]) for key in ("value", "low", "high"))
    return shown, f"{low} to {high}"
