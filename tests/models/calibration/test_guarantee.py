from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edge.guarantee import Terms
from imaging.volume import Geometry, StudyHeader, Volume
from models.calibration.cases import Cases
from models.calibration.fit import fit_settings
from models.calibration.guarantee import (
    conditions,
    identity_of,
    losses,
    part_of,
    stated,
    uncalibrated,
    uncalibrated_readers,
)
from models.runtime.artifacts import find
from models.runtime.errors import UnfitArtifact
from tests.models.calibration.test_fit import made

SETTINGS = {
    "calibration": [1.0, 0.0],
    "merge": [0.0, 0.5, 0.5, -9.0, 9.0],
    "thresholds": {"possible": 0.1, "finding": 0.5, "dismiss": 0.05, "report": 0.99},
}
CLOUD = {"calibration": [1.0, 0.0]}


def nodules(*logits: tuple[float, float], missed: tuple[str, ...] = ()) -> Cases:
    """A patient for each pair of logits, of edge and cloud."""
    edge, cloud = np.array(logits, float).reshape(-1, 2).T
    owner = np.array([f"p{i}" for i in range(len(logits))], str)
    size = np.full(len(logits), 8.0)
    return Cases(edge, cloud, size, np.ones(len(logits), bool), owner, missed)


def test_a_nodule_is_lost_to_the_findings_or_to_both_lists() -> None:
    """Found; a possible finding only; neither; dismissed whatever the cloud says; not proposed."""
    cases = nodules((3, 3), (-1, -1), (-2, -4), (-4, 20), missed=("p9",))
    findings, listed = losses(cases, SETTINGS, CLOUD)
    np.testing.assert_array_equal(findings, [0, 1, 1, 1, 1])
    np.testing.assert_array_equal(listed, [0, 0, 1, 1, 1])


def test_a_mass_is_lost_by_the_edge_alone() -> None:
    cases = replace(nodules((-1, -20), (-1, 20)), diameter_mm=np.full(2, 40.0))
    findings, listed = losses(cases, SETTINGS, CLOUD)
    assert (findings.tolist(), listed.tolist()) == ([1, 1], [0, 0])


def test_the_placements_of_a_patient_are_one_loss() -> None:
    cases = replace(nodules((3, 3), (-4, 0)), owner=np.array(["p0", "p0"]))
    assert losses(cases, SETTINGS, CLOUD)[0].tolist() == [0.5]


def test_both_statements_hold_together() -> None:
    """Each gets a part of delta, also after a choice; the findings miss no less than both lists."""
    cases = nodules(*[(3, 3)] * 95, *[(-1, -1)] * 5)
    found = stated(cases, SETTINGS, CLOUD, 0.1)
    assert found["patients"] == 100
    assert part_of(0.1) == pytest.approx(0.005)
    assert 0.0516 < found["alpha"] < 0.06  # Clopper and Pearson at 0.5 %: 0.0516
    assert 0.1351 < found["alpha_findings"] < 0.17
    assert stated(cases, SETTINGS, CLOUD, 0.02)["alpha"] > found["alpha"]


def test_without_a_found_nodule_there_is_no_guarantee() -> None:
    with pytest.raises(ValueError, match="nothing can be guaranteed"):
        stated(nodules((-4, 0), (-5, 0)), SETTINGS, CLOUD, 0.1)


def test_the_conditions_are_those_of_the_scans_that_were_read() -> None:
    def scan(slice_mm: float, header: StudyHeader) -> Any:
        volume = Volume(np.zeros((2, 2, 2), np.int16), Geometry((slice_mm, 1.0, 1.0)))
        return SimpleNamespace(study=SimpleNamespace(volume=volume, header=header))

    headers = StudyHeader(kernel="STANDARD"), StudyHeader(kernel="b41f", contrast="IV")
    scans = [scan(mm, one) for mm, one in zip((2.5, 3.0), headers, strict=True)]
    found = conditions(cast(Any, scans))
    assert found["slice_mm"] == 3.0
    assert (found["kernels"], found["contrast"]) == (["B41F", "STANDARD"], True)


def test_the_edge_takes_what_is_entered() -> None:
    cases = made()
    settings, cloud = fit_settings(cases)
    terms = {
        **stated(cases, settings, cloud, 0.1),
        "slice_mm": 2.5, "min_age": 18, "kernels": ["STANDARD"], "contrast": False,
        "screening": "1", "hybrid": "2", "region_side": 48,
    }  # fmt: skip
    assert Terms.from_manifest({"guarantee": terms}) is not None


def test_another_logit_or_patient_is_another_calibration() -> None:
    cases = nodules((3, 3), (1, 1))
    other = replace(cases, cloud=cases.cloud + 0.1)
    assert identity_of(cases) == identity_of(replace(cases, edge=cases.edge + 0.001))
    assert len({identity_of(one) for one in (cases, other, replace(cases, missed=("p9",)))}) == 3


def test_an_uncalibrated_artifact_leaves_the_shipped_one_fitted() -> None:
    shipped = find("screening-int8")
    assert uncalibrated(shipped).settings["calibration"] == [1.0, 0.0]
    assert find("screening-int8").settings["calibration"] != [1.0, 0.0]


def test_the_shipped_settings_were_fitted_for_what_ships() -> None:
    settings = find("screening-int8").settings
    assert settings["guarantee"]["hybrid"] == find("hybrid-int8").version
    assert Path(find("screening-int8").path).is_file()


def test_networks_of_another_kind_are_refused() -> None:
    screening, hybrid = find("screening-int8"), find("hybrid-int8")
    for pair, said in (((hybrid, hybrid), "'screening'"), ((screening, screening), "'hybrid'")):
        with pytest.raises(UnfitArtifact, match=f"is of kind .*, expected {said}"):
            uncalibrated_readers(*pair)
