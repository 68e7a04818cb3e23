"""A model in shadow beside the active one, in a real agent with a real cloud."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.assemble import open_pipeline
from edge.audit import Event
from edge.job import Job
from edge.models.live import LOOK_S, LiveModels
from edge.models.store import SHIPPED, Choice, models_state, promote, roll_back
from edge.pipeline import Pipeline, StudyResult, read_and_report
from edge.store.pending import PersistPending
from imaging.dicom.writer import write_series
from imaging.phantom.phantom import PhantomSpec, make_phantom
from models.runtime.errors import ModelFailed
from models.runtime.screener import Screener
from tests.edge.builders import HandClock, changed
from tests.edge.models.signed import SMALL, Edge, Signed, edge, offering
from tests.edge.running_agent import running, wait_until

SPEC = PhantomSpec(seed=3, spacing_mm=(3.0, 1.25, 1.25), size_mm=(210.0, 340.0, 340.0),
                   nodule_count=2, diameter_mm=(12.0, 20.0))  # fmt: skip
READ = {"deadline_s": 120.0, "reserve_s": 1.0, "poll_s": 0.05}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom as a DICOM folder."""
    phantom = make_phantom(SPEC)
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
    monkeypatch.setattr("edge.models.agreement.MOST_TIME", 1000.0)  # of one study, the first
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


@pytest.fixture
def live(site: Edge, clock: HandClock) -> Iterator[tuple[Edge, LiveModels]]:
    """The models of an agent that has the small network in shadow; nothing is in its inbox."""
    site = Edge(site.root, changed(site.settings, cloud__address="off", **READ))
    live = LiveModels(site.site, clock)
    with open_pipeline(site.settings, screening=live.open_active) as pipeline:
        live.attach(pipeline)
        yield site, live


def read(live: LiveModels, study: Path, out: Path) -> Any:
    """Read a study as the agent does."""

    def persisting(pipeline: Pipeline, job: Job, persist: PersistPending) -> StudyResult:
        return read_and_report(replace(pipeline, persist_pending=persist), job)

    return live.reading(persisting)(Job(study, out), lambda *_: None).report


def test_a_really_different_network_is_compared_and_becomes_the_one_that_reads(
    live: tuple[Edge, LiveModels], study: Path, tmp_path: Path, clock: HandClock
) -> None:
    site, models = live
    before = read(models, study, tmp_path / "one")
    assert models.run_once(False)
    (seen,) = site.compared()
    assert seen.findings == len(before.findings)
    assert seen.kept <= seen.findings
    assert seen.pairs > 0
    assert seen.logit_p95
    assert seen.logit_p95 >= (seen.logit_median or 0) > 0
    shadow = models.shadow_state()
    assert shadow is not None
    assert (shadow.name, shadow.agreement.studies) == (SMALL, 1)
    active = models.pipeline
    promote(site.site, user="anna", force=True)
    clock.sleep(LOOK_S)
    assert models.run_once(True)  # a study waits: the change does not wait for it to end
    after = read(models, study, tmp_path / "two")
    assert SMALL in after.models["edge"]
    assert models.active_model() == (SMALL, shadow.version)
    assert models.shadow_state() is None
    assert models.pipeline.reader.thresholds.finding != active.reader.thresholds.finding
    assert models.pipeline.provenance.guarantee != active.provenance.guarantee


def test_nothing_is_read_in_shadow_while_a_study_waits_or_arrives(
    live: tuple[Edge, LiveModels], study: Path, tmp_path: Path, clock: HandClock
) -> None:
    """And of several studies only the last one's lung box is kept."""
    site, models = live
    read(models, study, tmp_path / "one")
    read(models, study, tmp_path / "two")
    clock.sleep(LOOK_S)
    assert not models.run_once(True)
    (site.folders.inbox / "coming").mkdir()
    assert not models.run_once(False)
    assert site.compared() == []
    (site.folders.inbox / "coming").rmdir()
    assert models.run_once(False)
    assert not models.run_once(False)
    assert len(site.compared()) == 1


def test_a_model_that_fails_in_shadow_harms_nothing_and_is_refused_in_the_end(
    live: tuple[Edge, LiveModels], study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, models = live

    def fails(*_: object) -> None:
        raise ModelFailed("the engine gave up")

    for number in range(3):
        read(models, study, tmp_path / str(number))
        with monkeypatch.context() as patch:
            patch.setattr(Screener, "screen", fails)
            assert models.run_once(False)
    assert site.compared() == []
    record = site.trail()[-1]
    assert record.event == Event.MODEL_REFUSED
    assert "the engine gave up" in record.fields["reason"]
    assert site.choice.shadow is None


def test_a_file_that_was_damaged_since_is_never_read_with(
    live: tuple[Edge, LiveModels], study: Path, tmp_path: Path, clock: HandClock
) -> None:
    site, models = live
    version = str(site.choice.shadow)
    file = site.models / version / f"{SMALL}.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    read(models, study, tmp_path / "one")
    assert models.run_once(False)
    assert site.compared() == []
    with site.store() as store:  # without any check, as a database from elsewhere may say
        store.choose(Choice(version, SHIPPED), "anna")
    clock.sleep(LOOK_S)
    assert models.run_once(False)
    assert SMALL not in models.pipeline.provenance.edge_model
    assert site.choice.active == SHIPPED
    assert site.trail()[-1].event == Event.MODEL_REPLACED
