"""Opening an artifact for what it is used for."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.runtime import opened
from models.runtime.artifacts import Artifact, find
from models.runtime.errors import UnfitArtifact
from models.runtime.screener import open_screener
from models.runtime.second_reader import open_second_reader


@pytest.fixture
def shelf(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The readers look for artifacts in this folder."""

    def find_here(name: str) -> Artifact:
        return find(name, weights)

    monkeypatch.setattr(opened, "find", find_here)
    return weights


def rewrite(shelf: Path, old: str, new: str) -> None:
    """Changes the manifest, of which nothing is remembered between two tests' folders."""
    manifest = shelf / "manifest.toml"
    manifest.write_text(manifest.read_text().replace(old, new))


@pytest.mark.usefixtures("shelf")
def test_each_reader_opens_its_kind() -> None:
    """A fit artifact is opened, and says what it is."""
    assert open_screener("bright-screening", engine="onnxruntime").name == "bright-screening"
    reader = open_second_reader("bright-hybrid", engine="onnxruntime")
    assert (reader.engine, reader.roi_shape) == ("onnxruntime", (8, 8, 8))


@pytest.mark.usefixtures("shelf")
def test_another_kind_is_refused() -> None:
    """The error gives the kind that it is and the kind that is needed."""
    with pytest.raises(UnfitArtifact, match=r"bright-hybrid is of kind 'hybrid', 'screening'"):
        open_screener("bright-hybrid")
    with pytest.raises(UnfitArtifact, match=r"bright-screening is of kind 'screening', 'hybrid'"):
        open_second_reader("bright-screening")


@pytest.mark.parametrize("given", ["[1.0]", "[1.0, nan]", "['a', 'b']", "1.0"])
def test_a_calibration_that_cannot_be_is_refused(shelf: Path, given: str) -> None:
    """The error names the setting and its value; the file is not opened."""
    rewrite(shelf, "calibration = [1.0, 0.0]", f"calibration = {given}")
    with pytest.raises(UnfitArtifact, match=r"bright-screening: calibration = .*2 numbers"):
        open_screener("bright-screening")


def test_a_hybrid_without_the_shape_of_its_regions_is_refused(shelf: Path) -> None:
    """Without ``roi_shape`` nobody knows what it reads."""
    rewrite(shelf, "roi_shape = [8, 8, 8]", "")
    with pytest.raises(UnfitArtifact, match=r"bright-hybrid: roi_shape = None, 3 numbers"):
        open_second_reader("bright-hybrid")
