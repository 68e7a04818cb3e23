"""The command ``overread-models``: how it ends when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models import __main__ as command
from models.runtime import artifacts

Ended = Callable[..., str]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ended:
    """Runs the command; what it said on stderr, where it ended with exit status 1."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["overread-models", *arguments])
        with pytest.raises(SystemExit) as stopped:
            command.main()
        assert stopped.value.code == 1
        return capsys.readouterr().err

    return run


def test_a_missing_file_is_one_line(ended: Ended, tmp_path: Path) -> None:
    missing = tmp_path / "averaged.pt"
    said = ended("export", "screening", "--data", str(tmp_path), "--weights", str(missing))
    assert said.count("\n") == 1
    assert "FileNotFoundError" in said
    assert str(missing) in said


def test_an_unknown_artifact_is_one_line(ended: Ended, tmp_path: Path) -> None:
    said = ended("fit", "--data", str(tmp_path), "--screening", "screening-int9")
    assert said.count("\n") == 1
    assert "UnknownArtifact: no artifact 'screening-int9'" in said
    assert "screening-int8" in said


def test_a_damaged_manifest_is_one_line(
    ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.__main__.every", lambda: artifacts.every(tmp_path))
    said = ended("list")
    assert said.count("\n") == 1
    assert "DamagedArtifact: cannot read the manifest" in said


@pytest.mark.parametrize("module", ["torch", "tomli_w"])
def test_without_the_extra_the_command_names_it(
    module: str, ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [
        n for n in sys.modules if n.startswith("models.") and not n.startswith("models.runtime")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("sys.meta_path", [Lacking(module), *sys.meta_path])
    monkeypatch.delitem(sys.modules, module, raising=False)
    said = ended("fit", "--data", str(tmp_path))
    assert said == f"{module} is missing: needs the extra `train`: pip install 'overread[train]'\n"


def test_another_missing_module_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:

    def broken() -> None:
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(command, "app", broken)
    with pytest.raises(ModuleNotFoundError):
        command.main()


@pytest.mark.parametrize(
    "words", [["-h"], ["train", "-h"], ["prune", "compare", "-h"], ["int4", "-h"], ["--version"]]
)
def test_every_command_has_help_and_the_program_a_version(words: list[str]) -> None:
    result = CliRunner().invoke(command.app, words)
    assert result.exit_code == 0
    assert ("overread-models 0." if words == ["--version"] else "Usage") in result.stdout


class Lacking:
    """Finds modules as an environment without ``module`` would: not."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == self.module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
