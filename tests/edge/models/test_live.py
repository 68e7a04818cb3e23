"""A model in shadow beside the active one, in a real agent with a real cloud."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from edge.assemble import open_pipeline
from edge.audit import Event
from edge.job import Job
from edge.models.live import LOOK_S
from edge.models.part import ModelsPart
from edge.models.store import SHIPPED, Choice, models_state, promote, roll_back
from imaging.dicom.writer import write_series
from imaging.phantom.phantom import PhantomSpec
from models.runtime.errors import ModelFailed
from models.runtime.screener import Screener
from tests.conftest import Draw
from tests.edge.builders import HandClock, changed
from tests.edge.models.signed import SMALL, Edge, Signed, edge, offering
from tests.edge.running_agent import agent_of, running, wait_until

SPEC = PhantomSpec(seed=3, spacing_mm=(3.0, 1.25, 1.25), size_mm=(210.0, 340.0, 340.0),
                   nodule_count=2, diameter_mm=(12.0, 20.0))  # fmt: skip
READ = {"deadline_s": 120.0, "reserve_s": 1.0, "poll_s": 0.05}


@pytest.fixture(scope="module")
def study(drawn: Draw, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom as a DICOM folder."""
    phantom = drawn(SPEC)
    folder = tmp_path_factory.mktemp("phantom") / "chest"
    write_series(phantom.volume, folder, seed=SPEC.seed)
    return folder


def report(site: Edge, study: Path, name: str) -> dict[str, Any]:
    """The report of a study that is put into the inbox."""
    copy = site.folders.inbox / f".{name}"
    copy.mkdir()
    for file in study.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / ".done").touch()
    copy.rename(site.folders.inbox / name)
    path = site.folders.outbox / name / "report.json"
    wait_until(path.is_file)
    return dict(json.loads(path.read_text()))


def report_compared(site: Edge, study: Path, name: str) -> dict[str, Any]:
    """The first report that is compared; the agent sees a complete model within a second."""
    for number in range(20):
        found = report(site, study, f"{name}-{number}")
        for _ in range(50):
            if site.compared():
                return found
            time.sleep(0.1)
    raise AssertionError("no study was ever compared")


def test_a_new_model_comes_is_tried_promoted_and_rolled_back_while_the_agent_works(
    hospital: Signed, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the shipped one with another threshold: it agrees in everything that it finds."""
    monkeypatch.setattr("edge.models.agreement.MAX_TIME", 1000.0)  # of one study, the first
    with offering(hospital) as cloud:
        given = {**READ, "models__fetch": True}
        site = edge(tmp_path, cloud.address, hospital.key, **given)
        with running(site.settings) as logs:

            def switched(times: int) -> bool:
                return sum(log["event"] == "model changed" for log in list(logs)) == times

            wait_until(lambda: models_state(site.site).shadow is not None)
            first = report_compared(site, study, "one")
            seen = site.compared()[0]
            version = promote(site.site, user="anna", force=True)
            wait_until(lambda: switched(1))
            second = report(site, study, "two")
            roll_back(site.site, user="anna")
            wait_until(lambda: switched(2))
            third = report(site, study, "three")
    assert len(first["findings"]) > 0
    assert (seen.findings, seen.kept, seen.added) == (len(first["findings"]),) * 2 + (0,)
    assert (seen.logit_median, seen.logit_p95) == (0.0, 0.0)
    assert seen.regions_before == seen.regions_after
    assert seen.after_s > 0
    centres = [[one["centre_mm"] for one in r["findings"]] for r in (first, second, third)]
    assert centres[0] == centres[1] == centres[2]
    events = [one.event for one in site.trail()]
    assert events[-2:] == [Event.MODEL_PROMOTED, Event.MODEL_ROLLED_BACK]
    assert Event.MODEL_FETCHED in events
    assert second["models"]["edge"].split()[1] == version
    assert first["models"]["edge"] == third["models"]["edge"]


@dataclass
class Live:
    """The models of an agent that has the small network in shadow; nothing is in its inbox."""

    site: Edge
    part: ModelsPart
    study: Path

    def read(self) -> Any:
        """The report of the study, read as the agent does."""
        job = Job(self.study, Path(mkdtemp(dir=self.site.root)))
        return self.part.live.read(job, lambda *_: None).report

    def shown(self, role: str) -> set[tuple[str, str]]:
        """Model and version that the metric has."""
        metrics = self.part.agent.telemetry.registry.collect()
        (info,) = [one for one in metrics if one.name == "overread_edge_model_info"]
        labels = [sample.labels for sample in info.samples]
        return {(one["model"], one["version"]) for one in labels if one["role"] == role}


@pytest.fixture
def live(site: Edge, study: Path, clock: HandClock) -> Iterator[Live]:
    site = Edge(site.root, changed(site.settings, cloud__address="off", **READ))
    live = Live(site, ModelsPart(agent_of(site.settings, clock=clock)), study)
    assert live.shown("active") == set()
    with open_pipeline(site.settings, screening=live.part.live.open_active) as pipeline:
        live.part.attach(pipeline)
        yield live


def test_a_really_different_network_is_compared_and_becomes_the_one_that_reads(
    live: Live, clock: HandClock
) -> None:
    """The metrics have the two of the moment, and no series of others."""
    before, active = live.read(), live.part.live.pipeline
    assert live.part.work(False)
    (seen,) = live.site.compared()
    assert seen.findings == len(before.findings)
    assert seen.kept <= seen.findings
    assert seen.pairs > 0
    assert seen.logit_p95
    assert seen.logit_p95 >= (seen.logit_median or 0) > 0
    version = str(live.site.choice.shadow)
    assert live.shown("active") == {(active.reader.screener.name, active.reader.screener.version)}
    assert live.shown("shadow") == {(SMALL, version)}
    promote(live.site.site, user="anna", force=True)
    clock.sleep(LOOK_S)
    assert live.part.work(True)  # a study waits: the change does not wait for it to end
    assert SMALL in live.read().models["edge"]
    assert (live.shown("active"), live.shown("shadow")) == ({(SMALL, version)}, set())
    now = live.part.live.pipeline
    assert now.reader.thresholds.finding != active.reader.thresholds.finding
    assert now.provenance.guarantee != active.provenance.guarantee


def test_nothing_is_read_in_shadow_while_a_study_waits_or_arrives(
    live: Live, clock: HandClock
) -> None:
    """And of several studies only the last one's lung box is kept."""
    live.read()
    live.read()
    clock.sleep(LOOK_S)
    assert not live.part.work(True)
    arriving = live.site.folders.inbox / "coming"
    arriving.mkdir()
    assert not live.part.work(False)
    assert live.site.compared() == []
    arriving.rmdir()
    assert live.part.work(False)
    assert not live.part.work(False)
    assert len(live.site.compared()) == 1


def test_a_model_that_fails_in_shadow_harms_nothing_and_is_refused_in_the_end(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ModelFailed("the engine gave up")

    for _ in range(3):
        live.read()
        with monkeypatch.context() as patch:
            patch.setattr(Screener, "screen", fails)
            assert live.part.work(False)
    assert live.site.compared() == []
    record = live.site.trail()[-1]
    assert record.event == Event.MODEL_REFUSED
    assert "the engine gave up" in record.fields["reason"]
    assert live.site.choice.shadow is None


def test_a_file_that_was_damaged_since_is_never_read_with(live: Live, clock: HandClock) -> None:
    version = str(live.site.choice.shadow)
    live.site.damage(version)
    live.read()
    assert live.part.work(False)
    assert live.site.compared() == []
    with live.site.store() as store:  # without any check, as a database from elsewhere may say
        store.choose(Choice(version, SHIPPED), "anna")
    clock.sleep(LOOK_S)
    assert live.part.work(False)
    assert SMALL not in live.part.live.pipeline.provenance.edge_model
    assert live.site.choice.active == SHIPPED
    assert live.site.trail()[-1].event == Event.MODEL_REPLACED
