import json
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from edge.store import studies
from evaluation.recovery.check import check
from evaluation.recovery.clock_jumps import (
    LONGEST_S,
    SHORTEST_S,
    WallClock,
    counts,
    edge_clock,
    run,
)

REAL_S = 1_700_000_000.0


def test_the_clock_jumps_both_ways_by_hours_and_by_more_than_a_year() -> None:
    clock = WallClock(Random(0), REAL_S)
    ahead_s = [clock.now_s() - REAL_S for _ in range(400)]
    assert clock.looks == 400
    assert 150 < clock.jumps < 250
    assert max(ahead_s) > 30 * 86_400 < -min(ahead_s)
    jumped_s = [abs(one) for one in ahead_s if abs(one) > SHORTEST_S / 2]
    assert min(jumped_s) < 6 * SHORTEST_S
    assert max(jumped_s) <= LONGEST_S + 60


def test_only_the_edge_s_time_of_day_is_replaced() -> None:
    clock, before = WallClock(Random(1), REAL_S), studies.datetime
    with edge_clock(clock):
        clock.jump()
        days = [abs((studies.datetime.now(UTC) - datetime.now(UTC)).days) for _ in range(20)]
        assert min(days) > 30
        assert abs(time.time() - REAL_S) >= SHORTEST_S
        assert abs(time.monotonic() - time.clock_gettime(time.CLOCK_MONOTONIC)) < 60
    assert studies.datetime is before
    assert abs(time.time() - datetime.now(UTC).timestamp()) < 60


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clock") / "site"
    found = run(root, 2, 3)
    assert (found.studies, found.sound) == (4, True), found
    return root


def test_nothing_is_lost_duplicated_or_given_up_when_the_clock_jumps(site: Path) -> None:
    counted = counts(site)
    assert counted["jumps"] > 20
    assert counted["looks"] > 0
    reports = [json.loads(path.read_text()) for path in (site / "outbox").glob("*/report*.json")]
    written = [datetime.fromisoformat(report["created"]) for report in reports]
    assert max(abs(at - datetime.now(UTC)) for at in written) > timedelta(hours=1)


def test_the_check_sees_a_pending_read_that_was_given_up(site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, root := tmp_path / "copy")
    path = next((root / "outbox").glob("*/report.json"))
    words = json.loads(path.read_text())
    words["changes"].append({"kind": "given up", "centre_mm": None})
    path.write_text(json.dumps(words))
    found = check(root, {path.parent.name: (0.5,)})
    assert f"{path.parent.name}: a pending read, given up too early" in found.lost
