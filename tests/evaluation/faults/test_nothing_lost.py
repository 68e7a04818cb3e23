"""From a scanner to two archives: kills, clocks that jump, links that are lost, full disks."""

import errno
import io
import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydicom import dcmread
from typer.testing import CliRunner

from edge.atomic_files import sync_folder, write_atomically
from edge.dicom_in.received import ReceiveStep
from edge.store import studies
from evaluation.__main__ import app
from evaluation.faults import fault_points as points
from evaluation.faults import nothing_lost
from evaluation.faults.agent import JUMPS, LOOKS, MAX_S, MIN_S, WallClock, edge_clock
from evaluation.faults.nothing_lost import AWAY, DOWN, Fault, at_random, at_steps, flapping
from evaluation.faults.oracle import Sent, Wrong, check
from evaluation.faults.site import IMAGES, Site
from evaluation.links.proxy import State

# pynetdicom drops the socket of a connection that failed without closing it
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

FEW = ("instance stored in its series", points.ACKNOWLEDGED, points.AT_TARGET)
REAL_S = 1_700_000_000.0


def test_every_step_from_association_to_archive_has_a_name() -> None:
    assert len(points.NAMES) == len(set(points.NAMES)) >= 12
    assert set(ReceiveStep) <= set(points.STEPS.values())


def test_a_trigger_is_met_once_and_after_those_that_it_skips() -> None:
    trigger = points.Trigger()
    assert not trigger.met(points.NAMES[0], False)
    trigger.arm(points.NAMES[0], True, skip=1)
    assert [trigger.met(points.NAMES[0], after) for after in (False, True, True, True)] == [
        False, False, True, False,
    ]  # fmt: skip
    assert not trigger.armed


def test_an_acknowledgement_without_synchronisation_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder must be synchronised after the image is moved; one that was there is not moved."""
    monkeypatch.setattr(os, "fsync", os.fsync)
    order = points.Order()
    order.watch()
    sync = partial(sync_folder, tmp_path)
    storing, stored = (partial(order.on_step, ReceiveStep.STORED, durable) for durable in (0, 1))
    for steps in (
        [storing, sync, stored], [storing, stored], [sync, storing, stored], [storing, sync], []
    ):  # fmt: skip
        order.on_step(ReceiveStep.WRITTEN, False)
        write_atomically(tmp_path / "file", b"")
        for step in steps:
            step()
        order.on_step(ReceiveStep.ACKNOWLEDGED, False)
    assert order.counts == {"checked": 5, "repeats": 1, "wrong": 3}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site after three kills, one of them from outside."""
    with Site(tmp_path_factory.mktemp("nothing lost") / "site", 1) as opened:
        for name in FEW:
            opened.kill_at(name, True)
    return opened


@pytest.mark.long
def test_nothing_is_lost_by_kills(site: Site) -> None:
    wrong = site.wrong()
    assert sound(wrong.as_dict()), wrong
    assert wrong.amendments == wrong.provisional == len(site.studies) == 3
    assert {len(one.acknowledged) for one in site.studies} == {IMAGES}
    assert any(one.associations > 1 for one in site.studies)
    counts = site.order.counts
    assert counts["checked"] >= 3 * IMAGES - 1
    assert counts["wrong"] == 0


def sound(found: dict[str, Any]) -> bool:
    return not any(found[key] for key in ("lost", "doubled", "left"))


def damaged(site: Site, root: Path, damage: Callable[[Path], None]) -> Wrong:
    shutil.copytree(site.root, root, symlinks=True)
    damage(root)
    sent = {one.study_uid: one for one in site.studies} | {"1.2.3": Sent({"1.2.3.4"}, "gone")}
    return check(root, sent, {"archive": site.archive.kept, "web": site.web.kept})


def lose_image(root: Path) -> None:
    """Remove the lowest image of a series: without one in its middle it could not be read again."""
    folder = next((root / "state" / "done").rglob("*.dcm")).parent
    min(folder.glob("*.dcm"), key=lambda file: dcmread(file).SliceLocation).unlink()


def double_image(root: Path, place: str = "again") -> None:
    """Copy an image within its study, or into a folder of ``done`` that has no report."""
    image = next((root / "state" / "done").rglob("*.dcm"))
    folder = (root / "state" / "done" if place == "apart" else image.parent) / place
    folder.mkdir()
    shutil.copyfile(image, folder / image.name)


def double_report(root: Path) -> None:
    report = next((root / "outbox").iterdir())
    shutil.copytree(report, report.with_name(f"{report.name}-2"))


def lose_version(root: Path) -> None:
    next((root / "outbox").glob("*/report.v1.json")).unlink()


def change_report(root: Path) -> None:
    """Another finding, a verdict twice, and a read that is given up."""
    path = next((root / "outbox").glob("*/report.json"))
    words = json.loads(path.read_text())
    words["findings"].append({"route": "escalate", "centre_mm": [0, 0, 0], "probability": 0.7})
    words["changes"] += [{"centre_mm": [1, 1, 1]}] * 2
    words["changes"].append({"kind": "given up", "centre_mm": None})
    path.write_text(json.dumps(words))


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


def leave_work(root: Path) -> None:
    (root / "state" / "work" / "again").mkdir()


@pytest.mark.long
@pytest.mark.parametrize(
    ("damage", "where", "words"),
    [
        (lose_image, "lost", "image "),
        (lose_image, "lost", "0 reports"),
        (double_image, "doubled", "image "),
        (double_report, "doubled", "2 reports"),
        (lose_version, "lost", "version 1"),
        (change_report, "lost", "a finding, or a verdict on one"),
        (change_report, "lost", "a pending read, given up too early"),
        (change_report, "doubled", "a verdict"),
        (lose_record, "lost", "audit record"),
        (change_object, "lost", "sr.dcm of version 1 at web"),
        (leave_work, "left", "work/again"),
    ],
)
def test_the_oracle_sees_what_is_wrong(
    site: Site, tmp_path: Path, damage: Callable[[Path], None], where: str, words: str
) -> None:
    found = damaged(site, tmp_path / "copy", damage).as_dict()
    assert any(words in text for text in found[where]), found


@pytest.mark.long
def test_an_image_that_came_again_lies_apart(site: Site, tmp_path: Path) -> None:
    found = damaged(site, tmp_path / "copy", lambda root: double_image(root, "apart")).as_dict()
    assert found["doubled"] == []


@pytest.mark.long
def test_the_oracle_sees_an_object_with_two_contents(site: Site, tmp_path: Path) -> None:
    uid = next(iter(site.web.kept))
    site.web.kept[uid].append("other")
    try:
        found = damaged(site, tmp_path / "copy", lambda _root: None).as_dict()
    finally:
        site.web.kept[uid].pop()
    assert any("other content" in text for text in found["doubled"])


@pytest.mark.long
def test_the_result_has_a_row_for_each_step(site: Site) -> None:
    result: dict[str, Any] = nothing_lost.figures_of([(site, site.wrong())])
    assert json.loads(json.dumps(result))["kills"] == 3
    assert [one["step"] for one in result["steps"]] == list(FEW)
    assert all(bar.met for bar in nothing_lost.bars(result))
    assert not all(bar.met for bar in nothing_lost.bars(result | {"lost": ["a report"]}))


@pytest.mark.long
def test_an_archive_that_is_away_for_an_hour_gets_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nothing_lost, "AWAY_STUDIES", 1)
    result = at_steps(1, 2, None, away=True, steps=())
    assert sound(result), result
    (row,) = result["steps"]
    assert (row["event"], row["times"]) == (AWAY, 1)


@pytest.mark.long
@pytest.mark.parametrize(("fault", "times"), [(Fault.KILL, 4), (Fault.FLAP, 4), (Fault.CLOCK, 2)])
def test_nothing_is_lost_by_faults_at_random(tmp_path: Path, fault: Fault, times: int) -> None:
    found = at_random(fault, tmp_path, times, 3)
    assert sound(found), found
    assert found["times"] >= times
    assert found["studies"] > 0
    if fault is Fault.CLOCK:
        reports = (tmp_path / "clock" / "outbox").glob("*/report*.json")
        written = [
            datetime.fromisoformat(json.loads(one.read_text())["created"]) for one in reports
        ]
        assert max(abs((at - datetime.now(UTC)).total_seconds()) for at in written) > MIN_S


def test_flaps_have_every_kind_of_loss() -> None:
    trace = flapping(8, Random(1))
    states = [conditions.state for conditions in trace.conditions]
    assert states[::2] == [State.UP] * 9
    assert states[1::2] == [*DOWN, *DOWN]
    assert all(later > sooner for sooner, later in pairwise(trace.times_s))
    assert trace == flapping(8, Random(1)) != flapping(8, Random(2))


def test_the_clock_jumps_both_ways_by_hours_and_by_more_than_a_year() -> None:
    counts = [0.0, 0.0, 0.0]
    clock = WallClock(0, REAL_S, counts)
    ahead_s = [clock.now_s() - REAL_S for _ in range(400)]
    assert counts[LOOKS] == 400
    assert 150 < counts[JUMPS] < 250
    assert max(ahead_s) > 30 * 86_400 < -min(ahead_s)
    jumped_s = [abs(one) for one in ahead_s if abs(one) > MIN_S / 2]
    assert min(jumped_s) < 6 * MIN_S
    assert max(jumped_s) <= MAX_S + 60


def test_only_the_edge_s_time_of_day_is_replaced() -> None:
    clock, before = WallClock(1, REAL_S, [0.0, 0.0, 0.0]), studies.datetime
    with edge_clock(clock):
        clock.jump()
        days = [abs((studies.datetime.now(UTC) - datetime.now(UTC)).days) for _ in range(20)]
        assert min(days) > 30
        assert abs(time.time() - REAL_S) >= MIN_S
        assert abs(time.monotonic() - time.clock_gettime(time.CLOCK_MONOTONIC)) < 60
    assert studies.datetime is before
    assert abs(time.time() - datetime.now(UTC).timestamp()) < 60


class SmallDisk(io.RawIOBase):
    """Takes 2 MiB and 10 bytes, and a part of a block where no whole one fits."""

    def __init__(self, error: int = errno.ENOSPC) -> None:
        self.left, self.error = (2 << 20) + 10, error

    def write(self, block: object) -> int:
        assert isinstance(block, bytes)
        if not self.left:
            raise OSError(self.error, "no")
        taken = min(self.left, len(block))
        self.left -= taken
        return taken


def test_the_disk_is_filled_to_the_last_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SmallDisk()
    monkeypatch.setattr(Path, "open", lambda *_, **__: disk)
    points.fill(tmp_path / "ballast")
    assert disk.left == 0
    monkeypatch.setattr(Path, "open", lambda *_, **__: SmallDisk(errno.EIO))
    with pytest.raises(OSError, match="no"):
        points.fill(tmp_path / "ballast")


@pytest.mark.parametrize("options", [["--at", "."], ["--fault", "disk"]])
def test_a_large_filesystem_is_never_filled(options: list[str], tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).total <= nothing_lost.MAX_BYTES:
        pytest.skip("the temporary folder lies on a small filesystem")
    ended = CliRunner().invoke(app, ["nothing-lost", *options])
    assert ended.exit_code == 2
