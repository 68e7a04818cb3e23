"""Every target gets every object, whatever fails on the way, and none is given up silently."""

import sqlite3
import threading
from contextlib import ExitStack
from enum import Enum
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage
from structlog.testing import capture_logs

from edge.audit import Event
from edge.database import BUSY_S
from edge.dicom_out.deliver import MAX_ATTEMPTS, MAX_MAKING
from edge.dicom_out.exports import DeliveryStep, ExportStep
from edge.errors import NotDicom
from edge.report.evidence import objects_folder
from edge.trail.records import records_after
from evaluation.world import settings_in
from tests.dicom_peers import Pacs, StowService
from tests.edge.builders import put
from tests.edge.dicom_out import sites
from tests.edge.dicom_out.sites import NoObjects, deliveries, pacs_at, uids, web_at
from tests.edge.dicom_out.test_agent_delivers import count
from tests.edge.running_agent import Killed, quick_read, running, wait_until

# pynetdicom drops the socket of a connection that failed without closing it
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def away(pacs: Pacs) -> Pacs:
    """The same port, when nobody listens there."""
    with pacs.running():
        return pacs


def test_each_object_is_delivered_once_to_each_target(tmp_path: Path, pacs: Pacs) -> None:
    with (
        StowService().running() as web,
        deliveries(tmp_path, pacs_at(pacs.port), web_at(web.url)) as site,
    ):
        key = site.report("a")
        for _ in range(3):
            site.run()
            site.start()
        assert pacs.received == web.received == uids(key, 1)
        assert site.steps("pacs") == site.steps("web") == ["sent"]


def test_a_target_gets_the_kinds_that_it_shall_get(tmp_path: Path) -> None:
    with (
        StowService().running() as web,
        StowService().running() as pdf_alone,
        Pacs().running() as none,
        deliveries(
            tmp_path,
            web_at(web.url),
            web_at(pdf_alone.url, "pdf", objects=("pdf",)),
            pacs_at(none.port, "none", objects=("seg",)),
        ) as site,
    ):
        key = site.report("a")
        site.maker.run_once()
        site.run()
        assert [site.steps(name) for name in ("web", "pdf", "none")] == [["sent"]] * 3
        assert web.received == uids(key, 1)
        assert (pdf_alone.received, none.associations) == (uids(key, 1)[1:], 0)


def test_a_target_that_is_away_for_an_hour_gets_everything_in_order(tmp_path: Path) -> None:
    """It is asked ever more rarely, and no attempt counts against the deliveries."""
    pacs, other = away(Pacs()), Pacs()
    with (
        other.running(),
        deliveries(tmp_path, pacs_at(pacs.port), pacs_at(other.port, "other")) as site,
    ):
        keys = [site.report(name) for name in ("a", "b")]
        with capture_logs() as logs:
            site.pass_time(3600.0)
        assert other.received == [*uids(keys[0], 1), *uids(keys[1], 1)]
        failed = [one for one in logs if one["event"] == "target unreachable"]
        assert 10 <= len(failed) <= 16
        assert {(one.attempts, one.step) for one in site.of("pacs")} == {(0, DeliveryStep.SENDING)}
        assert site.of("pacs")[0].reason.endswith("Connection refused")
        with pacs.running():
            site.pass_time(901.0)
        assert pacs.received == [*uids(keys[0], 1), *uids(keys[1], 1)]
        assert site.steps("pacs") == ["sent", "sent"]


def test_versions_of_a_study_keep_their_order_at_each_target(tmp_path: Path) -> None:
    """The second waits for the first, and passes once the first is a dead letter."""
    bad = list[str]()
    with (
        Pacs(answer=lambda d: 0xC000 if str(d.SOPInstanceUID) in bad else 0x0000).running() as pacs,
        deliveries(tmp_path, pacs_at(pacs.port)) as site,
    ):
        key = site.report("a")
        bad += uids(key, 1)
        site.run()
        site.amend(key, 2)
        other = site.report("b")
        site.pass_time(60.0)
        assert pacs.received == uids(other, 1)
        site.pass_time(3600.0)
        assert pacs.received == [*uids(other, 1), *uids(key, 2)]
        assert site.steps("pacs") == ["dead", "sent", "sent"]
        bad.clear()
        site.exports.resend(key, (1, 2), ("pacs",))
        site.run()
        assert pacs.received[4:] == uids(key, 1, 2)


def test_a_report_of_which_no_objects_can_be_made_says_so(tmp_path: Path, pacs: Pacs) -> None:
    """A fault of the program is tried again; no other report is kept from its target.

    A version without one of its objects stays, with its study, until a person has sent it.
    """

    def odd(out: Path, version: int) -> list[Path]:
        match out.name:
            case "a":
                raise NotDicom("the study was a NIfTI file")
            case "b":
                raise RuntimeError("a fault of the program")
            case "c":
                raise NoObjects("sr cannot be made")
        return sites.make_objects(out, version)

    with deliveries(tmp_path, pacs_at(pacs.port)) as site:
        site.make = odd
        keys = [site.report(name) for name in "abcd"]
        with capture_logs() as logs:
            site.pass_time(60.0)
        assert pacs.received == uids(keys[3], 1)
        fault, lacks, no_objects = site.exports.unmade(every=True)
        assert no_objects.reason == "NotDicom: the study was a NIfTI file"
        assert f"has failed {MAX_MAKING} times" in fault.reason
        assert lacks.reason == "NoObjects: sr cannot be made"
        assert site.steps("pacs") == ["sent"]
        assert {one["study_key"] for one in logs if one["event"] == "delivered"} == {keys[3]}
        assert site.exports.held() == site.exports.held(studies=True) == {keys[1], keys[2]}
        site.make = sites.make_objects
        for key in keys[:3]:
            site.exports.resend(key, (1,), ("pacs",))
        site.run()
        assert pacs.received[2:] == [uid for key in keys[:3] for uid in uids(key, 1)]
        assert site.exports.held() == set()


def test_a_delivery_of_nothing_is_not_recorded_as_one(tmp_path: Path, pacs: Pacs) -> None:
    """Neither where a target shall get none of the objects, nor where somebody removed them."""
    with deliveries(tmp_path, pacs_at(pacs.port, objects=("seg",))) as site:
        site.report("a")
        with capture_logs() as logs:
            site.run()
        assert site.steps("pacs") == ["sent"]
        assert "delivered" not in {one["event"] for one in logs}
        site.store.trail.flush()
    trail = records_after(tmp_path / "state" / "trail", 0)
    assert Event.DELIVERED not in {one.event for one in trail}


@pytest.mark.long
def test_of_many_that_write_none_is_turned_away_and_nothing_is_sent_twice(tmp_path: Path) -> None:
    """22 targets, and a while in which another process holds the database."""
    pacs = [Pacs() for _ in range(22)]

    def hold(_dataset: Dataset) -> int:
        if not holder:
            path = tmp_path / "state" / "spool.sqlite3"
            any_thread = {"isolation_level": None, "check_same_thread": False}
            holder.append(sqlite3.connect(path, **any_thread))
            holder[0].execute("BEGIN IMMEDIATE")
            threading.Timer(4 * BUSY_S, holder[0].execute, ["ROLLBACK"]).start()
        return 0x0000

    holder = list[sqlite3.Connection]()
    with ExitStack() as stack:
        for one in pacs:
            stack.enter_context(one.running())
        pacs[7].answer = hold
        targets = [pacs_at(one.port, f"pacs{number}") for number, one in enumerate(pacs)]
        for name in "abc":
            put(tmp_path / "inbox", name)
        settings = settings_in(tmp_path, targets=tuple(targets))
        with running(settings, read=quick_read, make_objects=sites.make_objects):
            wait_until(lambda: all(len(one.received) >= 6 for one in pacs))
            wait_until(lambda: count(tmp_path, "deliveries", "sent") == 66)
        assert [len(one.received) for one in pacs] == [6] * 22
        holder[0].close()


def test_objects_that_somebody_removed_are_a_dead_letter(tmp_path: Path) -> None:
    pacs = away(Pacs())
    with deliveries(tmp_path, pacs_at(pacs.port)) as site:
        key = site.report("a")
        site.run()
        for file in objects_folder(site.outbox / "a", 1).iterdir():
            file.unlink()
        objects_folder(site.outbox / "a", 1).rmdir()
        site.pass_time(5.0)
        assert site.steps("pacs") == ["dead"]
        assert "not in the outbox any more" in site.of("pacs")[0].reason
        assert site.exports.held() == {key}


def test_a_stop_during_a_delivery_finishes_the_object_and_does_not_count(tmp_path: Path) -> None:
    def stop(_dataset: Dataset) -> int:
        site.stops = True
        return 0x0000

    with Pacs(answer=stop).running() as pacs, deliveries(tmp_path, pacs_at(pacs.port)) as site:
        key = site.report("a")
        for sent in (1, 2):
            site.stops = False
            site.run()
            assert pacs.received == uids(key, 1)[:sent]
        (delivery,) = site.of("pacs")
        assert delivery.attempts == 1


STEPS: list[Enum] = [*[*ExportStep][1:], *DeliveryStep]
"""MAKING is durable together with a step of the study, which test_agent_delivers kills at."""


@pytest.mark.parametrize("durable", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.value)
def test_killed_at_any_durable_step_nothing_is_lost(
    tmp_path: Path, step: Enum, durable: bool
) -> None:
    """What was on its way is sent again, under the same UIDs: the target has it once."""
    left = [(step, durable)]
    refuses = step in (DeliveryStep.SENDING, DeliveryStep.DEAD)

    def crash(now: Enum, is_durable: bool) -> None:
        if left and (now, is_durable) == left[0]:
            left.pop()
            raise Killed

    def answer(dataset: Dataset) -> int:
        return 0xC000 if refuses and dataset.SOPClassUID == EncapsulatedPDFStorage else 0x0000

    def no_headers(_out: Path, _version: int) -> list[Path]:
        raise NotDicom("a NIfTI file")

    def no_object(_out: Path, _version: int) -> list[Path]:
        raise NoObjects("sr cannot be made")

    with (
        Pacs(answer=answer).running() as pacs,
        deliveries(tmp_path, pacs_at(pacs.port), on_step=crash) as site,
    ):
        if step in (ExportStep.NONE, ExportStep.NOT_MADE):
            site.make = no_headers if step is ExportStep.NONE else no_object
        key = site.report("a")
        with pytest.raises(Killed):
            site.pass_time(3600.0)
        site.start()
        if step in (ExportStep.NONE, ExportStep.NOT_MADE):
            site.pass_time(60.0)
            assert [one.step for one in site.exports.of(key)] == [step]
            return
        site.pass_time(3600.0)
        assert site.steps("pacs") == ["dead" if refuses else "sent"]
        assert pacs.kept == (uids(key, 1)[:1] if refuses else uids(key, 1))
        if refuses:
            (letter,) = site.of("pacs")
            assert letter.attempts == MAX_ATTEMPTS
            assert "Cannot Understand" in letter.reason


def test_an_object_that_ends_the_process_each_time_becomes_a_dead_letter(
    tmp_path: Path, pacs: Pacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deadly(*_: object) -> None:
        raise Killed

    with deliveries(tmp_path, pacs_at(pacs.port)) as site:
        site.report("a")
        site.maker.run_once()
        for _ in range(MAX_ATTEMPTS):
            site.start()
            monkeypatch.setattr(site.senders["pacs"]._target, "send", deadly)
            with pytest.raises(Killed):
                site.run()
        site.run()
        (letter,) = site.of("pacs")
        assert (letter.step, letter.attempts) == (DeliveryStep.DEAD, MAX_ATTEMPTS)
        assert letter.reason == "the last attempt ended with the process"


def test_versions_that_an_older_database_does_not_know_are_sent(tmp_path: Path, pacs: Pacs) -> None:
    with deliveries(tmp_path, pacs_at(pacs.port)) as site:
        key = site.report("a")
        site.run()
        site.amend(key, 2)
        site.store.database.execute("DELETE FROM exports WHERE version = 2")
        site.start()
        site.run()
        assert pacs.received == uids(key, 1, 2)
