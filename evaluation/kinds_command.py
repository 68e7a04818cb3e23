"""``overread-eval kinds``: what the second reader says of a nodule beyond that it is one."""

from __future__ import annotations

from evaluation.bootstrap import RESAMPLES
from evaluation.kinds import as_json as figures
from evaluation.kinds import read_kinds
from evaluation.open_readers import open_second
from evaluation.options import CloudModel, Data, Json, Resamples, Seed, Split
from evaluation.progress import each
from evaluation.show import show
from evaluation.tables import kinds_table


def kinds_command(
    data: Data,
    split: Split,
    cloud_model: CloudModel = None,
    resamples: Resamples = RESAMPLES,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Malignancy, texture, diameter and outline of the second reader against the readers'."""
    splits = tuple(split.split(","))
    read = read_kinds(data, splits, open_second(cloud_model), lambda c: each(c, "nodules"))
    result = {"split": split, **figures(read, resamples=resamples, seed=seed)}
    show(result, as_json, kinds_table(result))
