"""Fit the settings of both artifacts, and the guarantee on missed nodules of their thresholds.

The fit uses whole scans of training and validation, and nodules of validation patients inserted
into them. The guarantee uses nodules of the split ``calibration``, whose patients nothing else was
fitted on, inserted into scans of validation, on which no network was trained. It states what share
of a patient's nodules is missed: by the findings, and by findings and possible findings together.
Both statements hold together with confidence 1 - delta, also after a choice among `COMPARED`
settings by what they lose here: each statement of each gets an equal part of delta.

Limits: the scans are few, and an inserted nodule touches neither wall nor vessel.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from imaging.volume import FloatArray
from models.calibration.cases import Cases, Readers, Scan, candidates_of, inserted, read_scans
from models.calibration.fit import fit_settings, probabilities
from models.calibration.statistics import per_patient, upper_bound
from models.data.folder import CALIBRATION
from models.runtime.artifacts import WEIGHTS, Artifact, every, find
from models.runtime.contract import require_fit
from models.runtime.screener import Screener, read_by
from models.runtime.second_reader import SecondReader
from models.runtime.session import open_session

FITTED_ON = ("val", "train")
"""Roles of the scans of the fit: with those of training the rate of false findings is known better,
although their candidates are easier for networks that were trained on them."""

UNTRAINED = ("val",)
"""Roles of the scans that the guarantee's nodules are inserted into."""

PLACEMENTS = 6
"""Places of each nodule, one after the other; with 3, CPMs of two draws differ by up to 0.04."""

SEED = 20261129

COMPARED = 10
"""Settings that were compared by their losses of the calibration patients, these included."""

BASIS = "nodules inserted into whole scans, away from wall and vessels"

OUTLINE_LOGIT = 1.0
"""Mask logit of the region in which HU is measured, about as wide as readers draw. From 0 to 2 the
diameters of solid and part-solid spheres differ by at most 0.4 mm, of ground glass by 0.8 mm."""


def run_fit(
    data: Path, screening: str, hybrid: str, folder: Path, *, delta: float, keep_hybrid: bool
) -> None:
    """Fit the settings of both artifacts, and their guarantee, and enter them in the manifest.

    A hybrid that serves several screening networks is fitted with one of them; ``keep_hybrid``
    leaves its settings as they are. So does a ``folder`` without it: then the package's reads.
    """
    # these need the extra `train`, which the rest does without
    from models.export.manifest import amend
    from models.training.data import load_cubes
    from models.training.insertions import donors_of

    console = Console(stderr=True)
    has_hybrid = hybrid in every(folder)
    edge, second = find(screening, folder), find(hybrid, folder if has_hybrid else WEIGHTS)
    readers = uncalibrated_readers(edge, second)
    cubes, held_out = (load_cubes(data / "nodules", name) for name in ("val", CALIBRATION))
    with console.status("reading whole scans"):
        scans = read_scans(data, FITTED_ON, readers)
    with console.status("reading nodules of validation patients in them"):
        nodules = inserted(scans, donors_of(cubes), readers, placements=PLACEMENTS, seed=SEED)
    kept = {} if has_hybrid and not keep_hybrid else second.settings
    cases = candidates_of(scans, readers) + nodules
    settings, cloud = fit_settings(cases, kept.get("calibration"))
    if not kept:
        cloud["outline"] = [OUTLINE_LOGIT]
    untrained = read_scans(data, UNTRAINED, readers)
    with console.status("reading nodules of calibration patients in scans of validation"):
        others = inserted(untrained, donors_of(held_out), readers, placements=PLACEMENTS, seed=SEED)
    settings["guarantee"] = {
        **stated(others, settings, cloud, delta),
        **conditions(untrained),
        "screening": read_by(edge.version),
        "hybrid": second.version,
        "region_side": readers.second.roi_shape[0],
    }
    amend(screening, "settings", settings, folder)
    if has_hybrid:
        amend(hybrid, "settings", cloud, folder)
    console.print(settings, cloud)


def uncalibrated_readers(screening: Artifact, hybrid: Artifact) -> Readers:
    """Open both networks so that they give raw logits.

    Raises:
        UnfitArtifact: one breaks the contract, or is of another kind.
    """
    require_fit(screening, "screening")
    require_fit(hybrid, "hybrid")
    return Readers(
        Screener(open_session(uncalibrated(screening))),
        SecondReader(open_session(uncalibrated(hybrid))),
    )


def uncalibrated(artifact: Artifact) -> Artifact:
    """Return the artifact with its raw logits; the one in the manifest stays calibrated."""
    return replace(artifact, settings={**artifact.settings, "calibration": [1.0, 0.0]})


def losses(
    cases: Cases, settings: Mapping[str, Any], cloud: Mapping[str, Any]
) -> tuple[FloatArray, FloatArray]:
    """Return what each patient loses ``(patients,)``: of the findings, and of both lists.

    A nodule is lost that no candidate hits, that the edge dismisses, or whose probability is below
    the threshold of the list. Every uncertain candidate counts as read again.
    """
    limits, nodule = settings["thresholds"], cases.nodule
    edge, both = (one[nodule] for one in probabilities(cases, settings, cloud))
    owner = np.concatenate([cases.owner[nodule], np.array(cases.missed, str)])
    # a mass is dismissed only below ``possible``; a nodule without a candidate is lost to both
    dismissed = (edge < limits["dismiss"]) & ~cases.mass[nodule]
    unseen = np.ones(len(cases.missed), bool)
    findings, listed = (
        per_patient(np.concatenate([dismissed | (both < limits[name]), unseen]), owner)
        for name in ("finding", "possible")
    )
    return findings, listed


def stated(
    cases: Cases, settings: Mapping[str, Any], cloud: Mapping[str, Any], delta: float
) -> dict[str, Any]:
    """Return what the manifest's ``guarantee`` says of the miss rates.

    Raises:
        ValueError: every patient loses every nodule: nothing can be guaranteed.
    """
    findings, listed = losses(cases, settings, cloud)
    if listed.all():
        raise ValueError(f"{len(listed)} patients lose nodules each: nothing can be guaranteed")
    return {
        "alpha": _up(upper_bound(listed, part_of(delta))),
        "alpha_findings": _up(upper_bound(findings, part_of(delta))),
        "delta": delta,
        "patients": len(listed),
        "calibration": identity_of(cases),
        "basis": BASIS,
    }


def part_of(delta: float) -> float:
    """Return what one of two statements gets of ``delta``."""
    return delta / (2 * COMPARED)


def conditions(scans: Sequence[Scan]) -> dict[str, Any]:
    """Return what the headers of the guarantee's scans say of patients and acquisition."""
    headers = [one.study.header for one in scans]
    return {
        "slice_mm": max(one.study.volume.geometry.spacing_mm[0] for one in scans),
        "min_age": 18,
        "kernels": sorted({header.kernel.upper() for header in headers}),
        "contrast": any(header.contrast for header in headers),
    }


def identity_of(cases: Cases) -> str:
    """Return eight hexadecimal digits that change with any logit or patient of the nodules.

    Order and decimals after the second, in which engines differ, do not count.
    """
    nodule = cases.nodule
    rows = zip(cases.owner[nodule], cases.edge[nodule], cases.cloud[nodule], strict=True)
    lines = [f"{owner} {edge:.2f} {cloud:.2f}" for owner, edge, cloud in rows]
    # the order of reading does not count
    text = "\n".join(sorted([*lines, *cases.missed]))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _up(value: float) -> float:
    """Round towards the cautious side of a bound."""
    return math.ceil(value * 1e6) / 1e6
