from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.phantoms import prepare
from evaluation.receiving.receiving import SPEC
from evaluation.timing import profile as module
from evaluation.timing.profile import link_rows, profile, profile_networks, read_studies
from models.runtime.errors import MissingData


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BOX", (32, 32, 32))
        return profile_networks()


def test_the_time_of_a_pass_is_parted_without_rest(networks: dict[str, Any]) -> None:
    for network in networks["networks"]:
        layers = [row for row in networks["layers"] if row["network"] == network["network"]]
        assert len(layers) == module.SHOWN
        assert network["at_peak"] + network["slower"] + network["other"] == pytest.approx(1.0)
        assert sum(row["took_ms"] for row in layers) < network["took_ms"]
        assert network["gops"] == pytest.approx(1e3 * network["gop"] / network["took_ms"])


def test_the_link_of_a_study_by_hand() -> None:
    edge = {
        (f"overread_edge_cloud_{name}", *labels): value
        for (name, *labels), value in {
            ("bytes_total", "sent"): 4e6, ("bytes_total", "received"): 4e3,
            ("coding_seconds_total",): 0.01, ("round_trip_seconds",): 0.005,
        }.items()
    }  # fmt: skip
    cloud = {("overread_cloud_rois_total", "verdict", "routine"): 40.0}
    assert [one["value"] for one in link_rows(edge, cloud, 2)] == [20.0, 2000.0, 2.0, 5.0, 5.0]


def test_a_study_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    for study in (tmp_path, tmp_path / "none"):
        with pytest.raises(MissingData, match="no folder with DICOM files"):
            read_studies(study, with_cloud=False)


@pytest.mark.long
def test_the_agent_says_what_its_stages_took(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "READINGS", 1)
    (study,) = prepare([replace(SPEC, seed=6)], tmp_path)
    found = read_studies(study.folder, with_cloud=True)
    memory = {one["what"]: one["mb"] for one in found["memory"]}
    assert found["slices"] == 70
    assert [bar.met for bar in profile.bars(found)] == [True]
    assert {"read child, peak", "screen, peak", "cloud, peak"} <= memory.keys()
    assert found["together_mb"] > memory["read child, peak"] > 50
    assert all(one["value"] > 0 for one in found["link"])
