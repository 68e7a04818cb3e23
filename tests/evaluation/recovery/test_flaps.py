import json
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest

from edge.escalation.rois import EscalationResult
from evaluation.links.trace import State
from evaluation.recovery.check import Found, check
from evaluation.recovery.flapping_cloud import MiddleReader, probability_of
from evaluation.recovery.flaps import DOWN, flapping, run


def test_flaps_have_every_kind_of_loss() -> None:
    trace = flapping(8, Random(1))
    states = [conditions.state for conditions in trace.conditions]
    assert states[::2] == [State.UP] * 9
    assert states[1::2] == [*DOWN, *DOWN]
    assert all(later > sooner for sooner, later in pairwise(trace.times_s))
    assert trace == flapping(8, Random(1)) != flapping(8, Random(2))


def test_a_verdict_depends_on_the_middle_alone() -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 16), np.uint8)
    said = MiddleReader().read(voxels)
    assert said.probability[0] == probability_of(voxels[0]) != said.probability[1]
    assert probability_of(voxels[0][3:13, 3:13, 3:13]) == said.probability[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Found]:
    """A site after four losses of four kinds."""
    root, steps = tmp_path_factory.mktemp("flaps") / "site", list[tuple[int, int]]()
    found = run(root, flapping(4, Random(5)), 5, lambda *step: steps.append(step))
    assert steps
    return root, found


def statuses(root: Path) -> dict[str, str]:
    reports = (root / "outbox").glob("*/report.json")
    return {path.parent.name: json.loads(path.read_text())["status"] for path in reports}


def test_nothing_is_lost_or_duplicated_when_the_link_flaps(site: tuple[Path, Found]) -> None:
    root, found = site
    assert found.studies == len(statuses(root)) > 0
    assert found.sound, found
    assert set(statuses(root).values()) <= {"final", "rejected"}


def test_the_check_sees_other_verdicts_than_expected(site: tuple[Path, Found]) -> None:
    names = {name: (0.5,) for name, status in statuses(site[0]).items() if status == "final"}
    wrong = check(site[0], names, lambda _plan, _box, _key: EscalationResult())
    assert any("a finding, or a verdict on one" in words for words in wrong.lost)
