from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import structlog
from typer.testing import CliRunner, Result

from edge import assemble
from edge.__main__ import app
from imaging.errors import IncompleteSeries
from imaging.preprocess import Preprocessed
from imaging.volume import Geometry, Study, Volume
from tests.edge.builders import FixedScreener, box
from tests.edge.fake_cloud import FakeCloud


@pytest.fixture(autouse=True)
def fixed_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command with a study and a network that are always the same; its logs are its own."""

    def read(source: Path) -> Study:
        if source.name == "short":
            raise IncompleteSeries("3 slices of 2 mm make 6 mm; send the whole series", source)
        return Study(Volume(np.zeros((2, 2, 2), np.int16), Geometry()), source)

    def preprocess(_volume: Volume, _source: Path) -> Preprocessed:
        return box()

    def open_screener(_name: str, *, engine: str, threads: int) -> FixedScreener:
        return FixedScreener((0.95, 0.7, 0.05), engine=f"{engine}, {threads} threads")

    monkeypatch.setattr(assemble, "open_screener", open_screener)
    monkeypatch.setattr(assemble, "read_study", read)
    monkeypatch.setattr(assemble, "preprocess", preprocess)
    yield
    structlog.reset_defaults()


def screen(out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["screen", "--out", str(out), *arguments])


def test_cloud_off_is_done(tmp_path: Path) -> None:
    result = screen(tmp_path, "study", "--cloud", "off", "--json")
    printed = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (printed["second_reading"], printed["second_reading_reason"]) == ("missing", "off")
    assert printed["models"] == {"edge": "fixed 1 (auto, 0 threads)"}


def test_json_gives_every_finding(tmp_path: Path) -> None:
    with FakeCloud() as cloud:
        result = screen(tmp_path, "study", "--cloud", cloud.address, "--json")
    printed = json.loads(result.stdout)
    assert (result.exit_code, printed["second_reading"]) == (0, "complete")
    first, second = printed["findings"]
    assert (first["route"], first["decided_by"], first["diameter_mm"]) == ("report", "edge", 9.0)
    assert first["verdict"]["probability"] == 0.99
    assert second["centre_mm"] == [1.0, 2.0, 3.0]
    assert (second["diameter_mm"], second["decided_by"]) == (9.0, "cloud")
    assert second["edge_score"] == 0.7
    assert second["reason"] == "the cloud raised 0.70 to 1.00, at or above the threshold 0.60"
    written = json.loads((tmp_path / "report.json").read_text())
    assert printed.keys() == written.keys()
    stages = [[entry["stage"] for entry in said["ledger"]] for said in (printed, written)]
    assert stages[0] == stages[1]
    assert stages[0][-2:] == ["draw", "report"]


def test_people_get_a_table_without_the_log(tmp_path: Path) -> None:
    result = screen(tmp_path, "study")
    for said in ("2 findings of 3 candidates", "preprocess", "report.html", "Not a medical device"):
        assert said in " ".join(result.stdout.split())
    assert "study reported" in result.stderr
    assert "study reported" not in result.stdout


def test_dead_cloud_has_a_status_of_its_own(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        result = screen(tmp_path, "study", "--cloud", address, "--deadline", "3", "--json")
    printed = json.loads(result.stdout)
    assert (result.exit_code, printed["second_reading"]) == (3, "missing")
    assert printed["findings"][1]["decided_by"] == "edge, second reading missing"
    assert (tmp_path / "report.html").is_file()


def test_refused_study_has_a_status_of_its_own(tmp_path: Path) -> None:
    result = screen(tmp_path, "short")
    assert result.exit_code == 2
    assert "IncompleteSeries" in result.stdout
    assert "send the whole series" in result.stdout
    assert json.loads((tmp_path / "report.json").read_text())["status"] == "rejected"


@pytest.mark.parametrize("arguments", [("--cloud", "nowhere"), ("--config", "absent.toml")])
def test_bad_settings_are_named(tmp_path: Path, arguments: tuple[str, str]) -> None:
    result = screen(tmp_path, "study", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("BadSettings: ")
    assert arguments[1] in result.stderr


@pytest.mark.parametrize("below", ["", "below"])
def test_screen_names_an_unusable_output_folder(tmp_path: Path, below: str) -> None:
    """Where no folder can be made the command ends with status 1 before it reads anything."""
    (tmp_path / "file").write_text("mine")
    result = screen(tmp_path / "file" / below, "study")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert str(tmp_path / "file") in line
    assert (tmp_path / "file").read_text() == "mine"


def agent_error(root: Path, *more: str) -> str:
    """The one line with which the agent in ``root`` ends at once."""
    lines = [f'{name} = "{root / name}"' for name in ("inbox", "outbox", "state_dir")]
    config = root / "edge.toml"
    config.write_text("\n".join([*lines, *more]))
    result = CliRunner().invoke(app, ["run", "--config", str(config)])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize("taken", ["inbox", "outbox", "state_dir"])
def test_run_names_an_unusable_folder(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    assert str(tmp_path / taken) in agent_error(tmp_path)


def test_run_names_a_taken_metrics_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = agent_error(tmp_path, f"metrics_port = {port}")
    assert line == (
        f"BadSettings: metrics at 127.0.0.1:{port}: Address already in use"
        " (metrics_address, metrics_port)"
    )


def test_run_names_an_invalid_database(tmp_path: Path) -> None:
    (tmp_path / "state_dir").mkdir()
    (tmp_path / "state_dir" / "spool.sqlite3").write_text("no database" * 1000)
    line = agent_error(tmp_path)
    assert line.startswith("InvalidDatabase: ")
    assert "spool.sqlite3" in line


def test_version_is_that_of_the_package() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"overread-edge {version('overread')}\n"


def test_help_documents_the_exit_status() -> None:
    text = " ".join(CliRunner().invoke(app, ["screen", "-h"]).stdout.split())
    assert "Exit status: 0" in text
    assert "3: a cloud is set up" in text


def test_edge_never_imports_torch_nor_the_cloud() -> None:
    code = (
        "import sys, edge.__main__; wrong = ('torch', 'cloud', 'evaluation', 'models.networks');"
        "print([module for module in wrong if module in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
