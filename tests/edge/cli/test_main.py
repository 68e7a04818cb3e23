import sqlite3
import stat
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge.cli.main import app
from edge.status.users import Account, Role, is_password, load_users, put_user
from edge.store.repair import damaged_databases
from tests.edge.builders import open_store
from tests.edge.running_agent import command


def agent_error(root: Path, *more: str) -> str:
    """The last line of the agent in ``root``, which ends at once."""
    result = command(root, "run", lines=more, status=1)
    return result.stderr.splitlines()[-1]


def test_no_escape_sequence_of_an_error_reaches_the_terminal() -> None:
    result = CliRunner().invoke(app, ["run", "--config", "\x1b]0;owned\x07.toml"])
    assert result.exit_code == 1
    assert r"\x1b]0;owned\x07.toml: configuration file not found" in result.stderr
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("taken", ["inbox", "outbox", "state"])
def test_run_names_an_unusable_folder(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    assert str(tmp_path / taken) in agent_error(tmp_path)


def test_run_names_a_database_that_cannot_be_opened_and_does_not_set_it_aside(
    tmp_path: Path,
) -> None:
    (tmp_path / "state" / "spool.sqlite3").mkdir(parents=True)
    line = agent_error(tmp_path)
    assert line.startswith("InvalidDatabase: ")
    assert "spool.sqlite3" in line
    assert damaged_databases(tmp_path / "state" / "spool.sqlite3") == []


def test_a_database_that_another_process_holds_is_one_to_try_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "spool.sqlite3"
    path.parent.mkdir()
    with open_store(path):
        pass
    with closing(sqlite3.connect(path)) as held:
        held.execute("BEGIN EXCLUSIVE")
        result = command(tmp_path, "models", "rollback", status=1)
    assert "in use" in result.stderr, result.stderr
    assert "try again" in result.stderr


UNNEEDED = ("pynetdicom", "highdicom", "starlette", "onnxruntime", "cryptography")


@pytest.mark.parametrize(
    ("module", "most", "unneeded"),
    [
        ("edge.cli.main", 450, {"pydicom", "cv2", "openvino", "grpc"}),
        ("cloud.describe", 1000, {"openvino", "onnxruntime", "starlette", "SimpleITK"}),
        ("edge.cli.screen", 1001, {*UNNEEDED, "nibabel", "scipy", "pydicom", "SimpleITK"}),
        ("edge.cli.agent", 1600, {"highdicom", "nibabel", "scipy", "onnxruntime", "SimpleITK"}),
    ],
)
def test_a_command_loads_what_it_needs(module: str, most: int, unneeded: set[str]) -> None:
    """``--version`` and ``--help`` wait for no library; ``screen`` for none of the agent alone."""
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    modules = loaded.stdout.split()
    assert len(modules) < most
    assert not unneeded & {*modules}


def test_help_documents_the_exit_status() -> None:
    text = " ".join(CliRunner().invoke(app, ["screen", "-h"]).stdout.split())
    assert "Exit status: 0" in text
    assert "3: a cloud is set up" in text


def test_password_writes_the_hash_for_its_reader_alone(tmp_path: Path) -> None:
    file = tmp_path / "status.password"
    for typed, status in (("short\nshort\n", 2), ("one long word\nother word\n", 1)):
        assert CliRunner().invoke(app, ["password", str(file)], input=typed).exit_code == status
        assert not file.exists()
    result = CliRunner().invoke(app, ["password", str(file)], input="one long word\n" * 2)
    assert f'page.password_file = "{file}"' in result.stdout
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "one long word" not in file.read_text()
    account = load_users(file)["operator"]
    assert account.role is Role.OPERATOR
    assert is_password("one long word", account.hash)


def test_password_adds_a_user_to_the_file_and_leaves_the_others(tmp_path: Path) -> None:
    """A new password leaves the role."""
    file = tmp_path / "status.password"
    put_user(file, "operator", None, "one long word")

    def roles_after(*arguments: str) -> dict[str, str]:
        given = ["password", str(file), *arguments]
        assert CliRunner().invoke(app, given, input="another word\n" * 2).exit_code == 0
        return {name: one.role for name, one in accounts().items()}

    def accounts() -> Mapping[str, Account]:
        return load_users(file)

    assert roles_after("anna") == {"operator": "operator", "anna": "reader"}
    assert roles_after("anna", "--role", "operator")["anna"] == "operator"
    assert roles_after("anna") == {"operator": "operator", "anna": "operator"}
    assert is_password("one long word", accounts()["operator"].hash)
    for odd in ("a:b", " a", "", "a\nb"):
        assert CliRunner().invoke(app, ["password", str(file), odd]).exit_code == 2
