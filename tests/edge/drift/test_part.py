"""Each report is noted once, again when it changes, and without its study's data."""

from dataclasses import replace
from pathlib import Path

import pytest

from edge.drift.compare import NAMES
from edge.drift.observe import Observation, bin_of, observations, observe, put
from edge.drift.part import NOTHING, DriftPart
from edge.findings import Decision, Route, SecondReading
from edge.folders import DATABASE
from edge.report.model import Status
from edge.store.record import Step
from edge.store.studies import StudyStore
from evaluation.world import settings_in
from tests.edge.builders import SilentCloud, Site, candidate
from tests.edge.report.reports import FINDING, REPORT
from tests.edge.running_agent import agent_of


def observed(store: StudyStore, model: str) -> list[Observation]:
    return observations(store.database, model, 1000)


def test_an_observation_counts_what_the_second_reading_changed() -> None:
    """Of four uncertain candidates one was raised, one lowered, and two stayed as they were."""
    raised, kept = (replace(FINDING, edge_score=score) for score in (0.3, 0.8))
    unsure = [Decision(candidate(score), Route.ESCALATE, "") for score in (0.3, 0.8, 0.7, 0.2)]
    report = replace(
        REPORT,
        decisions=(*REPORT.decisions, *unsure),
        findings=(raised, kept),
        models={"edge": "screening-int8 1 (openvino)", "cloud": "hybrid 1"},
    )
    seen = observe("k", report, finding=0.5)
    assert (seen.uncertain, seen.kept, seen.read_again, seen.changed) == (4, 4, 4, 2)
    assert (seen.findings, seen.model, seen.provisional) == (2, "screening-int8 1", False)
    assert sum(seen.scores) == 5
    assert seen.scores[bin_of(0.8)] == 1
    incomplete = replace(report, second_reading=SecondReading.PARTIAL, status=Status.PROVISIONAL)
    seen = observe("k", incomplete, finding=0.5)
    assert (seen.uncertain, seen.read_again, seen.changed, seen.provisional) == (4, 0, 0, True)
    ignored = replace(report, status=Status.IGNORED)
    assert observe("k", ignored, finding=0.5) == Observation("k")


@pytest.fixture
def part(site: Site, tmp_path: Path) -> DriftPart:
    return DriftPart(agent_of(settings_in(tmp_path), store=site.store))


def work(part: DriftPart) -> int:
    """How many observations were noted until there is nothing to note."""
    return sum(1 for _ in iter(lambda: part.work(False), False))


def test_a_report_is_noted_once_and_again_when_it_is_final(
    site: Site, part: DriftPart, cloud: SilentCloud
) -> None:
    cloud.answers.append(2)
    record = site.study("a")
    assert work(part) == 1
    (first,) = observed(site.store, "fixed 1")
    assert first.provisional
    assert first.read_again == 0
    assert work(part) == 0
    site.turns()  # the verdicts come, and amend the report
    part.amended(REPORT)
    assert work(part) == 1
    (second,) = observed(site.store, "fixed 1")
    assert (second.study_key, second.provisional, second.read_again) == (record.id, False, 2)
    part.amended(REPORT)
    assert work(part) == 0


def test_what_a_lost_database_left_is_noted_at_the_start(site: Site, part: DriftPart) -> None:
    """But for what was refused."""
    for name in ("a", "b"):
        site.study(name)
    site.store.adopt("0" * 32, Step.QUARANTINED, ("a",), iter(["c"]), {})
    site.store.database.execute("DELETE FROM drift")
    assert work(part) == 2
    assert [one.model for one in observed(site.store, "fixed 1")] == ["fixed 1"] * 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"study_key": "other"}', None])
def test_a_damaged_report_is_noted_as_nothing_and_only_once(
    site: Site, part: DriftPart, damage: str | None
) -> None:
    site.study("a")
    report = site.places.outbox / "a" / "report.json"
    if damage is None:
        report.unlink()
    else:
        report.write_text(damage)
    assert work(part) == 1
    assert observed(site.store, "fixed 1") == []
    part.amended(REPORT)
    assert work(part) == 0


def test_nothing_of_a_patient_is_noted_and_the_row_outlives_the_study(
    site: Site, part: DriftPart
) -> None:
    record = site.study("Doe Jane")
    work(part)
    site.store.forget(record.id)
    (row,) = site.store.database.execute("SELECT * FROM drift").fetchall()
    assert row["model"] == "fixed 1"
    assert "Doe" not in repr(tuple(row))
    assert "P1" not in repr(tuple(row))


def test_the_monitor_compares_the_studies_of_the_last_model(site: Site, tmp_path: Path) -> None:
    """Those of an older model are not its baseline; the metric has the level of each measure."""
    path = tmp_path / "state" / DATABASE
    path.symlink_to(tmp_path / "state" / "s.db")
    agent = agent_of(settings_in(tmp_path))
    monitor = DriftPart(agent)
    assert monitor.current() is NOTHING
    for number in range(350):
        model = "m 1" if number < 100 else "m 2"
        seen = Observation(f"{number}", model, uncertain=3 if number < 250 else 9, findings=1)
        put(site.store.database, seen, "")
    drift = monitor.current()
    assert drift.model == "m 2"
    assert [one.study_key for one in drift.baseline[:2]] == ["100", "101"]
    assert [one.study_key for one in drift.recent] == [str(n) for n in range(250, 350)]
    level = agent.telemetry.registry.get_sample_value
    levels = [level("overread_edge_drift_level", {"measure": name}) for name in NAMES]
    assert levels == [0, 2, *[0] * 7]
    assert monitor.current() is drift
    path.unlink()
    assert monitor.level("uncertain") == 0
