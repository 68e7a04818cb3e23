"""Rules in the agent: ignored studies end without alarm, and stat studies are read first."""

import json
from pathlib import Path
from typing import Any

import pytest

from edge.escalation.client import SecondReader
from edge.job import Job
from edge.rules.rule import load_rules
from edge.rules.selection import selection
from imaging.read import read_study
from imaging.volume import Study
from tests.edge.builders import SilentCloud, report_in
from tests.edge.running_agent import Reader, statuses, work_off
from tests.imaging.small_ct import SmallCt

RULES = """
[[rules]]
name = "scouts"
description = "*scout*"
action = "ignore"

[[rules]]
name = "emergency"
calling_ae = "ER*"
priority = "stat"
screening = true
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    return file


def reader_by(rules: Path, second: SecondReader | None = None) -> Reader:
    """The pipeline behind the agent, which reads files as the rules say."""
    loaded = load_rules(rules)

    def read(path: Path) -> Study:
        return read_study(path, "", selection(loaded, path))

    return Reader(files=read, second=second, rules=loaded)


def send(root: Path, name: str, *, calling_ae: str = "CT_1", description: str = "chest") -> None:
    folder = root / "inbox" / name
    number = str(sum(map(ord, name)))
    own = {"StudyInstanceUID": f"1.2.826.2.{number}"}
    SmallCt(12, series=number, description=description, attributes=own).write(folder)
    (folder / ".received.json").write_text(json.dumps({"calling_ae": calling_ae}))
    (folder / ".done").touch()


def test_an_ignored_study_is_done_with_a_report_that_names_patient_and_rule(
    rules: Path, tmp_path: Path
) -> None:
    send(tmp_path, "a", description="Scout")
    work_off(tmp_path, reader_by(rules), settings={"rules": rules})
    ignored = report_in(tmp_path, "a")
    assert statuses(tmp_path) == {"a": "ignored"}
    assert ignored["rejection"] is None
    assert ignored["rule"]["name"] == "scouts"
    assert ignored["study"]["patient_id"] == "P1"
    assert ignored["other_series"] == ["'Scout' (CT, 12 images): ignored by the rule 'scouts'"]
    assert not list((tmp_path / "state" / "quarantine").iterdir())
    assert len(list((tmp_path / "state" / "done").glob("*/a/*.dcm"))) == 12
    page = (tmp_path / "outbox" / "a" / "report.html").read_text()
    assert "Ignored by the rule &#39;scouts&#39;." in page
    assert 'class="banner note"' in page
    assert 'class="banner bad"' not in page
    assert "found no nodule" not in page


def test_stat_studies_are_read_first_and_the_others_in_their_order(
    rules: Path, tmp_path: Path
) -> None:
    for name, calling_ae in (("a", "CT_1"), ("b", "ER_1"), ("c", "CT_1"), ("d", "ER_2")):
        send(tmp_path, name, calling_ae=calling_ae)
    reader = reader_by(rules)
    work_off(tmp_path, reader, settings={"rules": rules})
    assert reader.names == ["b", "d", "a", "c"]
    taken = report_in(tmp_path, "b")["rule"]
    assert taken == {"name": "emergency", "action": "read", "priority": "stat", "screening": True}
    assert report_in(tmp_path, "a")["rule"]["name"] == "default"


def test_the_cloud_is_told_the_priority_of_the_rule(rules: Path, tmp_path: Path) -> None:
    """Of a study as it is read; a retry follows the rule in its report, which was stored."""
    heard: list[object] = []

    class Listening(SilentCloud):
        def read(self, *said: object) -> Any:
            heard.append(said[-1])
            return super().read(*said)

    send(tmp_path, "b", calling_ae="ER_1")
    reader_by(rules, Listening())(Job(tmp_path / "inbox" / "b", tmp_path / "out"))
    assert [str(one) for one in heard] == ["Priority.STAT"]
