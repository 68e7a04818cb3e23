"""Findings of the edge without size, type and outline: they are pending too, and reports say so."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.amend.amender import DAY_S, QUIET_S
from edge.escalation.client import NoSecondReader
from edge.escalation.rois import EscalationResult
from edge.report.evidence import OUTLINES, read_outlines
from protos.messages import Priority, Roi
from tests.edge.builders import SilentCloud, Site, findings, site_at
from tests.edge.running_agent import sql

BALL = np.linalg.norm(np.indices((48, 48, 48)) - 24.0, axis=0) <= 5.0
TO_COME = "size, type and outline of 1 finding are still to come"
UNREAD = "0 of 2 uncertain candidates were read again"
READ = "2 of 2 uncertain candidates were read again"
LATER = "the report will be amended when the second reading comes"
OUT_OF_REACH = "Unreachable: nobody listens"


class Measuring(SilentCloud):
    """It gives type and outline with each verdict."""

    def read_rois(self, rois: Sequence[Roi], *rest: Any, **more: Any) -> EscalationResult:
        """Those of one nodule of 10 mm in all regions."""
        given = super().read_rois(rois, *rest, **more)
        verdicts = {i: replace(one, texture="solid") for i, one in given.verdicts.items()}
        return replace(given, verdicts=verdicts, masks=dict.fromkeys(verdicts, BALL))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_at(tmp_path, Measuring()) as site:
        yield site


def said(report: dict[str, Any]) -> tuple[str, str, str]:
    return report["status"], report["second_reading"], report["second_reading_reason"]


def test_after_an_outage_the_surest_finding_gets_its_size_type_and_outline(site: Site) -> None:
    site.study("a", characterize=True, pictures=True)
    out, first = site.places.outbox / "a", site.report("a")
    reason = f"{UNREAD}: {OUT_OF_REACH}; {TO_COME}; {LATER}"
    assert said(first) == ("provisional", "missing", reason)
    assert TO_COME in (out / "report.html").read_text()
    site.cloud.answers = [2]  # the uncertain ones come first, as they change decisions
    site.turns()
    site.cloud.available = False
    site.turns(QUIET_S)
    second = site.report("a")
    assert said(second) == ("provisional", "partial", f"{READ}; {TO_COME}: {OUT_OF_REACH}; {LATER}")
    assert TO_COME in (out / "report.html").read_text()
    assert second["guarantee"]["given"]
    site.cloud.available, site.cloud.answers = True, [1]
    site.turns()
    last = site.report("a")
    assert said(last) == ("final", "complete", READ)
    assert [sent for _, sent in site.cloud.asked] == [(1, 2, 0), (0,), (0,)]
    (sure,) = [one for one in last["findings"] if one["number"] == 1]
    assert (sure["verdict"]["texture"], sure["diameter_mm"]) == ("solid", pytest.approx(10, 0.05))
    assert sure["volume_mm3"] == BALL.sum()
    assert sorted(read_outlines((out / OUTLINES).read_bytes())) == [1, 2, 3]
    # the pictures of version 1 have none; finding 3 was drawn from its ROI
    assert (out / "report.html").read_text().count("outline by the cloud") == 1
    assert "diameter from 6.0 to 9.9 mm" in last["changes"][-1]["text"]


def test_a_characterization_within_the_quiet_time_makes_no_version_of_its_own(site: Site) -> None:
    site.study("a", characterize=True)
    site.cloud.answers = [2, 0]
    site.turns()
    site.cloud.answers = [1]
    site.turns(QUIET_S - 1)
    assert (site.report("a")["version"], site.report("a")["status"]) == (2, "final")


def test_sure_findings_alone_are_given_up_in_a_version_that_lacks_them(site: Site) -> None:
    site.study("a", 0.97, 0.96, 0.95, 0.05, characterize=True)
    three = "size, type and outline of 3 findings"
    nothing = "no candidate was uncertain"
    assert said(site.report("a")) == (
        "provisional", "missing", f"{nothing}; {three} are still to come: {OUT_OF_REACH}; {LATER}",
    )  # fmt: skip
    site.cloud.available = False
    site.turns(30 * DAY_S + 100)
    given_up = f"{three} are missing: no answer within 30 days"
    assert said(site.report("a")) == ("final", "missing", f"{nothing}; {given_up}")
    (change,) = site.report("a")["changes"]
    assert (change["kind"], change["text"]) == ("given up", given_up)
    assert site.report("a")["version"] == 2
    assert site.store.pending.keys() == set()


def test_what_is_given_up_names_both_kinds(site: Site) -> None:
    site.study("a", characterize=True)
    site.cloud.available = False
    site.turns(30 * DAY_S + 100)
    assert [change["text"] for change in site.report("a")["changes"]] == [
        "2 candidates were not read again: no answer within 30 days",
        "size, type and outline of 1 finding are missing: no answer within 30 days",
    ]


def test_for_lack_of_room_characterizations_are_given_up_first(site: Site, tmp_path: Path) -> None:
    site.cloud.available = False
    old = site.study("old").id
    site.store.pending.add_age(60.0)
    young = site.study("young", characterize=True).id
    # compressing makes no more room
    sql(tmp_path / "state" / "s.db", "UPDATE pending_rois SET compressed = 1")
    site.amender = site.start(max_bytes=site.store.pending.used_bytes() - 1)
    site.turns()
    assert not site.amender.over_limit
    assert site.report("old")["version"] == 1
    report, missing = site.report("young"), "size, type and outline of 1 finding are missing"
    assert said(report) == (
        "provisional", "missing", f"{UNREAD}: {OUT_OF_REACH}; {missing}; {LATER}"
    )  # fmt: skip
    (change,) = report["changes"]
    assert (change["version"], change["kind"]) == (2, "given up")
    assert change["text"] == f"{missing}: their ROIs are not stored"
    for key in (old, young):
        assert site.store.pending.open_rois(key) == (1, 2)
    # the last version still lacks it, and names it once
    site.cloud.available, site.cloud.answers = True, [2, 2]
    site.turns()
    last = site.report("young")
    assert said(last) == ("final", "partial", f"{READ}; {missing}")
    assert [change["kind"] for change in last["changes"]].count("given up") == 1


def test_a_characterization_that_an_earlier_version_did_not_store_is_named_as_missing(
    site: Site, tmp_path: Path
) -> None:
    site.study("a", characterize=True)
    sql(tmp_path / "state" / "s.db", "DELETE FROM pending_rois WHERE roi_id = 0")
    site.cloud.answers = [2]
    site.turns()
    missing = "size, type and outline of 1 finding are missing"
    assert said(site.report("a")) == ("final", "partial", f"{READ}; {missing}")
    assert site.report("a")["changes"][-1]["text"] == f"{missing}: their ROIs are not stored"


def test_an_uncertain_candidate_of_any_study_goes_before_a_characterization(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERREAD_EDGE_PRIORITY", "stat")
    a, b = (site.study(name, characterize=True).id for name in "ab")
    site.cloud.answers = [2, 3, 1]
    site.turns()
    assert site.cloud.asked == [(a, (1, 2)), (b, (1, 2, 0)), (a, (0,))]
    assert site.cloud.priorities == [Priority.STAT, Priority.STAT, Priority.ROUTINE]
    assert [site.report(name)["version"] for name in "ab"] == [2, 2]


@pytest.mark.parametrize("characterize", [False, True])
def test_a_site_that_gets_no_outline_says_so_and_waits_for_none(
    site: Site, *, characterize: bool
) -> None:
    """It has no cloud, or sends uncertain candidates only."""
    second = NoSecondReader() if characterize else None
    site.study("a", 0.95, 0.05, second=second, characterize=characterize)
    status, second_reading, reason = said(site.report("a"))
    assert (status, second_reading) == ("final", "off" if characterize else "complete")
    assert reason.endswith("; the edge alone gives no type and no outline")
    assert site.store.pending.keys() == set()
    assert findings(site.report("a")) == {1: 0.95}
