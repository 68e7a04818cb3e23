"""From a scanner to two archives: the agent is killed, its disk filled, an archive away."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from edge.atomic_files import sync_folder, write_atomically
from edge.dicom_in.steps import ReceiveStep
from evaluation.recovery import nothing_lost
from evaluation.recovery.moments import (
    ACKNOWLEDGED,
    AT_TARGET,
    NAMES,
    STEPS,
    Order,
    Trigger,
    ends_durable,
)
from evaluation.recovery.nothing_lost import AWAY, Site, measure, table
from evaluation.recovery.nothing_lost_check import Wrong, check

# pynetdicom drops the socket of a connection that failed without closing it
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

FEW = ("instance stored in its series", ACKNOWLEDGED, AT_TARGET)


def test_every_step_from_association_to_archive_has_a_name() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 12
    assert set(ReceiveStep) <= set(STEPS.values())


def test_a_trigger_is_met_once_and_after_those_that_it_skips() -> None:
    trigger = Trigger()
    assert not trigger.met(NAMES[0], False)
    trigger.arm(NAMES[0], True, skip=1)
    assert not trigger.met(NAMES[0], False)
    assert not trigger.met(NAMES[0], True)
    assert trigger.armed
    assert trigger.met(NAMES[0], True)
    assert not trigger.armed
    assert not trigger.met(NAMES[0], True)


@pytest.mark.parametrize(
    ("seen", "durable"),
    [
        (["storing", "folder", "stored"], True),
        (["storing", "stored"], False),
        (["folder", "storing", "stored"], False),
        (["storing", "folder"], False),
        ([], False),
    ],
)
def test_an_instance_is_durable_when_its_folder_is_synchronised(
    seen: list[str], durable: bool
) -> None:
    assert ends_durable(seen) is durable


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site after three kills, one of them from outside."""
    with Site(tmp_path_factory.mktemp("nothing lost") / "site", 1) as opened:
        for name in FEW:
            opened.kill_at(name, True)
    return opened


def test_nothing_is_lost_by_kills(site: Site) -> None:
    wrong = site.wrong()
    assert not any([*wrong.lost.values(), *wrong.doubled.values(), wrong.left]), wrong
    assert wrong.amendments == wrong.provisional == len(site.studies) == 3
    assert {len(one.acknowledged) for one in site.studies} == {nothing_lost.IMAGES}
    assert any(one.associations > 1 for one in site.studies)
    counts = site.order.counts
    assert counts["checked"] >= 3 * nothing_lost.IMAGES - 1
    assert counts["wrong"] == 0


def damaged(site: Site, root: Path, damage: Callable[[Path], None]) -> Wrong:
    shutil.copytree(site.root, root, symlinks=True)
    damage(root)
    sent = {one.study_uid: one.acknowledged for one in site.studies}
    return check(root, sent, {"archive": site.archive.kept, "web": site.web.kept})


def lose_image(root: Path) -> None:
    next((root / "state" / "done").rglob("*.dcm")).unlink()


def double_report(root: Path) -> None:
    report = next((root / "outbox").iterdir())
    shutil.copytree(report, report.with_name(f"{report.name}-2"))


def lose_version(root: Path) -> None:
    next((root / "outbox").glob("*/report.v1.json")).unlink()


def lose_record(root: Path) -> None:
    (trail,) = (root / "state" / "trail").glob("trail-*.jsonl")
    lines = trail.read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if '"objects delivered"' in line)
    trail.write_text("".join(lines[:at] + lines[at + 1 :]))


def change_object(root: Path) -> None:
    file = next((root / "outbox").glob("*/dicom/v1/sr.dcm"))
    image = dcmread(file)
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    image.save_as(file)


@pytest.mark.parametrize(
    ("damage", "where", "words"),
    [
        (lose_image, "lost", "image "),
        (double_report, "doubled", "2 reports"),
        (lose_version, "lost", "version 1"),
        (lose_record, "lost", "audit record"),
        (change_object, "lost", "sr.dcm of version 1 at web"),
    ],
)
def test_the_check_sees_what_is_wrong(
    site: Site, tmp_path: Path, damage: Callable[[Path], None], where: str, words: str
) -> None:
    wrong = damaged(site, tmp_path / "copy", damage)
    found = [text for texts in getattr(wrong, where).values() for text in texts]
    assert any(words in text for text in found), wrong


def test_the_check_sees_an_object_with_two_contents(site: Site, tmp_path: Path) -> None:
    uid = next(iter(site.web.kept))
    site.web.kept[uid].append("other")
    try:
        wrong = damaged(site, tmp_path / "copy", lambda _root: None)
    finally:
        site.web.kept[uid].pop()
    assert any("other content" in text for texts in wrong.doubled.values() for text in texts)


def test_an_acknowledgement_without_synchronisation_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", os.fsync)
    order = Order()
    order.watch()
    for synchronised in (True, False):
        order.on_step(ReceiveStep.WRITTEN, False)
        write_atomically(tmp_path / "file", b"")
        order.on_step(ReceiveStep.STORED, False)
        if synchronised:
            sync_folder(tmp_path)
        order.on_step(ReceiveStep.STORED, True)
        order.on_step(ReceiveStep.ACKNOWLEDGED, False)
    assert order.counts == {"checked": 2, "repeats": 0, "wrong": 1}


def test_an_archive_that_is_away_for_an_hour_gets_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nothing_lost, "AWAY_STUDIES", 1)
    result = measure(1, 2, None, away=True, steps=())
    assert result["sound"], result
    (row,) = result["steps"]
    assert (row["event"], row["times"]) == (AWAY, 1)
    assert table(result).cells[0][-1] == "yes"


def test_the_result_is_json(site: Site) -> None:
    result: dict[str, Any] = nothing_lost._result(1, [(site, site.wrong())])
    assert json.loads(json.dumps(result))["kills"] == 3
    assert [one["step"] for one in result["steps"]] == list(FEW)
