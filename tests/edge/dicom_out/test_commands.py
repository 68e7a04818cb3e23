"""The commands ``targets`` and ``resend``, and what ``doctor`` says of targets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from edge.__main__ import app
from edge.audit import Event, Person
from edge.trail.files import records_after
from tests.dicom_peers import Pacs
from tests.edge.builders import put
from tests.edge.databases import open_store
from tests.edge.dicom_out.test_agent_delivers import count, keys, work

# pynetdicom drops the socket of a connection that failed without closing it
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def command(root: Path, port: int, *arguments: str) -> Result:
    folders = {"inbox": "inbox", "outbox": "outbox", "state_dir": "state"}
    target = {"name": "pacs", "kind": "dicom", "host": "127.0.0.1", "called_ae": "PACS"}
    lines = [*(f'{n} = "{root / p}"' for n, p in folders.items()), "[[targets]]", f"port = {port}"]
    config = root / "edge.toml"
    config.write_text("\n".join([*lines, *(f'{n} = "{v}"' for n, v in target.items())]))
    return CliRunner().invoke(app, [*arguments, "--config", str(config)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A report that was sent, and then is a dead letter."""
    put(tmp_path / "inbox", "a")
    with Pacs().running() as pacs:
        work(tmp_path, pacs.port, sent=1)
    with open_store(tmp_path / "state" / "spool.sqlite3", targets=["pacs"]) as store:
        store.database.execute("UPDATE deliveries SET step = 'dead', reason = 'the [red] reason'")
    return tmp_path


def test_targets_shows_who_answers_and_dead_letters_with_their_reasons(root: Path) -> None:
    with Pacs().running() as pacs:
        result = command(root, pacs.port, "targets", "--json")
        assert result.exit_code == 0
        (target,) = json.loads(result.stdout)["targets"]
        assert (target["name"], target["problem"], target["waiting"]) == ("pacs", "", 0)
        (letter,) = target["dead"]
        assert (letter["report"], letter["reason"]) == ("a", "the [red] reason")
        assert letter["study_key"] == keys(root)["a"]
        assert "the [red] reason" in " ".join(command(root, pacs.port, "targets").stdout.split())
    result = command(root, pacs.port, "targets", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["targets"][0]["problem"].endswith("Connection refused")


def test_resend_makes_a_study_or_all_dead_letters_due_again(root: Path) -> None:
    for arguments in (["a"], [keys(root)["a"], "--to", "pacs"], ["--dead"]):
        with open_store(root / "state" / "spool.sqlite3") as store:
            store.database.execute("UPDATE deliveries SET step = 'dead'")
        result = command(root, 9, "resend", *arguments)
        assert (result.exit_code, result.stdout) == (0, "due again: a version 1 to pacs\n")
        assert count(root, "deliveries", "sending") == 1
    assert command(root, 9, "resend", "--dead").stdout == "none\n"
    assert command(root, 9, "resend").exit_code == 2
    assert "no study has this key" in command(root, 9, "resend", "b").output


def test_who_resends_is_in_the_audit_trail(root: Path) -> None:
    """Also for dead letters; a command that finds nothing records nothing."""
    for arguments in (["a"], ["--dead"], ["b"]):
        with open_store(root / "state" / "spool.sqlite3") as store:
            store.database.execute("UPDATE deliveries SET step = 'dead'")
        command(root, 9, "resend", *arguments)
    with open_store(root / "state" / "spool.sqlite3") as store:
        store.trail.flush()
    records = [one for one in records_after(root / "state" / "trail", 0)
               if one.event == Event.RESENT]  # fmt: skip
    what = {"study_key": keys(root)["a"], "versions": [1], "targets": ["pacs"]}
    assert [dict(one.fields) for one in records] == [{**what, **Person.here().fields}] * 2


def test_without_targets_the_commands_say_so() -> None:
    for arguments in (["targets"], ["resend", "a"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1
        assert "no targets are set up" in result.output


def test_doctor_names_silent_targets_and_dead_letters(root: Path) -> None:
    with Pacs().running() as pacs:
        found = json.loads(command(root, pacs.port, "doctor", "--json").stdout)
        texts = [(one["level"], one["text"]) for one in found if one["what"] == "targets"]
        address = f"127.0.0.1:{pacs.port}"
        assert texts == [
            ("ok", f"pacs: {address} answers, encryption: none"),
            ("WRONG", "pacs: 1 dead letters: overread-edge targets says why"),
        ]
    found = json.loads(command(root, pacs.port, "doctor", "--json").stdout)
    texts = [(one["level"], one["text"]) for one in found if one["what"] == "targets"]
    assert texts[0] == ("WRONG", f"pacs: {address}: Connection refused")
