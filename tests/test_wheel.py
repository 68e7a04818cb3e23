"""The wheel holds what a hospital runs, and says in words what only the checkout has."""

import json
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from models.__main__ import TRAINING
from models.cli import app
from models.runtime.artifacts import every

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"process", "protos", "imaging", "models", "edge", "cloud", "overread"}
MAINS = {name: f"{name}.__main__:main" for name in ("edge", "cloud", "models")}
MAINS["eval"] = "overread.evaluate:main"
RUN = """
import contextlib, importlib, io, json, sys
sys.path[1:1] = json.loads(sys.argv[1])
for line in json.loads(sys.argv[2]):
    (module, name), sys.argv = line[0].split(":"), line
    with contextlib.redirect_stdout(io.StringIO()) as out, \\
            contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = getattr(importlib.import_module(module), name)() or 0
        except SystemExit as end:
            status = end.code or 0
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
    print(json.dumps([status, out.getvalue(), err.getvalue()]))
"""
Run = Callable[..., list[tuple[int, str, str]]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", out]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def run(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs programs of the wheel with its dependencies; status, stdout and stderr of each."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    paths = [str(folder), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]

    def run(*lines: str) -> list[tuple[int, str, str]]:
        programs = [(line.split()[0].removeprefix("overread-"), line.split()[1:]) for line in lines]
        arguments = json.dumps([[MAINS[name], *rest] for name, rest in programs])
        # without site, or the checkout would be found, which is installed as editable
        command = [sys.executable, "-I", "-S", "-c", RUN, json.dumps(paths), arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr
        return [tuple(json.loads(line)) for line in done.stdout.splitlines()]

    return run


def test_it_is_small_and_holds_programs_without_evaluation_training_and_float_weights(
    wheel: Path,
) -> None:
    assert wheel.stat().st_size <= 15e6
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {name.partition("/")[0] for name in names} == PACKAGES
    inside = {name.split("/")[1] for name in names if name.startswith("models/")}
    assert inside == {"__init__.py", "__main__.py", "probe", "runtime", "weights"}
    weights = {Path(name).name for name in names if name.endswith(".onnx")}
    assert weights == {a.path.name for a in every().values() if a.precision != "fp32"}
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES - {"models"}], cwd=ROOT, capture_output=True, text=True
    )
    missing = set(tracked.stdout.split()) - set(names)
    assert {name for name in missing if not name.startswith("imaging/phantom/")} == set()


def test_its_programs_start_and_name_what_only_the_checkout_has(run: Run) -> None:
    programs = ["overread-models", "overread-edge", "overread-cloud"]
    absent = ["train screening --data x", "fit", "prune -h"]
    results = run(
        *(f"{name} --version" for name in programs),
        *(f"overread-models {words}" for words in absent),
        "overread-eval latency",
        "overread-models probe --model none",
    )
    assert results[:3] == [(0, f"{name} 0.1.0\n", "") for name in programs]
    rest = "is not installed: it is in the checkout only. Clone the repository, and there: pip"
    names = [f"overread-models {words.split()[0]}" for words in absent]
    assert results[3:6] == [
        (1, "", f"{name} {rest} install --editable '.[train]'\n") for name in names
    ]
    assert results[6] == (1, "", f"overread-eval {rest} install --editable '.[evaluation]'\n")
    assert "UnknownArtifact: no artifact 'none'" in results[7][2]


def test_its_models_are_listed_and_signed_without_the_float_weights(
    run: Run, tmp_path: Path
) -> None:
    (_, listed, _), _, signed, checked = run(
        "overread-models list",
        f"overread-models keys {tmp_path}",
        f"overread-models sign --key {tmp_path}/models.key",
        "overread-models list --json",
    )
    table, _, others = listed.partition("Not installed, in the checkout only:")
    floats = [name for name, one in every().items() if one.precision == "fp32"]
    assert others.partition(".")[0].replace(",", " ").split() == floats
    for name, one in every().items():
        assert (one.version in table) == (name not in floats)
    assert signed[0] == 0
    assert signed[1].endswith(f"not here, so not checked: {', '.join(floats)}\n")
    assert [n for n, one in json.loads(checked[1]).items() if not one["installed"]] == floats


def test_every_command_of_the_checkout_is_known_to_the_wheel() -> None:
    names = {one.name or one.callback.__name__ for one in app.registered_commands if one.callback}
    assert names | {one.name for one in app.registered_groups} == set(TRAINING)
