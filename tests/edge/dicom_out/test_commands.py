"""The commands ``targets`` and ``resend``, and what ``doctor`` says of targets."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import SegmentationStorage
from typer.testing import CliRunner, Result

from edge.audit import Event, Person
from edge.cli.main import app
from edge.dicom_out.exports import DeliveryStep, ExportStore
from edge.dicom_out.overview import NothingToSend
from edge.dicom_out.part import deliveries_panel
from edge.report.write import write_version
from edge.run import site_of
from edge.trail.records import records_after
from evaluation.world import settings_in
from tests.dicom_peers import Pacs
from tests.edge import running_agent
from tests.edge.builders import open_store, put
from tests.edge.dicom_out.sites import pacs_at, report_of
from tests.edge.dicom_out.test_agent_delivers import count, keys, work

# pynetdicom drops the socket of a connection that failed without closing it
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def command(root: Path, port: int, *arguments: str) -> Result:
    target = {"name": "pacs", "kind": "dicom", "called_ae": "PACS", "address": f"127.0.0.1:{port}"}
    lines = ["[[targets]]", *(f'{name} = "{value}"' for name, value in target.items())]
    return running_agent.command(root, *arguments, lines=lines)


def change(root: Path, what: str) -> None:
    with open_store(root / "state" / "spool.sqlite3", targets=["pacs"]) as store:
        store.database.execute(f"UPDATE {what}")


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two reports: the first is a dead letter, of the other no objects can be made."""
    root = tmp_path_factory.mktemp("worked")
    for name in "ab":
        put(root / "inbox", name)
    with Pacs().running() as pacs:
        work(root, pacs.port, sent=2)
    first, second = (keys(root)[name] for name in "ab")
    change(
        root, f"deliveries SET step = 'dead', reason = 'a [red] why' WHERE study_key = '{first}'"
    )
    change(root, f"exports SET step = 'none', reason = 'NIfTI' WHERE study_key = '{second}'")
    return root


@pytest.fixture
def root(worked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(worked, tmp_path / "root"))


def test_targets_shows_who_answers_and_dead_letters_with_their_reasons(root: Path) -> None:
    """And what waits since when, reports without objects, and targets that are gone."""
    with Pacs().running() as pacs:
        result = command(root, pacs.port, "targets", "--json")
        assert result.exit_code == 0
        found = json.loads(result.stdout)
        (target,) = found["targets"]
        assert (target["name"], target["problem"], target["waiting"]) == ("pacs", "", 0)
        (letter,) = target["dead"]
        assert (letter["report"], letter["reason"]) == ("a", "a [red] why")
        assert letter["study_key"] == keys(root)["a"]
        (unmade,) = found["without_objects"]
        assert (unmade["report"], unmade["reason"]) == ("b", "NIfTI")
        assert "a [red] why" in " ".join(command(root, pacs.port, "targets").stdout.split())
        change(root, "deliveries SET step = 'sending', target = 'gone'")
        _, gone = json.loads(command(root, pacs.port, "targets", "--json").stdout)["targets"]
        assert (gone["problem"], gone["waiting"]) == ("is not set up any more", 2)
        assert gone["oldest_s"] >= 0.0
    result = command(root, pacs.port, "targets", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["targets"][0]["problem"].endswith("Connection refused")


def test_a_class_that_a_target_refuses_is_in_targets_and_doctor(root: Path) -> None:
    with open_store(root / "state" / "spool.sqlite3", targets=["pacs"]) as store:
        exports = store.extension(ExportStore)
        exports.note_answers("pacs", {SegmentationStorage: "not accepted"})
    with Pacs().running() as pacs:
        (target,) = json.loads(command(root, pacs.port, "targets", "--json").stdout)["targets"]
        (refused,) = target["not_taken"]
        assert refused["name"] == "Segmentation Storage"
        assert (refused["reason"], refused["attempts"]) == ("not accepted", 1)
        assert "Storage" in command(root, pacs.port, "targets").stdout
        said = command(root, pacs.port, "doctor").stdout
        assert "does not take Segmentation Storage" in " ".join(said.split())


def test_resend_makes_a_study_or_all_dead_letters_due_again_and_the_trail_says_who(
    root: Path,
) -> None:
    """A command that finds nothing records nothing."""
    for arguments in (["a"], [keys(root)["a"], "--to", "pacs"], ["--dead"]):
        change(root, f"deliveries SET step = 'dead' WHERE study_key = '{keys(root)['a']}'")
        result = command(root, 9, "resend", *arguments)
        assert (result.exit_code, result.stdout) == (0, "due again: a version 1 to pacs\n")
        assert count(root, "deliveries", "sending") == 1
    assert command(root, 9, "resend", "--dead").stdout == "none\n"
    assert command(root, 9, "resend").exit_code == 2
    assert "c: no study has this key" in command(root, 9, "resend", "c").output
    assert "x: no such target" in command(root, 9, "resend", "a", "--to", "x").output
    with open_store(root / "state" / "spool.sqlite3") as store:
        store.trail.flush()
    trail = records_after(root / "state" / "trail", 0)
    resent = [dict(one.fields) for one in trail if one.event == Event.RESENT]
    what = {"study_key": keys(root)["a"], "versions": [1], "targets": ["pacs"]}
    assert resent == [{**what, **Person.here().fields}] * 3


def test_resend_sends_the_latest_version_alone_or_all_or_that_of_a_dead_letter(root: Path) -> None:
    key = keys(root)["a"]
    write_version(replace(report_of(key), version=2), {}, root / "outbox" / "a")
    for arguments, versions in ((["a"], "2"), (["a", "--all"], "1, 2"), (["--dead"], "1")):
        change(root, f"deliveries SET step = 'dead' WHERE study_key = '{key}' AND version = 1")
        said = command(root, 9, "resend", *arguments).stdout
        assert said == f"due again: a version {versions} to pacs\n"
    site = site_of(settings_in(root, targets=(pacs_at(9),)))
    resend_button = deliveries_panel(site).actions["resend"].run
    resend_button({"study": key, "target": "pacs", "version": "1"}, Person("Ann"))
    with open_store(root / "state" / "spool.sqlite3", targets=["pacs"]) as store:
        deliveries = store.extension(ExportStore).deliveries(DeliveryStep.SENDING)
        assert [(one.version, one.resends) for one in deliveries] == [(1, 3), (2, 2)]
    with pytest.raises(NothingToSend, match=r"\(x\)"):
        resend_button({"study": key, "target": "pacs", "version": "x"}, Person("Ann"))


def test_without_targets_the_commands_say_so() -> None:
    for arguments in (["targets"], ["resend", "a"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1
        assert "no targets are set up" in result.output


def test_doctor_names_silent_targets_and_dead_letters(root: Path) -> None:
    def said() -> list[Any]:
        found = json.loads(command(root, pacs.port, "doctor", "--json").stdout)
        return [(one["level"], one["text"]) for one in found if one["what"] == "targets"]

    cannot = "of them cannot be made: overread-edge targets says why"
    with Pacs().running() as pacs:
        address = f"127.0.0.1:{pacs.port}"
        assert said() == [
            ("ok", f"pacs: {address} answers, encryption: none"),
            ("WRONG", "pacs: 1 dead letters: overread-edge targets says why"),
            ("note", f"1 reports have no objects, 0 {cannot}"),
        ]
        change(root, "exports SET step = 'not made' WHERE step = 'none'")
        assert said()[2] == ("WRONG", f"1 reports have no objects, 1 {cannot}")
        page = deliveries_panel(site_of(settings_in(root, targets=(pacs_at(pacs.port),))))
        assert [one["letter"].reason for one in page.values()["dead"]] == ["NIfTI", "a [red] why"]
        said_again = command(root, pacs.port, "resend", "--dead").stdout
        assert said_again.splitlines() == [
            "due again: a version 1 to pacs",
            "due again: b version 1 to pacs",
        ]
    assert said()[0] == ("WRONG", f"pacs: {address}: Connection refused")
