"""The commands of the audit trail."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from edge.cli.main import app
from tests.edge.builders import put
from tests.edge.running_agent import work_off


def audit(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The settings of an agent that has refused a study and was stopped."""
    put(tmp_path / "inbox", "a", "bad")
    work_off(tmp_path)
    file = tmp_path / "edge.toml"
    folders = {"inbox": "inbox", "outbox": "outbox", "state_dir": "state"}
    file.write_text("".join(f'{name} = "{tmp_path / at}"\n' for name, at in folders.items()))
    return file


def test_a_trail_is_checked_and_a_broken_record_named(config: Path, tmp_path: Path) -> None:
    """A sound one ends with 0, a broken or missing one with 1."""
    sound = audit("verify", "--config", config, "--json")
    values = json.loads(sound.stdout)
    assert sound.exit_code == 0
    assert (values["records"], values["broken"], values["end_checked"]) == (5, None, True)
    (file,) = (tmp_path / "state" / "trail").iterdir()
    assert audit("verify", file.parent).exit_code == 0
    file.write_text(file.read_text().replace("NotCt", "NotMe"))
    broken = audit("verify", "--config", config)
    assert broken.exit_code == 1
    assert f"BROKEN at {file.name}, line 5" in broken.stdout
    nothing = audit("verify", tmp_path)
    assert nothing.exit_code == 1
    assert nothing.stderr.startswith("NoTrail: ")


def test_a_trail_is_exported_as_a_message_a_line(config: Path) -> None:
    lines = audit("export", "--config", config).stdout.splitlines()
    assert [ElementTree.fromstring(line).tag for line in lines] == ["AuditMessage"] * 5
    assert audit("export", "--config", config, "--since", "2999-01-01").stdout == ""
    since = audit("export", "--config", config, "--since", "2020-01-01T10:00:00")
    assert len(since.stdout.splitlines()) == 5
