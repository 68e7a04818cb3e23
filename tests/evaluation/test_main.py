import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app, main
from imaging.phantom.phantom import TRAINING_SEED
from tests.evaluation.accuracy.test_luna16 import HEAD, write
from tests.models.test_main import Ended, Lacking


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ended:
    """Runs the program; what it said on stderr, where it ended with exit status 1."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["program", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 1
        return capsys.readouterr().err

    return run


@pytest.fixture
def tables(tmp_path: Path) -> list[str]:
    """Arguments of the command froc: two scans, one nodule found, one false positive."""
    paths = write(tmp_path, scans="a\nb\n")
    return [word for name, path in paths.items() for word in (f"--{name}", str(path))]


def test_version_and_short_help() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"overread-eval {version('overread')}\n"
    for command in ([], ["froc"]):
        assert "Usage: " in CliRunner().invoke(app, [*command, "-h"]).stdout


def test_froc_prints_json_and_tables(tables: list[str]) -> None:
    result = CliRunner().invoke(app, ["froc", *tables, "--json"])
    said = json.loads(result.stdout)
    assert [one["value"] for one in said["sensitivity"]] == [1.0] * 7
    counts = ("tp", "fn", "fp", "ignored", "double")
    assert [said[name] for name in counts] == [1, 0, 1, 0, 0]
    assert said["cpm"] == {"value": 1.0, "low": pytest.approx(0.025), "high": 1.0}  # of one patient
    assert "CPM 1.0000" in CliRunner().invoke(app, ["froc", *tables]).stdout


def test_bad_table_ends_with_a_line(tables: list[str], ended: Ended) -> None:
    Path(tables[1]).write_text(HEAD + "probability\nc,0,0,0,0.9\n")
    said = ended("froc", *tables)
    assert "BadTable" in said
    assert "scan 'c'" in said


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, ended: Ended) -> None:
    monkeypatch.setattr("sys.meta_path", [Lacking("torch"), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    said = ended("calibration", "--data", ".")
    assert said == "torch is missing: needs the extra `train`: pip install 'overread[train]'\n"


def test_torch_is_not_loaded_before_a_command_needs_it() -> None:
    code = "import sys, evaluation.__main__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_serve_and_cloud_exclude_each_other(tmp_path: Path) -> None:
    arguments = ["latency", str(tmp_path), "--serve", "--cloud", "off"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "--cloud" in result.stderr


@pytest.mark.parametrize(("seed", "count"), [(TRAINING_SEED, 1), (TRAINING_SEED - 2, 3)])
def test_phantoms_used_in_training_are_refused(seed: int, count: int) -> None:
    result = CliRunner().invoke(app, ["detect", "--phantoms", str(count), "--seed", str(seed)])
    assert result.exit_code == 2
    assert "--seed" in result.stderr
    assert "used in training" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "given",
    [["detect"], ["detect", "--phantoms", "1", "--studies", ".", "--truth", __file__], ["latency"],
     ["latency", ".", "--candidates", "5"]],
)  # fmt: skip
def test_one_thing_is_measured_at_a_time(given: list[str]) -> None:
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert "give either" in " ".join(result.stderr.split())
