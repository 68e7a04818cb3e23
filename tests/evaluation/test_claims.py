import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from evaluation import claims
from evaluation.__main__ import app
from evaluation.claims import in_rows, lacking, measure, read_figures
from models.__main__ import app as models_app


class Started:
    """In place of `subprocess.run`: notes the lines, each of which prints a little JSON."""

    def __init__(self, status: int = 0) -> None:
        self.lines: list[str] = []
        self.status = status

    def __call__(self, line: str, **_: Any) -> subprocess.CompletedProcess[str]:
        self.lines.append(line)
        return subprocess.CompletedProcess(line, self.status, stdout=json.dumps({"n": 1}))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    made = Started()
    monkeypatch.setattr(claims.subprocess, "run", made)
    return made


def test_each_claim_is_a_command_of_ours() -> None:
    typed = re.findall(r"overread-(\w+) ([\w-]+)", " ".join(claims.claims("DATA").values()))
    for program, group in (("eval", app), ("models", models_app)):
        used = {name for own, name in typed if own == program}
        assert used
        assert used <= set(typer.main.get_command(group).commands)  # type: ignore[attr-defined] # a group


def test_a_claim_is_run_for_json_and_named_by_its_command(started: Started) -> None:
    assert measure("overread-eval load") == {"command": "overread-eval load", "n": 1}
    inside = "unshare -rm sh -c 'mount X && overread-eval nothing-lost --at /mnt'"
    assert measure(inside)["command"] == inside
    assert started.lines == [
        "overread-eval load --json",
        "unshare -rm sh -c 'mount X && overread-eval nothing-lost --at /mnt --json'",
    ]


def test_a_row_of_a_result_is_a_line_and_its_texts_stay() -> None:
    rows = [{"name": "a  [b\n{c}", "value": 0.5}, {"name": "d  e", "value": None}]
    text = in_rows({"rows": rows, "empty": []})
    assert json.loads(text) == {"rows": rows, "empty": []}
    assert '{ "name": "d  e", "value": null }' in map(str.strip, text.splitlines())


def test_the_programs_are_those_of_this_interpreter() -> None:
    found = measure("overread-models list")
    assert found["command"] == "overread-models list"
    assert len(found) > 1


def test_a_claim_that_cannot_be_measured_keeps_what_there_was(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started.status = 1
    monkeypatch.setattr(claims, "DOCS", tmp_path / "docs")
    for writes in ("write_pages", "amend"):
        monkeypatch.setattr(claims, writes, lambda *_: [])
    kept = tmp_path / "docs" / "results" / "faults.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    ended = CliRunner().invoke(claims.app, ["--only", "faults"])
    assert ended.exit_code == 0, ended.output
    assert "leaving out faults" in ended.output
    assert kept.read_text() == "{}"
    assert CliRunner().invoke(claims.app, ["--only", "nope"]).exit_code == 2
    assert not lacking("overread-eval load")
    assert "runs/x/averaged.pt is not here" in lacking("overread-eval a --start runs/x/averaged.pt")
    assert len(started.lines) == 1


def test_the_manifest_gets_the_figures_of_its_artifacts(tmp_path: Path) -> None:
    cpm = {"value": 0.82, "low": 0.77, "high": 0.86}
    points = [
        {"false_positives_per_scan": rate, "value": rate / 10, "low": 0.0, "high": 1.0}
        for rate in (1, 2, 8)
    ]
    row = {"cpm": cpm, "sensitivity": points}
    (tmp_path / "nodules_int8.json").write_text(json.dumps({"curves": [row, row]}))
    figures = read_figures(tmp_path)
    assert set(figures) == {"screening-int8", "hybrid-int8"}
    assert figures["hybrid-int8"] == {
        "cpm": cpm,
        "sensitivity_at_2": {"value": 0.2, "low": 0.0, "high": 1.0},
        "sensitivity_at_8": {"value": 0.8, "low": 0.0, "high": 1.0},
    }


def test_results_keep_figures_of_six_digits_and_no_raw_rows(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = {"cpm": 0.123456789, "rows": [{"n": 12345678}], "raw": {"scans": [1]}}
    monkeypatch.setattr(json, "loads", lambda _: printed)
    found = measure("overread-eval whole")
    assert found == {"command": "overread-eval whole", "cpm": 0.123457, "rows": [{"n": 12345678}]}
    assert started.lines
