from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.phantoms import prepare
from evaluation.receiving.receiving import SPEC
from evaluation.timing import profile as module
from evaluation.timing.profile import bars, draw, link_rows, profile, profile_networks, read_studies
from models.runtime.errors import MissingData


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BOX", (32, 32, 32))
        return profile_networks()


def test_the_time_of_a_pass_is_parted_without_rest(networks: dict[str, Any]) -> None:
    for one in networks["networks"]:
        layers = [row for row in networks["raw"]["layers"] if row["network"] == one["network"]]
        assert one["at_peak"] + one["slower"] + one["other"] == pytest.approx(1.0)
        assert sum(row["share"] for row in layers) == pytest.approx(1.0)
        assert sum(row["took_ms"] for row in layers) == pytest.approx(one["took_ms"])
        assert one["gops"] == pytest.approx(1e3 * one["gop"] / one["took_ms"])


def test_the_link_of_a_study_by_hand() -> None:
    edge = {
        ("cloud_bytes_total", "sent"): 4e6, ("cloud_bytes_total", "received"): 4e3,
        ("cloud_coding_seconds_total",): 0.01, ("cloud_round_trip_seconds",): 0.005,
    }  # fmt: skip
    cloud = {
        ("rois_total", "verdict", "routine"): 40.0, ("rois_total", "cached", "routine"): 0.0,
    }  # fmt: skip
    assert [one["value"] for one in link_rows(edge, cloud, 2)] == [20.0, 2000.0, 2.0, 5.0, 5.0]


def test_the_picture_and_the_tables_have_both_networks(
    networks: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    result = {
        **networks, "slices": 70, "readings": 1, "together_mb": 1300.0, "cpu": "CPU", "cores": 2,
        "memory": [{"what": "read, peak", "mb": 400.0}], "stages": [],
        "link": [{"what": "ROIs", "value": 9.0}],
    }  # fmt: skip
    for link in ([], result["link"]):
        draw({**result, "link": link}, tmp_path / "profile.png")
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")
    assert len(profile.table("layers").of(result).cells) == 2 * module.SHOWN
    assert [one.met for one in bars(result)] == [False]


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
    assert {"read child, peak", "screen, peak", "cloud, peak"} <= memory.keys()
    assert found["together_mb"] > memory["read child, peak"] > 50
    assert all(one["value"] > 0 for one in found["link"])
