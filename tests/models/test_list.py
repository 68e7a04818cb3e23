"""What `overread-models list` says of the artifacts, to people and to programs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.__main__ import app
from models.runtime.artifacts import every

KEYS = {"version", "kind", "precision", "parent", "method", "sha256", "licence", "attribution"}


def said(*options: str, columns: int = 80) -> str:
    """What the command prints on a terminal so wide."""
    result = CliRunner().invoke(app, ["list", *options], env={"COLUMNS": str(columns)})
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_names_and_versions_are_whole_on_any_terminal(columns: int) -> None:
    printed = said(columns=columns)
    for name, artifact in every().items():
        assert name in printed
        assert artifact.version in printed
    assert max(map(len, printed.splitlines())) <= columns


def test_size_and_origin_are_told() -> None:
    artifact = every()["screening-int8"]
    lines = said(columns=200).splitlines()
    first = next(i for i, line in enumerate(lines) if "screening-int8" in line)
    size = f"{artifact.path.stat().st_size / 1e6:.2f} MB"
    for word in ("int8", size, artifact.version, f"from {artifact.parent}"):
        assert word in " ".join(lines[first : first + 2])


def test_licence_and_attribution_stand_below() -> None:
    words = " ".join(said(columns=200).split())
    for artifact in every().values():
        assert f"{artifact.licence}. {artifact.attribution}" in words


def test_json_holds_everything_of_the_manifest() -> None:
    """Every artifact with its keys; the SHA-256 is that of the file named."""
    listed = json.loads(said("--json"))
    assert list(listed) == list(every())
    for name, entry in listed.items():
        assert set(entry) == KEYS | {"file", "settings", "metrics"}
        assert entry["sha256"] == hashlib.sha256(Path(entry["file"]).read_bytes()).hexdigest()
        assert entry["settings"] == dict(every()[name].settings)
        assert len(entry["settings"]["calibration"]) == 2
