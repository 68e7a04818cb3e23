import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from evaluation.policies import command
from evaluation.policies.cases import Cases, save
from tests.evaluation.made_cases import made_cases


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a run whose cases are in the cache, so that no model is opened."""
    (tmp_path / "marks.csv").write_text("scan,kind,x,y,z,diameter_mm\n")

    def unread(*_: object) -> Cases:
        raise AssertionError("what lies in the cache is not read again")

    monkeypatch.setattr(command, "read_cases", unread)
    monkeypatch.setattr(command, "key_of", lambda **_: "key")
    save(made_cases(patients=4), tmp_path / "cases-key.json")
    folder, marks = str(tmp_path), str(tmp_path / "marks.csv")
    return ["--data", folder, "--scans", folder, "--truth", marks, "--cache", folder,
            "--trace", "fibre", "--rounds", "1"]  # fmt: skip


def invoke(arguments: list[str]) -> str:
    app = typer.Typer()
    app.command()(command.policies_command)
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_it_prints_json_and_writes_plots(arguments: list[str], tmp_path: Path) -> None:
    more = ["--json", "--plots", str(tmp_path / "plots")]
    said = json.loads(invoke([*arguments, *more]))
    assert [one["trace"] for one in said["traces"]] == ["fibre"]
    assert said["studies"] == 6
    assert len(list((tmp_path / "plots").glob("*.png"))) == 4


def test_it_shows_tables_by_default(arguments: list[str]) -> None:
    shown = invoke(arguments)
    assert "oracle" in shown
    words = " ".join(shown.split())
    assert "ours over fibre finds at least as much as cloud only, with 0." in words
    assert "ratio of ours, verdicts only to others: (a) fixed threshold: " in words
    assert "test, real scans: " in words
    assert "fixed pairs do as well as ours on the test studies with fewer ROIs" in words
