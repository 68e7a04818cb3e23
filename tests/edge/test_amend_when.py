"""When what is owed is asked for again, and for how long."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace

import pytest

from edge.amend import Amender
from edge.channel import open_channel
from edge.debt import OwedStep
from edge.escalate import Asking, Escalator
from edge.exchange import Escalated
from edge.link import Link
from edge.persistence import DAY_S
from edge.settings import load_settings
from protos.deadline import Deadline
from protos.errors import (
    DeadlineUnmeetable,
    Overloaded,
    OverreadError,
    TooLarge,
    VersionMismatch,
)
from protos.messages import Roi
from tests.edge.amending import UNHURRIED, Site
from tests.edge.cases import SHAPE
from tests.edge.fake_cloud import FakeCloud


def test_nobody_is_asked_while_the_link_is_down(site: Site) -> None:
    """A link that is known to be down costs no asking, and the debt stays."""
    record = site.study("a")
    site.cloud.available = False
    site.turns()
    assert site.cloud.asked == []
    assert site.spool.owed.get(record.id).step is OwedStep.OWED


def test_an_asking_in_vain_waits_longer_and_longer_but_at_most_five_minutes(site: Site) -> None:
    """The pauses double from the first; no attempt is forgotten by a new start."""
    record = site.study("a")
    pauses = []
    for _ in range(9):
        asked, waited = len(site.cloud.asked), 0.0
        while len(site.cloud.asked) == asked:
            site.turns()
            site.clock.sleep(1.0)
            waited += 1.0
        pauses.append(waited)
    assert pauses == [1.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0]
    assert site.spool.owed.get(record.id).attempts == 9
    site.amender = site.start()
    site.cloud.answers = [2]
    site.turns()
    assert site.report("a")["status"] == "final"


def test_a_link_that_is_down_is_tried_with_one_study_and_an_answer_frees_all(site: Site) -> None:
    """Askings in vain do not add up over studies; word of the link ends the pause."""
    for name in "ab":
        site.study(name)
    site.turns()
    site.turns()
    assert len(site.cloud.asked) == 1
    site.amender.heard()
    site.cloud.answers = [2, 2]
    site.turns()
    assert [site.report(name)["status"] for name in "ab"] == ["final", "final"]


def test_a_link_that_was_lost_and_is_found_makes_no_one_wait(site: Site) -> None:
    """However long the pause had grown: what is owed is asked for as soon as the cloud is there."""
    site.study("a")
    for _ in range(12):
        site.turns()
        site.clock.sleep(300.0)
    site.turns()
    asked = len(site.cloud.asked)
    site.cloud.available = False
    site.turns()
    site.cloud.available, site.cloud.answers = True, [2]
    site.turns()
    assert len(site.cloud.asked) == asked + 1
    assert site.report("a")["status"] == "final"


def test_a_study_that_the_cloud_refuses_waits_alone(site: Site) -> None:
    """The others are asked for meanwhile, and it stays owed."""
    keys = [site.study(name).id for name in "ab"]
    site.cloud.refuses, site.cloud.answers = {keys[0]}, [2]
    site.turns()
    assert [site.report(name)["version"] for name in "ab"] == [1, 2]
    assert site.spool.owed.get(keys[0]).attempts == 1


def test_one_damaged_region_sets_its_own_debt_aside(site: Site) -> None:
    """It ends no turn, neither while the link is down nor later, and the others are read again."""
    for name in "ab":
        site.study(name)
    key = site.report("a")["study_key"]
    with sqlite3.connect(site.places.state / "s.db") as database:
        damage = "UPDATE owed_regions SET region = x'00' WHERE study_key = ? AND roi_id = 2"
        database.execute(damage, (key,))
    database.close()
    site.cloud.available = False
    site.turns()
    site.cloud.available, site.cloud.answers = True, [2]
    site.turns()
    assert [site.report(name)["version"] for name in "ab"] == [1, 2]
    assert site.spool.owed.get(key).step is OwedStep.OWED


@pytest.mark.parametrize(
    "fault",
    [DeadlineUnmeetable("late"), TooLarge("big"), Overloaded("full"), VersionMismatch("old")],
    ids=lambda fault: fault.kind,
)
def test_a_stream_that_the_cloud_refuses_keeps_no_other_waiting(
    site: Site, fault: OverreadError
) -> None:
    """Whatever its reason: it was there, and the next study is asked for at once."""
    keys = [site.study(name).id for name in "ab"]
    attempts = 3 if isinstance(fault, Overloaded) else 1
    with (
        FakeCloud(faults=[fault] * attempts) as fake,
        open_channel(fake.address, load_settings()) as channel,
    ):
        second = Escalator(channel, Link(), Asking(SHAPE, reserve_s=1.0), sleep=lambda _s: None)
        site.amender = Amender(site.spool, site.places.outbox, second, UNHURRIED)
        while site.amender.turn():
            pass
    assert [header.study_key for header in fake.headers] == [keys[0]] * attempts + [keys[1]]
    assert [site.report(name)["version"] for name in "ab"] == [1, 2]


def test_a_link_that_was_broken_is_tried_with_one_region(site: Site) -> None:
    """The rest follows when it has answered."""
    key = site.study("a").id
    site.cloud.answers, site.cloud.probing = [1, 1], True
    site.amender.turn()
    site.cloud.probing = False
    site.turns()
    assert site.cloud.asked == [(key, (1,)), (key, (2,))]
    assert site.report("a")["status"] == "final"


def test_age_is_counted_through_starts(site: Site) -> None:
    """Ten lives of four days are forty days, whatever the wall clock says."""
    site.study("a")
    for _ in range(10):
        site.amender = site.start()
        site.clock.sleep(4 * DAY_S)
        site.turns()
    assert site.report("a")["changes"][0]["kind"] == "given up"


def test_an_asking_is_longer_the_more_in_a_row_were_in_vain_whatever_their_study(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow link many debts do not all fail at the shortest before one is given longer."""
    for name in "abcd":
        site.study(name)
    given_s: list[float] = []
    ask = site.cloud.ask

    def asked(rois: Sequence[Roi], deadline: Deadline, study_key: str) -> Escalated:
        given_s.append(deadline.remaining_s)
        site.cloud.answers = [2] if len(given_s) in (4, 5) else []
        return ask(rois, deadline, study_key)

    monkeypatch.setattr(site.cloud, "ask", asked)
    persistence = replace(UNHURRIED, asking_s=2.0)
    site.amender = Amender(
        site.spool,
        site.places.outbox,
        site.cloud,
        persistence,
        clock=site.clock,
        jitter=lambda _low, high: high,
    )
    for _ in range(5):
        site.turns()
        site.clock.sleep(300.0)
    assert len({key for key, _ in site.cloud.asked[:4]}) == 4
    assert given_s[:6] == [2.0, 4.0, 8.0, 16.0, 2.0, 2.0]
