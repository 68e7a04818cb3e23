"""The manifest and what it vouches for."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.runtime.artifacts import WEIGHTS, every, find
from models.runtime.errors import DamagedArtifact, UnknownArtifact


def test_an_artifact_is_found_by_its_name(weights: Path) -> None:
    """The entry gives kind, settings and content."""
    artifact = find("bright-screening", weights)
    assert artifact.kind == "screening"
    assert artifact.settings["calibration"] == [1.0, 0.0]
    assert artifact.content() == artifact.path.read_bytes()


def test_an_unknown_name_lists_what_there_is(weights: Path) -> None:
    """The error names the artifacts of the manifest."""
    with pytest.raises(UnknownArtifact, match="bright-screening, bright-hybrid"):
        find("nothing", weights)


def test_a_changed_file_is_refused(weights: Path) -> None:
    """A file whose content is not what the manifest says is never run."""
    artifact = find("bright-screening", weights)
    artifact.path.write_bytes(artifact.path.read_bytes() + b"x")
    with pytest.raises(DamagedArtifact, match="SHA-256"):
        artifact.content()


def test_a_missing_file_and_a_missing_manifest_are_told(weights: Path, tmp_path: Path) -> None:
    """Both say which path could not be read."""
    artifact = find("bright-screening", weights)
    artifact.path.unlink()
    with pytest.raises(DamagedArtifact, match=r"bright-screening\.onnx"):
        artifact.content()
    with pytest.raises(DamagedArtifact, match=r"manifest\.toml"):
        every(tmp_path / "elsewhere")


def test_every_shipped_artifact_is_whole_and_attributed() -> None:
    """What is committed in models/weights has the content, licence and attribution it claims."""
    shipped = every(WEIGHTS)
    assert {"screening-int8", "screening-fp32", "hybrid-int8", "hybrid-fp32"} <= set(shipped)
    for artifact in shipped.values():
        assert artifact.content()
        assert "LIDC-IDRI" in artifact.attribution
        assert artifact.licence
