"""What an archive refuses, or does not take: it is named, and keeps nothing else back."""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from edge.audit import Event
from edge.dicom_out.deliver import MAX_ATTEMPTS
from edge.trail.records import records_after
from tests.dicom_peers import Pacs, StowService, stow_answer
from tests.edge.dicom_out import sites
from tests.edge.dicom_out.sites import CLASSES, EVERY_CLASS, deliveries, pacs_at, uids, web_at

# pynetdicom drops the socket of a connection that failed without closing it
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def test_a_refused_object_becomes_a_dead_letter_with_its_reason_and_others_pass(
    tmp_path: Path,
) -> None:
    with (
        Pacs(answer=lambda d: 0xA900 if str(d.SOPInstanceUID) in bad else 0x0000).running() as pacs,
        deliveries(tmp_path, pacs_at(pacs.port)) as site,
    ):
        bad = list[str]()
        first = site.report("a")
        bad += uids(first, 1)[1:]
        site.run()
        second = site.report("b")
        site.pass_time(3600.0)
        assert site.steps("pacs") == ["dead", "sent"]
        letter = site.of("pacs")[0]
        assert letter.attempts == MAX_ATTEMPTS
        assert letter.reason == "report.dcm: Data Set Does Not Match SOP Class (0xA900)"
        # what was accepted is not sent again
        assert pacs.received == [uids(first, 1)[0], *uids(second, 1)]
        bad.clear()
        site.pass_time(3600.0)
        assert site.steps("pacs") == ["dead", "sent"]
        site.exports.resend(first, (1,), ("pacs",))
        site.run()
        assert site.steps("pacs") == ["sent", "sent"]
        assert pacs.kept == [uids(first, 1)[0], *uids(second, 1), uids(first, 1)[1]]


SUBSETS = [some for n in range(1, len(EVERY_CLASS) + 1) for some in combinations(EVERY_CLASS, n)]


NOT_ACCEPTED = "the target does not accept objects of its class"


@pytest.mark.long
def test_an_archive_gets_the_classes_that_it_takes_whichever_they_are(
    tmp_path: Path, pacs: Pacs
) -> None:
    """All subsets, one after another at one archive: what it took before counts no more."""
    with deliveries(tmp_path, pacs_at(pacs.port)) as site:
        site.make = partial(sites.make_objects, classes=EVERY_CLASS)
        for number, taken in enumerate(SUBSETS):
            pacs.take(*(EVERY_CLASS[name] for name in taken))
            pacs.received.clear()
            keys = [site.report(f"{number}-{one}") for one in range(2)]
            classes = {name: EVERY_CLASS[name] for name in taken}
            wanted = sorted(uid for key in keys for uid in uids(key, 1, classes=classes))
            site.run()  # no study waits for what is refused of another
            assert sorted(pacs.received) == wanted
            site.pass_time(10.0)
            assert sorted(pacs.received) == wanted
            refused = sorted(EVERY_CLASS.keys() - taken)
            reason = "; ".join(f"{name}.dcm: {NOT_ACCEPTED}" for name in refused)
            ended = [(one.step.value, one.reason) for one in site.of("pacs")[-2:]]
            assert ended == [("sent", reason)] * 2
            shown = {one.sop_class for one in site.exports.not_taken("pacs")}
            assert shown == {EVERY_CLASS[name] for name in refused}
            assert site.exports.held() == set()  # retention goes on
            # the next archive is a new one
            site.store.database.execute("UPDATE deliveries SET reason = ''")
        assert len(SUBSETS) == 15
        assert pacs.associations <= 4 * len(SUBSETS)


def refuses(code: int, *names: str) -> Callable[[Dataset], int]:
    """Answers objects of these names with this status."""
    classes = [CLASSES[name] for name in names]
    return lambda dataset: code if dataset.SOPClassUID in classes else 0x0000


@pytest.mark.parametrize("how", ["no context", 0x0122, 0xA900])
def test_a_class_that_an_archive_does_not_take_is_noted_once_and_no_study_waits_for_it(
    tmp_path: Path, pacs: Pacs, how: str | int
) -> None:
    """It made a dead letter for each study once, and no report could be removed."""
    with deliveries(tmp_path, pacs_at(pacs.port)) as site:
        if isinstance(how, int):
            pacs.answer = refuses(how, "report")
        else:
            pacs.take(CLASSES["capture-overview"])
        keys = [site.report(f"{number:02d}") for number in range(10)]
        site.run()
        site.start()
        keys += [site.report(f"{number:02d}") for number in range(10, 40)]
        site.pass_time(3600.0)
        assert pacs.associations == 40
        assert site.steps("pacs") == ["sent"] * 40
        assert site.exports.held() == set()
        (noted,) = site.exports.not_taken("pacs")
        assert (noted.sop_class, noted.attempts) == (CLASSES["report"], 40)
        assert all(one.reason == f"report.dcm: {noted.reason}" for one in site.of("pacs"))
        assert pacs.received == [uids(key, 1)[0] for key in keys]
        # it changes its mind, and gets all that it lacks
        pacs.take(*CLASSES.values())
        pacs.answer = refuses(0)
        keys.append(site.report("e"))
        site.run()
        assert sorted(pacs.received) == sorted(uid for key in keys for uid in uids(key, 1))
        assert site.exports.not_taken("pacs") == []
        assert site.steps("pacs") == ["sent"] * 41
    trail = list(records_after(tmp_path / "state" / "trail", 0))
    assert all(one.fields["objects"] for one in trail if one.event == Event.DELIVERED)


def test_an_object_of_a_class_that_is_taken_has_all_its_attempts(
    tmp_path: Path, pacs: Pacs
) -> None:
    """Then it is the object that is refused, or that ends the association."""
    with deliveries(tmp_path, pacs_at(pacs.port)) as site:
        site.report("taken")
        site.run()
        for number, code in enumerate((0xA900, 0xA700, 0xC000)):
            pacs.answer = refuses(code, "report")
            site.report(str(number))
            site.run()
            assert site.steps("pacs")[-1] == "sending"
            site.pass_time(3600.0)
            assert site.of("pacs")[-1].attempts == MAX_ATTEMPTS
            assert site.steps("pacs")[-1] == "dead"


@pytest.mark.parametrize("code", [0x0111, 0xA700, 0xC000])
def test_an_archive_that_refuses_what_it_has_makes_no_dead_letter(
    tmp_path: Path, pacs: Pacs, code: int
) -> None:
    """After a resend, or with a database that was restored."""
    with (
        StowService().running() as web,
        deliveries(tmp_path, pacs_at(pacs.port), web_at(web.url)) as site,
    ):
        key = site.report("a")
        site.run()
        pacs.answer = lambda d: code if d.SOPInstanceUID in pacs.received else 0
        web.answer = lambda d: (
            stow_answer(d, "FailedSOPSequence", 409, code)
            if d.SOPInstanceUID in web.received
            else None
        )
        for target in ("pacs", "web"):
            site.exports.resend(key, (1,), (target,))
        site.pass_time(10.0)
        assert site.steps("pacs") == site.steps("web") == ["sent"]
        assert pacs.received == web.received == uids(key, 1)
        # what it refuses and does not have is a dead letter as ever
        pacs.answer, web.answer = (
            (lambda _: 0xC000),
            lambda d: stow_answer(d, "FailedSOPSequence", 409, 0xC000),
        )
        site.report("b")
        site.pass_time(3600.0)
        assert site.steps("pacs") == site.steps("web") == ["sent", "dead"]


def test_a_stop_after_a_known_refusal_leaves_the_rest_for_the_next_start(tmp_path: Path) -> None:
    def refuse_and_stop(_dataset: Dataset) -> int:
        site.stops = True
        return 0x0122

    with (
        Pacs(answer=refuse_and_stop).running() as pacs,
        deliveries(tmp_path, pacs_at(pacs.port)) as site,
    ):
        refused = dict.fromkeys(CLASSES.values(), "refused")
        site.exports.note_answers("pacs", refused)
        site.report("a")
        site.run()
        assert site.steps("pacs") == ["sending"]


@pytest.mark.parametrize("again", ["later", "resend", "restart"])
def test_an_archive_that_takes_no_class_is_asked_now_and_then(
    tmp_path: Path, pacs: Pacs, again: str
) -> None:
    """Every quarter of an hour at most, and at once after a resend or a restart; all waits."""
    with deliveries(tmp_path, pacs_at(pacs.port)) as site:
        pacs.take()
        first = site.report("a")
        site.pass_time(3600.0)
        assert site.exports.held() == {first}  # nothing of it has arrived
        site.report("b")
        site.run()
        asked = pacs.associations
        assert asked <= 5
        pacs.take(*CLASSES.values())
        site.report("c")
        site.run()
        assert (pacs.associations, site.steps("pacs")) == (asked, ["sending"] * 3)
        if again == "later":
            site.pass_time(901.0)
        elif again == "resend":
            site.exports.resend(first, (1,), ("pacs",))
        else:
            site.start()
        site.run()
        assert site.steps("pacs") == ["sent"] * 3


def test_an_archive_that_aborts_with_one_class_gets_the_others(tmp_path: Path) -> None:
    """Also those that came after it, and of each later study before it."""
    picture = CLASSES["capture-overview"]
    with (
        Pacs(aborts=lambda d: bool(d.SOPClassUID == picture)).running() as pacs,
        deliveries(tmp_path, pacs_at(pacs.port)) as site,
    ):
        keys = [site.report(name) for name in "ab"]
        site.pass_time(10.0)
        assert pacs.received == [uids(key, 1)[1] for key in keys]
        site.pass_time(3600.0)
        assert site.steps("pacs") == ["dead", "dead"]
        assert all("aborted" in one.reason for one in site.of("pacs"))
        assert site.exports.not_taken("pacs") == []  # it may have been the object's fault


def test_a_class_that_a_target_shall_not_get_any_more_is_not_named(tmp_path: Path) -> None:
    with deliveries(tmp_path, pacs_at(104, objects=("sr",))) as site:
        site.exports.note_answers("pacs", dict.fromkeys(EVERY_CLASS.values(), "refused"))
        site.start()
        left = [one.sop_class for one in site.exports.not_taken("pacs")]
        assert left == [EVERY_CLASS["sr"]]
