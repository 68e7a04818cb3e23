import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from evaluation import claims
from evaluation.__main__ import app
from evaluation.claims import MODELS, Claim, can_measure, measure, read_figures
from models.__main__ import app as models_app


class Started:
    """In place of `subprocess.run`: notes the lines, each of which prints a little JSON."""

    def __init__(self, status: int = 0) -> None:
        self.lines: list[list[str]] = []
        self.status = status

    def __call__(self, line: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.lines.append(line)
        return subprocess.CompletedProcess(line, self.status, stdout=json.dumps({"n": 1}))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    made = Started()
    monkeypatch.setattr(claims.subprocess, "run", made)
    return made


def test_each_claim_has_a_name_and_a_command() -> None:
    every = claims.claims("DATA")
    names = [one.name for one in every]
    assert len(set(names)) == len(names)
    for program, group in (("overread-eval", app), ("overread-models", models_app)):
        commands = typer.main.get_command(group).commands  # type: ignore[attr-defined] # a group
        used = {one.command[0] for one in every if one.program == program}
        used |= {words[0] for one in every for words in one.before if program == MODELS}
        assert used
        assert used <= set(commands)


def test_a_claim_is_run_and_named_by_its_command(started: Started) -> None:
    found = measure(Claim("wire", ("wire", "--cache", "x")))
    assert found == {"command": "overread-eval wire --cache x", "n": 1}
    assert started.lines[0][1:] == ["-m", "evaluation", "wire", "--cache", "x", "--json"]


def test_a_claim_of_models_makes_first_what_it_needs(started: Started) -> None:
    claim = Claim("d", ("distil",), program=MODELS, before=(("train", "screening"),))
    assert measure(claim)["command"] == "overread-models distil"
    assert [line[1:] for line in started.lines] == [
        ["-m", "models", "train", "screening"],
        ["-m", "models", "distil", "--json"],
    ]


def test_the_full_disk_is_a_small_filesystem(started: Started) -> None:
    claim = Claim("faults", ("nothing-lost", "--fault", "disk"), small_disk=True)
    command = measure(claim)["command"]
    assert command == (
        "unshare -rm sh -c 'mount -t tmpfs -o size=240m none /mnt && "
        "overread-eval nothing-lost --fault disk --at /mnt'"
    )
    assert started.lines[0][:4] == ["unshare", "-rm", "sh", "-c"]
    assert started.lines[0][4].startswith("mount -t tmpfs -o size=240m none /mnt && exec ")
    assert started.lines[0][4].endswith("--fault disk --json --at /mnt")
    assert can_measure(claim)
    started.status = 1
    assert not can_measure(claim)
    assert can_measure(Claim("cost", ("cost",)))


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


def test_a_journal_of_an_earlier_run_is_removed(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "DOCS", tmp_path / "docs")
    stale = tmp_path / "runs" / "link.jsonl"
    stale.parent.mkdir()
    stale.write_text("old")
    measure(next(one for one in claims.claims("DATA") if one.name == "link"))
    assert not stale.exists()
    assert started.lines


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
    found = measure(Claim("whole", ("whole",)))
    assert found == {"command": "overread-eval whole", "cpm": 0.123457, "rows": [{"n": 12345678}]}
    assert started.lines
