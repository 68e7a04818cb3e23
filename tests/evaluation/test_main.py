"""The command ``overread-eval``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app, main

HEAD = "seriesuid,coordX,coordY,coordZ,"


@pytest.fixture
def tables(tmp_path: Path) -> list[str]:
    """Arguments of the command froc: two scans, one nodule found, one false positive."""
    texts = {
        "candidates": HEAD + "probability\na,0,0,0,0.9\nb,5,5,5,0.4\n",
        "annotations": HEAD + "diameter_mm\na,1,0,0,6\n",
        "excluded": HEAD + "diameter_mm\n",
        "scans": "a\nb\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.csv").write_text(text)
    return [word for name in texts for word in (f"--{name}", str(tmp_path / f"{name}.csv"))]


def test_froc_prints_json(tables: list[str]) -> None:
    """Figures, counts and intervals under their promised names, and nothing else on stdout."""
    result = CliRunner().invoke(app, ["froc", *tables, "--resamples", "20", "--json"])
    said = json.loads(result.stdout)
    assert said["cpm"] == 1.0
    assert said["sensitivity"] == [1.0] * 7
    assert {name: said[name] for name in ("tp", "fn", "fp", "ignored", "double")} == {
        "tp": 1,
        "fn": 0,
        "fp": 1,
        "ignored": 0,
        "double": 0,
    }
    assert said["intervals"]["cpm"] == [1.0, 1.0]
    assert len(said["intervals"]["sensitivity"]) == 7


def test_froc_prints_a_table(tables: list[str]) -> None:
    """People get the same figures as a table."""
    result = CliRunner().invoke(app, ["froc", *tables, "--resamples", "20"])
    assert result.exit_code == 0
    assert "CPM" in result.stdout
    assert "100.0 %" in result.stdout


def test_bad_table_ends_with_a_line(
    tables: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be evaluated is one line on stderr and exit status 1."""
    Path(tables[1]).write_text(HEAD + "probability\nc,0,0,0,0.9\n")
    monkeypatch.setattr("sys.argv", ["overread-eval", "froc", *tables])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "BadTable" in said
    assert "scan 'c'" in said


def test_serve_and_cloud_exclude_each_other(tmp_path: Path) -> None:
    """Two clouds for one run are a mistake of the caller."""
    arguments = ["latency", str(tmp_path), "--serve", "--cloud", "off"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "--cloud" in result.stderr
