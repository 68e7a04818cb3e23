"""Whole scans that nodules are implanted into: patients' scans, and phantoms without nodules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from evaluation.errors import MissingData
from evaluation.table import read_table
from evaluation.truth import Lesion, scan_name
from imaging.phantom.phantom import make_phantom, varied_spec
from imaging.preprocess import canonical
from imaging.read import read_study
from imaging.volume import Volume

PATIENTS = "patients"
PHANTOMS = "phantoms"


@dataclass(frozen=True, eq=False)
class Host:
    """One scan, upright, with the lesions that are known of it; ``group`` says what it is."""

    name: str
    group: str
    volume: Volume
    lesions: tuple[Lesion, ...] = ()


def host_makers(
    folders: Iterable[Path], truth: Mapping[str, tuple[Lesion, ...]], seeds: Iterable[int]
) -> list[Callable[[], Host]]:
    """A function for each host, to be called when it is its turn: patients first, then phantoms."""
    patients = [partial(patient_host, f, truth.get(scan_name(f), ())) for f in folders]
    return [*patients, *(partial(phantom_host, seed) for seed in seeds)]


def patient_host(folder: Path, lesions: tuple[Lesion, ...]) -> Host:
    """A patient's scan.

    Raises:
        StudyError: it cannot be read.
    """
    return Host(scan_name(folder), PATIENTS, canonical(read_study(folder).volume), lesions)


def phantom_host(seed: int) -> Host:
    """A phantom by a scanner that is drawn too, with no nodule of its own."""
    phantom = make_phantom(replace(varied_spec(seed), nodule_count=0))
    return Host(f"phantom-{seed}", PHANTOMS, phantom.volume)


def of_splits(folders: Sequence[Path], truth: Path, splits: Sequence[str]) -> list[Path]:
    """Those of `folders` whose ``role`` in the table `truth` is one of `splits`.

    All of them, where the table has no such column: nobody says that one was trained on.

    Raises:
        BadTable: the table cannot be read.
        MissingData: none is left.
    """
    table = read_table(truth, ("scan",))
    role = {row["scan"].strip(): row.get("role", "").strip() for row in table.rows}
    kept = [folder for folder in folders if role.get(scan_name(folder), "") in ("", *splits)]
    if not kept:
        raise MissingData(truth, f"gives none of the scans a role among {tuple(splits)}")
    return kept
