import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app, main
from imaging.phantom.phantom import TRAINING_SEED
from process.command_line import PACKAGES
from tests.evaluation.accuracy.test_luna16 import HEAD, write
from tests.models.test_main import Ended, Lacking, program_ended

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ended:
    return program_ended(main, monkeypatch, capsys)


@pytest.fixture
def tables(tmp_path: Path) -> list[str]:
    """Arguments of the command froc: two scans, one nodule found, one false positive."""
    paths = write(tmp_path, scans="a\nb\n")
    return [word for name, path in paths.items() for word in (f"--{name}", str(path))]


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
    assert said == "torch is missing: in the checkout, pip install --editable '.[train]'\n"


def test_the_program_names_the_extra_that_a_plain_installation_lacks() -> None:
    code = "import sys; sys.modules['scipy'] = None; import overread.evaluate as e; e.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = "scipy.special is missing: in the checkout, pip install --editable '.[train]'\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_all_that_the_evaluation_imports_is_installed_with_its_extra() -> None:
    """Of what a plain installation lacks, the extra is known by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    plain, extra = (
        {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~]", one)[0]).lower() for one in needed}
        for needed in (
            project["dependencies"],
            [*extras["evaluation"], *extras["train"], *extras["ray"]],
        )
    )
    known, packages = packages_distributions(), set[str]()
    for file in (ROOT / "evaluation").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                packages |= {one.name.partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                packages.add((node.module or "").partition(".")[0])
    others = {name for name in packages - sys.stdlib_module_names if not (ROOT / name).is_dir()}
    distributions = {
        name: {re.sub(r"[-_.]+", "-", one).lower() for one in known.get(name, [name])}
        for name in others
    }
    added = {name for name, of in distributions.items() if not of & plain}
    assert "torch" in added
    assert {name for name in added if not distributions[name] & extra} == set()
    assert added - PACKAGES.keys() == set()


def test_torch_is_not_loaded_before_a_command_needs_it() -> None:
    code = "import sys, evaluation.__main__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


PHANTOM, OTHERS = ["--phantoms", "1"], ["--studies", ".", "--truth", __file__]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["detect", *PHANTOM, "--seed", str(TRAINING_SEED)], "--seed: used in training"),
        (
            ["detect", "--phantoms", "3", "--seed", str(TRAINING_SEED - 2)],
            "--seed: used in training",
        ),
        (["detect"], "give either"),
        (["detect", *PHANTOM, *OTHERS], "give either"),
        (["load", "--scenario", "rain"], "'rain'"),
    ],
)
def test_options_that_cannot_be_are_refused(given: list[str], says: str) -> None:
    """Phantoms of training, nothing or two things, and what there is not."""
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    for words in says.split(": "):
        assert words in said
