import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models import __main__ as command
from models.__main__ import app
from models.runtime import artifacts
from models.runtime.artifacts import every

Ended = Callable[..., str]


def program_ended(
    main: Callable[[], object], patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ended:
    """Runs a program; what it said on stderr, where it ended with exit status 1."""

    def run(*arguments: str) -> str:
        patch.setattr("sys.argv", ["program", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 1
        return capsys.readouterr().err

    return run


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ended:
    return program_ended(lambda: command.main(), monkeypatch, capsys)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["export", "screening", "--weights", "no.pt"], ["DamagedArtifact: no.pt", "No such file"]),
        (["fit", "--screening", "screening-int9"],
         ["UnknownArtifact: no artifact 'screening-int9'", "screening-int8"]),
    ],
    ids=["missing file", "unknown artifact"],
)  # fmt: skip
def test_what_is_missing_is_one_line(
    words: list[str], named: list[str], ended: Ended, tmp_path: Path
) -> None:
    said = ended(*words, "--data", str(tmp_path))
    assert said.count("\n") == 1
    assert [word for word in named if word not in said] == []


def test_an_artifact_is_named_after_its_kind(tmp_path: Path) -> None:
    words = ["export", "hybrid", "--data", str(tmp_path), "--weights", "a.pt", "--name"]
    for name in ("large", "hybrid-x/../../y", "hybrid-X"):
        result = CliRunner().invoke(command.app, [*words, name])
        assert result.exit_code == 2
        assert f"'{name}': expected hybrid-, then" in result.output


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
    for name in [n for n in sys.modules if re.match(r"models\.(?!runtime)", n)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("sys.meta_path", [Lacking(module), *sys.meta_path])
    monkeypatch.delitem(sys.modules, module, raising=False)
    said = ended("fit", "--data", str(tmp_path))
    assert said == f"{module} is missing: in the checkout, pip install --editable '.[train]'\n"


def test_another_missing_module_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(command, "app", broken)
    with pytest.raises(ModuleNotFoundError):
        command.main()


@pytest.mark.parametrize(
    "words", [["-h"], ["train", "-h"], ["prune", "-h"], ["int4", "-h"], ["--version"]]
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


KEYS = {"version", "kind", "precision", "parent", "method", "sha256", "licence", "attribution"}


def listed_as(*options: str, columns: int = 80) -> str:
    result = CliRunner().invoke(command.app, ["list", *options], env={"COLUMNS": str(columns)})
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_names_and_versions_are_whole_on_any_terminal(columns: int) -> None:
    printed = listed_as(columns=columns)
    for name, artifact in every().items():
        assert name in printed
        assert artifact.version in printed
    assert max(map(len, printed.splitlines())) <= columns


def test_size_and_origin_are_listed() -> None:
    artifact = every()["screening-int8"]
    """Licence and attribution stand below."""
    lines = listed_as(columns=200).splitlines()
    first = next(i for i, line in enumerate(lines) if "screening-int8" in line)
    size = f"{artifact.path.stat().st_size / 1e6:.2f} MB"
    for word in ("int8", size, artifact.version, f"from {artifact.parent}"):
        assert word in " ".join(lines[first : first + 2])
    words = " ".join(" ".join(lines).split())
    for one in every().values():
        assert f"{one.licence}. {one.attribution}" in words


def test_json_holds_everything_of_the_manifest() -> None:
    """Every artifact with its keys; the SHA-256 is that of the file named."""
    listed = json.loads(listed_as("--json"))
    assert list(listed) == list(every())
    for name, entry in listed.items():
        assert set(entry) == KEYS | {"file", "installed", "settings", "metrics"}
        assert entry["sha256"] == hashlib.sha256(Path(entry["file"]).read_bytes()).hexdigest()
        assert entry["settings"] == dict(every()[name].settings)
        assert len(entry["settings"]["calibration"]) == 2


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train", "hybrid", "--screening", "x", "--reads", "7"], "multiples of 8 from 16 to 48"),
        (["train", "hybrid", "--screening", "x", "--reads", "24", "--reads", "24"], "different"),
        (["prune", "--start", "x", "--out", "y", "--share", "1.2"], "--share"),
        (["train", "screening", "--rate", "nan"], "--rate"),
        (["train", "screening", "--seed", "-1"], "--seed"),
        (["int4", "screening", "--start", "x", "--share", "nan"], "--share"),
        (["int4", "screening", "--start", "x", "--steps", "2"], "--steps"),
        (["export", "screening", "--weights", "x", "--name", "screening-"], "screening-"),
    ],
)
def test_options_that_cannot_be_end_before_the_work(
    words: list[str], named: str, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, [*words, "--data", str(tmp_path)])
    assert result.exit_code == 2
    assert named in " ".join(result.stderr.replace("│", " ").split())
