"""The command line: what an operator reads when something is wrong, and `describe`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cloud.__main__ import app

StartCloud = Callable[..., Any]


def command(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of ``overread-cloud`` with ``arguments``."""
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr.replace("\n", " ")


def test_describe_prints_json_for_machines(start_cloud: StartCloud) -> None:
    """`--json` prints all that the service says of itself."""
    with start_cloud() as cloud:
        status, out, _ = command("describe", cloud.address, "--json")
    assert status == 0
    said = json.loads(out)
    assert said["models"] == {"mean": "2.1"}
    assert said["roi_shape"] == [8, 8, 8]


def test_describe_prints_a_table_for_people(start_cloud: StartCloud) -> None:
    """Without `--json` every limit stands in a table by its name."""
    with start_cloud() as cloud:
        status, out, _ = command("describe", cloud.address)
    assert status == 0
    assert "max_rois" in out
    assert "64" in out


def test_describe_of_nobody_fails(start_cloud: StartCloud) -> None:
    """A service that is not there is told as such, with status 1."""
    with start_cloud() as cloud:
        address = cloud.address
    status, out, err = command("describe", address)
    assert status == 1
    assert out == ""
    assert "Unreachable" in err


@pytest.mark.parametrize(
    ("text", "word"), [("max_batch = 0", "max_batch"), ("adress = 'x:1'", "adress")]
)
def test_serve_names_the_wrong_setting(tmp_path: Path, text: str, word: str) -> None:
    """A wrong setting ends the command with its name and status 1, without a traceback."""
    config = tmp_path / "cloud.toml"
    config.write_text(text)
    status, _, err = command("serve", "--config", str(config))
    assert status == 1
    assert "BadSettings" in err
    assert word in err
    assert "Traceback" not in err
