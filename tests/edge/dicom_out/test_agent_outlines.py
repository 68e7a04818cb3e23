"""The outlines beside a report are those of its version, also when the agent amends it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge.escalation.rois import EscalationResult
from edge.report.evidence import OUTLINES, of_version, read_outlines
from edge.run import run_agent
from evaluation.recovery.agent import settings_in
from protos.deadline import Deadline
from protos.messages import Priority, Roi
from tests.edge.builders import ForgetfulCloud, put
from tests.edge.running_agent import a_version_for_each_verdict, quick_read, unfinished, wait_until


class OutliningCloud(ForgetfulCloud):
    """It answers one region, then the other; each answer outlines a cube in the middle."""

    def read_rois(
        self,
        rois: Sequence[Roi],
        deadline: Deadline,
        study_key: str,
        priority: Priority | None = None,
    ) -> EscalationResult:
        result = super().read_rois(rois, deadline, study_key, priority)
        shapes = {roi.roi_id: roi.voxels.shape for roi in rois}
        masks = {roi_id: np.zeros(shapes[roi_id], bool) for roi_id in result.verdicts}
        for mask in masks.values():
            mask[tuple(slice(side // 2 - 2, side // 2 + 2) for side in mask.shape)] = True
        return replace(result, masks=masks)


def outlined(file: Path) -> list[int]:
    """The numbers of the findings in a file of outlines."""
    return sorted(read_outlines(file.read_bytes() if file.is_file() else b""))


def test_an_amended_version_has_the_newer_outlines_and_an_older_one_keeps_its_own(
    tmp_path: Path,
) -> None:
    """None, then one, then two."""
    put(tmp_path / "inbox", "a", "pending")
    stop, out = threading.Event(), tmp_path / "outbox" / "a"
    agent = threading.Thread(
        target=run_agent,
        args=(settings_in(tmp_path),),
        kwargs={"read": quick_read, "second": OutliningCloud(tmp_path / "asked"), "stop": stop},
    )
    with a_version_for_each_verdict():
        agent.start()
        try:
            wait_until(lambda: (out / "report.v2.json").is_file() and unfinished(tmp_path) == 0)
        finally:
            stop.set()
            agent.join()
    versions = [out / of_version(OUTLINES, 1), out / of_version(OUTLINES, 2), out / OUTLINES]
    assert [len(outlined(file)) for file in versions] == [0, 1, 2]
    assert set(outlined(versions[1])) < set(outlined(versions[2]))
