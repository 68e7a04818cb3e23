import json
import os
import re
import shutil
import socket
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from edge import assemble
from edge.cli.main import app
from edge.cli.output import ExitStatus
from edge.job import Job
from edge.report.folder import folder_of_its_own
from edge.settings.core import EdgeSettings
from imaging import read as reading
from imaging.errors import IncompleteSeries
from imaging.preprocess import Preprocessed
from imaging.read import read_study
from imaging.volume import Geometry, Study, StudyHeader, Volume
from process.text import printable
from tests.edge.builders import FixedScreener, box
from tests.edge.dicom_out.studies import write_study
from tests.edge.fake_cloud import FakeCloud
from tests.imaging.small_ct import SmallCt


class InThisProcess(AbstractContextManager["InThisProcess"]):
    """Reads where the test has put its own study in place."""

    def __init__(self, _limits: object) -> None:
        self.read = lambda path, series, *select: reading.read_study(path, series, *select)
        self.preprocess = lambda volume, path: assemble.preprocess(volume, path)

    def __exit__(self, *_: object) -> None:
        """There is no process to end."""


@pytest.fixture(autouse=True)
def fixed_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with a study and a network that are always the same."""

    def read(source: Path, series: str = "") -> Study:  # noqa: ARG001 - the shape of the real one
        if source.name == "short":
            raise IncompleteSeries("3 slices of 2 mm make 6 mm; send the whole series", source)
        text = (source / "uid").read_text() if (source / "uid").exists() else ""
        header = StudyHeader(study_uid=f"{text}.1" if text else "")
        # as of a volume file, whose name stands in for the UID of a series
        volume = Volume(np.zeros((2, 2, 2), np.int16), Geometry(), text or source.name)
        return Study(volume, source, header)

    def preprocess(_volume: Volume, _source: Path) -> Preprocessed:
        return box()

    def open_configured(settings: EdgeSettings) -> FixedScreener:
        engine = f"{settings.engine}, {settings.threads} threads"
        return FixedScreener((0.95, 0.7, 0.05), engine=engine)

    monkeypatch.setattr(assemble, "IsolatedReader", InThisProcess)
    monkeypatch.setattr(assemble, "open_configured", open_configured)
    monkeypatch.setattr(reading, "read_study", read)
    monkeypatch.setattr(assemble, "preprocess", preprocess)


@pytest.fixture
def study(tmp_path: Path) -> str:
    (tmp_path / "study").mkdir()
    return str(tmp_path / "study")


def screen(out: Path, *arguments: str, status: int | None = None) -> Result:
    result = CliRunner().invoke(app, ["screen", "--out", str(out), *arguments])
    assert status in (None, result.exit_code), result.output
    return result


def screen_by_default(path: str | Path, *arguments: str) -> str:
    """The folder of the report, by the last line."""
    result = CliRunner().invoke(app, ["screen", str(path), *arguments])
    assert not result.exception or isinstance(result.exception, SystemExit), result.output
    said = (result.stderr if "--json" in arguments else result.stdout).splitlines()[-1]
    found = re.fullmatch("report  report/(.+)/report.html", said)
    assert found, result.output
    return found[1]


def report_at(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "report.json").read_text())
    return values


def files_in(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_json_gives_every_finding(study: str, tmp_path: Path) -> None:
    with FakeCloud() as cloud:
        result = screen(tmp_path, study, "--cloud", cloud.address, "--json")
    printed = json.loads(result.stdout)
    assert (result.exit_code, printed["second_reading"]) == (0, "complete")
    first, second = printed["findings"]
    assert (first["route"], first["decided_by"], first["diameter_mm"]) == ("report", "edge", 9.0)
    assert first["verdict"]["probability"] == 0.99
    assert second["centre_mm"] == [1.0, 2.0, 3.0]
    assert (second["diameter_mm"], second["decided_by"]) == (9.0, "cloud")
    assert second["edge_score"] == 0.7
    assert second["reason"] == "the cloud raised 0.70 to 1.00, at or above the threshold 0.50"
    written = report_at(tmp_path)
    assert printed.keys() == written.keys()
    stages = [[entry["stage"] for entry in said["ledger"]] for said in (printed, written)]
    assert stages[0] == stages[1]
    assert stages[0][-2:] == ["draw", "report"]


def test_people_get_a_table_without_the_log(study: str, tmp_path: Path) -> None:
    result = screen(tmp_path, study, status=0)
    for said in ("of 3 candidates dismissed", "preprocess", "report.html", "Not a medical device"):
        # the table wraps where a path is long
        assert said.replace(" ", "") in "".join(result.stdout.split())
    assert "study reported" in result.stderr
    assert "study reported" not in result.stdout


def test_dead_cloud_has_a_status_of_its_own(study: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        result = screen(tmp_path, study, "--cloud", address, "--deadline", "3", "--json")
    printed = json.loads(result.stdout)
    assert (result.exit_code, printed["second_reading"]) == (3, "missing")
    assert printed["findings"][1]["decided_by"] == "edge alone"
    assert printed["second_reading_reason"] == (
        "0 of 1 uncertain candidates were read again: the cloud cannot be reached "
        "(no service listens at the address); no answer yet since this program started; "
        "size, type and outline of 1 finding are missing; "
        "this report will not be amended, read the study again for a second reading"
    )
    assert (tmp_path / "report.html").is_file()


def test_dicom_objects_are_written_beside_the_report(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = read_study(write_study(tmp_path / "series"))

    def read(source: Path, series: str = "") -> Study:  # noqa: ARG001 - the shape of the real one
        volume = Volume(np.zeros((2, 2, 2), np.int16), Geometry(), "1.2.3")
        return Study(volume, source, images.header, headers=images.headers)

    monkeypatch.setattr(reading, "read_study", read)
    result = screen(tmp_path / "out", study, "--dicom", "--json", status=0)
    assert json.loads(result.stdout)["findings"]
    objects = tmp_path / "out/dicom/v1"
    assert f"DICOM objects in {objects}" in result.stderr
    assert "no seg: no finding has an outline" in result.stderr
    assert {"sr.dcm", "report.dcm", "capture-overview.dcm"} <= {p.name for p in objects.iterdir()}


def test_a_study_that_is_no_dicom_has_no_objects_and_its_report(study: str, tmp_path: Path) -> None:
    result = screen(tmp_path / "out", study, "--dicom", status=0)
    assert "no DICOM objects: " in result.stderr
    assert (tmp_path / "out/report.json").is_file()


def test_refused_study_has_a_status_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    result = screen(tmp_path / "out", str(tmp_path / "short"))
    assert result.exit_code == ExitStatus.REFUSED == 4
    assert "IncompleteSeries" in result.stdout
    assert "send the whole series" in result.stdout
    assert report_at(tmp_path / "out")["status"] == "rejected"


def test_the_series_to_read_is_chosen_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "read_study", read_study)
    for number in (1, 2):
        numbered = {"SeriesNumber": number}
        ct = SmallCt(12, 2.5 * number, str(number), f"chest {number}", attributes=numbered)
        ct.write(tmp_path / f"study/{number}")
    read = {}
    for series in ("1", "2", "chest 2", "3"):
        result = screen(tmp_path / series, str(tmp_path / "study"), "--series", series)
        report = report_at(tmp_path / series)
        read[series] = (result.exit_code, report["series_uid"][-1:])
    assert read == {"1": (0, "1"), "2": (0, "2"), "chest 2": (0, "2"), "3": (4, "")}
    assert "SeriesNotFound" in result.stdout
    (tmp_path / "edge.toml").write_text("series = 2")
    screen(tmp_path / "out", str(tmp_path / "study"), "--config", str(tmp_path / "edge.toml"))
    report = report_at(tmp_path / "out")
    assert report["series_uid"] == "1.2.826.0.1.2"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--cloud", "nowhere"), 1, "BadSettings: "),
        (("--config", "absent.toml"), 1, "BadSettings: absent.toml"),
        (("--config", "bad.toml"), 1, "BadRules: "),
        # an address for documents (RFC 5737), where nothing answers
        (("--cloud", "192.0.2.1:50051"), 1, "192.0.2.1:50051 is another machine, and tls.ca is"),
        (("--ouput", "x"), ExitStatus.USAGE, "--ouput"),
    ],
)
def test_bad_settings_are_named_and_nothing_is_written(
    study: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, str],
    status: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rules.toml").write_text("[[rules]]\nname = 'a'\npriority = 'now'")
    Path("bad.toml").write_text("rules = 'rules.toml'")
    result = screen(tmp_path / "out", study, *arguments, status=status)
    assert not (tmp_path / "out").exists()
    assert says in result.stderr
    assert arguments[1] in result.stderr or arguments[1] in ("bad.toml", "x")


@pytest.mark.parametrize("slices", [12, 3])
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_no_escape_sequence_of_a_study_reaches_the_terminal(
    slices: int, more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of its headers nor of its names; a study of 3 slices is refused."""
    owned = "\x1b]0;owned\x07\x9b2J"
    monkeypatch.setattr(reading, "read_study", read_study)
    names = {"PatientName": owned, "PatientID": owned, "StudyDescription": owned}
    for number in (1, 2):
        ct = SmallCt(slices, 2.5 * number, str(number), owned, attributes=names)
        ct.write(tmp_path / f"study {owned}" / f"series {number} {owned}")
    result = screen(tmp_path / f"out {owned}", str(tmp_path / f"study {owned}"), *more)
    assert result.exit_code == (0 if slices == 12 else ExitStatus.REFUSED)
    assert "owned" in result.output
    for character in "\x1b\x07\x9b":
        assert character not in result.output


def test_a_missing_path_writes_nothing_and_leaves_the_last_report(
    study: str, tmp_path: Path
) -> None:
    screen(tmp_path / "out", study)
    before = files_in(tmp_path)
    for out in ("out", "new"):
        result = screen(tmp_path / out, f"{study}y")
        assert result.exit_code == ExitStatus.MISSING_PATH == 5
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"MissingPath: {study}y: No such file or directory: check the path")
    assert files_in(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_a_path_that_must_not_be_read_writes_nothing(study: str, tmp_path: Path) -> None:
    Path(study).chmod(0)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused = [
        ("loop", "Too many levels of symbolic links"),
        ("x" * 300, "File name too long"),
        ("study", "Permission denied"),
    ]
    user = os.geteuid()
    for name, why in refused:
        if user == 0:  # root may read everything
            os.seteuid(65534)
        try:
            result = screen(tmp_path / "out", str(tmp_path / name))
        finally:
            os.seteuid(user)
        assert result.exit_code == ExitStatus.MISSING_PATH
        assert why in result.stderr or user == 0
        assert not (tmp_path / "out").exists()


def test_another_study_s_report_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "uid").write_text(f"1.2.{folder.name}")
    screen(tmp_path / "out", str(one), status=0)
    before = files_in(tmp_path / "out")
    refused = screen(tmp_path / "out", str(two), status=ExitStatus.USAGE)
    assert f"holds the report of another study ({one}): if it can go, add --overwrite" in (
        refused.stderr
    )
    assert files_in(tmp_path / "out") == before
    screen(tmp_path / "out", str(two), "--overwrite", status=0)
    assert report_at(tmp_path / "out")["source"] == str(two)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (("one", "1.2.3"), ("copy", "1.2.3"), "same series"),
        (("bare", ""), ("bare", ""), "same source"),
        # a volume file states no UIDs: its path decides
        (("a/scan.nii", ""), ("b/scan.nii", ""), ""),
        (("ct", "1.2.3"), ("ct", "1.2.4"), ""),
    ],
    ids=["series", "source", "name", "folder"],
)
def test_a_report_is_replaced_without_overwrite_by_that_of_the_same_study_alone(
    first: tuple[str, str], second: tuple[str, str], says: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("three years of work")
    for (folder, uid), status in ((first, 0), (second, 0 if says else ExitStatus.USAGE)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "uid").write_text(uid)
        result = screen(tmp_path / "out", str(tmp_path / folder), status=status)
    assert says in result.stderr
    assert ("older report replaced" in result.stderr) is bool(says)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "three years of work"


def test_a_refused_study_replaces_no_other_report_and_still_says_why(
    study: str, tmp_path: Path
) -> None:
    screen(tmp_path / "out", study)
    before = files_in(tmp_path / "out")
    (tmp_path / "short").mkdir()
    result = screen(tmp_path / "out", str(tmp_path / "short"), status=ExitStatus.USAGE)
    assert "IncompleteSeries: " in result.stderr
    assert files_in(tmp_path / "out") == before


A, B = "1.2", "1.3"  # studies; a volume file states none


@pytest.mark.parametrize(
    ("read", "folders"),
    [
        ([("a/ct", A), ("b/ct", B), ("b/ct", B), ("a/ct", A)], ["ct", "ct-2", "ct-2", "ct"]),
        ([("ct", A), ("ct", B), ("ct", A)], ["ct", "ct-2", "ct"]),
        ([("ct", A), ("copy", A), ("copy", A), ("ct", A)], ["ct", "copy", "copy", "ct"]),
        ([("short", ""), ("ct", A), ("short", "")], ["short", "ct", "short"]),
        ([("a/x.nii.gz", ""), ("b/x.nii.gz", ""), ("b/x.nii.gz", "")], ["x", "x-2", "x-2"]),
        ([("x.nrrd", ""), ("x", A), ("x-2", B)], ["x", "x-2", "x-2-2"]),
        ([("a.zip", ""), ("b/", A), ("./b/../b/.", A)], ["a.zip", "b", "b"]),
        ([("mine", A), ("file", A), ("mine", A)], ["mine-2", "file-2", "mine-2"]),
        ([("empty", A), ("a b 漢 [x] %s", A)], ["empty", "a b 漢 [x] %s"]),
        ([("\x1b]0;x\x07", A), ("x" * 250, A)], [r"\x1b]0;x\x07", "x" * 200]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_each_study_has_a_folder_of_its_own_by_default(
    read: list[tuple[str, str]], folders: list[str], more: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Read again, it has the same; what is not of the program stays."""
    monkeypatch.chdir(tmp_path)
    for taken in ("mine/thesis.txt", "file"):
        (tmp_path / "report" / taken).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "report" / taken).write_text("three years of work")
    (tmp_path / "report/empty").mkdir()
    for (path, uid), folder in zip(read, folders, strict=True):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        (tmp_path / path / "uid").write_text(uid)
        assert screen_by_default(path, *more) == folder
        (written,) = (one for one in Path("report").iterdir() if printable(one.name) == folder)
        assert report_at(written)["source"] == str(Path(path).resolve())
        assert not [*written.glob(".*")]
    assert (tmp_path / "report/file").read_text() == "three years of work"
    assert os.listdir("report/mine") == ["thesis.txt"]


def test_the_folder_of_its_own_is_that_of_the_study_where_others_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --overwrite it is the one without a number, also where another study has it."""
    monkeypatch.chdir(tmp_path)
    for folder, uid in (("a", A), ("b", B)):
        (tmp_path / folder / "ct").mkdir(parents=True)
        (tmp_path / folder / "ct/uid").write_text(uid)
        screen_by_default(f"{folder}/ct")
    shutil.rmtree("report/ct")
    assert screen_by_default("b/ct") == "ct-2"
    assert screen_by_default("a/ct") == "ct"
    (tmp_path / "b/ct/uid").write_text("1.4")
    assert screen_by_default("b/ct", "--overwrite") == "ct"
    assert sorted(os.listdir("report")) == ["ct", "ct-2"]


def test_two_that_read_at_the_same_time_take_two_folders_and_a_failure_leaves_none(
    tmp_path: Path,
) -> None:
    jobs = [Job(tmp_path / one / "ct", tmp_path) for one in "ab"]
    with ExitStack() as both:
        reading = [
            (both.enter_context(folder_of_its_own(job.source, overwrite=False)), job)
            for job in jobs
        ]
        for _ in range(2):  # a study that fails is admitted again, to be refused
            assert [admit(job, None).out.name for admit, job in reading] == ["ct", "ct-2"]
    assert os.listdir(tmp_path) == []


def test_a_study_that_holds_the_folder_of_reports_needs_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["screen", "."])
    assert result.exit_code == ExitStatus.USAGE
    assert "choose a folder outside it with --out" in result.stderr
    assert os.listdir(tmp_path) == []


NO_REPORT = "but no report.json of Overread"


@pytest.mark.parametrize(
    ("out", "file", "advice"),
    [
        ("file", "file", "file is a file"),
        ("file/below", "file", "file is a file"),
        *((out, "", "choose a folder outside it")
          for out in ("study", "study/report", "link", "link/report")),
        ("out", "out/report.json", "cannot be used: report.json"),
        ("sales", "sales/report.json", "cannot be used: report.json"),
        *(("out", f"out/{name}", NO_REPORT)
          for name in ("report.html", "overview.jpg", "finding_01.jpg", "outlines.npz")),
        # the agent may still amend the report in it
        ("out", "out/.study-key-1", "belongs to the agent"),
    ],
)  # fmt: skip
def test_files_that_are_not_ours_are_never_cleared(
    study: str, tmp_path: Path, out: str, file: str, advice: str
) -> None:
    (tmp_path / "link").symlink_to(study)
    if file:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text('{"title": "sales"}' if out == "sales" else "[1")
        (tmp_path / file).with_name("thesis.txt").write_text("three years of work")
    before = files_in(tmp_path)
    for options in ((),) if advice == NO_REPORT else ((), ("--overwrite",)):
        result = screen(tmp_path / out, study, *options, status=ExitStatus.USAGE)
        (line,) = result.stderr.splitlines()
        assert advice in line
        assert files_in(tmp_path) == before
    assert os.listdir(study) == []


def test_what_is_sent_in_the_clear_is_told(study: str, tmp_path: Path) -> None:
    more = ("--cloud", "192.0.2.1:50051", "--insecure", "--deadline", "2.2")
    sent = screen(tmp_path / "out", study, *more, status=ExitStatus.NO_SECOND_READING)
    assert "ROIs are sent unencrypted: set cloud.tls.ca" in sent.stderr


RULES = """
[[rules]]
name = "scouts"
description = "*scout*"
action = "ignore"

[[rules]]
name = "lung screening"
screening = true
"""


@pytest.fixture
def by_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for studies that are read from their files, by the rules of the settings."""
    monkeypatch.setattr(reading, "read_study", read_study)
    (tmp_path / "rules.toml").write_text(RULES)
    monkeypatch.setenv("OVERREAD_EDGE_RULES", str(tmp_path / "rules.toml"))
    return tmp_path / "study"


def test_a_study_that_rules_ignore_has_a_status_of_its_own(by_rules: Path, tmp_path: Path) -> None:
    SmallCt(12, description="Scout").write(by_rules)
    result = screen(tmp_path / "out", str(by_rules))
    assert result.exit_code == ExitStatus.IGNORED == 6
    assert "Ignored by the rule 'scouts'" in result.stdout
    written = report_at(tmp_path / "out")
    assert (written["status"], written["rule"]["name"]) == ("ignored", "scouts")


def test_the_rule_of_a_study_is_in_its_report_also_where_it_is_refused(
    by_rules: Path, tmp_path: Path
) -> None:
    SmallCt(12).write(by_rules)
    read = json.loads(screen(tmp_path / "out", str(by_rules), "--json").stdout)
    assert read["rule"]["name"] == "lung screening"
    # nothing was read again, so that the types are unknown
    lung_rads = read["lung_rads"]
    assert (lung_rads["category"], lung_rads["least"], lung_rads["most"]) == (None, "2", "4A")
    for file in sorted(by_rules.iterdir())[3:]:
        file.unlink()
    refused = json.loads(screen(tmp_path / "refused", str(by_rules), "--json").stdout)
    assert refused["rejection"]["kind"] == "IncompleteSeries"
    assert refused["rule"]["name"] == "lung screening"
    assert refused["lung_rads"]["category"] == "0"
