"""The voxels that somebody looks at: few, of the study as it is, and never in the agent's way."""

import os
import shutil
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edge.run import site_of
from edge.status import volumes as opening
from edge.status.state import SiteState
from edge.status.volumes import KEPT, Opened, Volumes, Voxels
from edge.store.record import Record, Step
from edge.store.studies import NO_CHANGE
from imaging.isolation.reader import IsolatedReader
from tests.edge.status.site import CT, Site


class Viewer(Site):
    """A site, and what opens its studies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.begin_again()

    def begin_again(self) -> None:
        self.volumes = Volumes(site_of(self.settings))

    def row(self, key: str) -> Record:
        found = SiteState(site_of(self.settings)).study(key)
        assert found is not None
        return found

    def opening(self, key: str) -> Opened:
        return self.volumes.opening(self.row(key))

    def voxels(self, key: str) -> Voxels | None:
        return self.volumes.voxels(self.row(key))

    def open(self, key: str, series: str = "") -> str:
        """Open a study and wait; how it ended."""
        self.volumes.open(self.row(key), series)
        self.volumes.wait()
        return self.opening(key).state

    @property
    def left(self) -> set[str]:
        """The names of the files with voxels."""
        return {path.name for path in self.folders.viewer.glob("*")}


@pytest.fixture
def site(tmp_path: Path) -> Viewer:
    return Viewer(tmp_path)


def test_the_voxels_are_a_private_file_that_numpy_maps(site: Viewer) -> None:
    key = site.add("a")
    assert site.opening(key).state == "closed"
    assert site.open(key) == "ready"
    file = site.folders.viewer / f"{key}.npy"
    np.testing.assert_array_equal(np.load(file), CT.hu())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    voxels = site.voxels(key)
    assert voxels is not None
    assert isinstance(voxels.hu, np.memmap)
    assert voxels.images == tuple(range(1, CT.count + 1))


def test_the_last_few_studies_are_kept(site: Viewer) -> None:
    """The one that nobody has looked at for the longest time goes first."""
    keys = [site.add(f"s{number}") for number in range(KEPT + 1)]
    for age, key in enumerate(keys[:KEPT]):
        assert site.open(key) == "ready"
        os.utime(site.folders.viewer / f"{key}.json", (1000.0 + age, 1000.0 + age))
    site.begin_again()
    assert site.voxels(keys[0]) is not None  # somebody looks at the oldest
    assert site.open(keys[KEPT]) == "ready"
    assert site.left == {f"{keys[n]}.{kind}" for n in (0, 2, 3) for kind in ("npy", "json")}


def test_a_study_that_was_read_again_is_opened_again(site: Viewer) -> None:
    """More images may have joined it."""
    key = site.add("a")
    assert site.open(key) == "ready"
    with site.store() as store:
        store.settle(key, Step.DONE, NO_CHANGE)
    assert site.opening(key).state == "closed"
    assert site.open(key) == "ready"


def test_a_study_that_cannot_be_read_says_why_and_may_be_tried_again(site: Viewer) -> None:
    key = site.add("a")
    image = site.folders.done / key / "a" / "005.dcm"
    hidden = image.rename(site.root / "005.dcm")
    assert site.open(key) == "failed"
    assert "missing" in site.opening(key).reason
    assert site.left == set()
    hidden.rename(image)
    assert site.open(key) == "ready"


def test_the_series_of_the_report_is_opened(site: Viewer) -> None:
    key = site.add("a")
    other = replace(CT, series="2", count=30)
    other.write(site.folders.done / key / "a" / "other")
    assert site.open(key, "1.2.826.0.1.1") == "ready"
    voxels = site.voxels(key)
    assert voxels is not None
    assert voxels.hu.shape[0] == CT.count


def test_no_study_is_opened_into_the_room_that_the_agent_needs(
    site: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    key = site.add("a")
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Usage(opening.FREE_BYTES))
    assert site.open(key) == "failed"
    assert "too little room on the disk" in site.opening(key).reason
    assert site.left == set()


def test_voxels_of_studies_whose_files_are_gone_go_with_the_next_one(site: Viewer) -> None:
    one, other = site.add("a"), site.add("b")
    assert site.open(one) == "ready"
    shutil.rmtree(site.folders.done / one)
    (site.folders.viewer / "left.npy").write_bytes(b"x")
    assert site.open(other) == "ready"
    assert site.left == {f"{other}.npy", f"{other}.json"}


def test_a_file_that_somebody_damaged_is_no_volume(site: Viewer) -> None:
    key = site.add("a")
    assert site.open(key) == "ready"
    (site.folders.viewer / f"{key}.npy").write_bytes(b"x" * 300)
    assert site.voxels(key) is None


@pytest.mark.parametrize("begun", [False, True])
def test_a_stop_does_not_wait_for_a_study_that_is_being_opened(
    site: Viewer, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Whenever it comes: before the child has begun, or while it reads."""
    key, reads, read = site.add("a"), threading.Event(), IsolatedReader.read_whole

    def noted(*given: Any) -> Any:
        reads.set()
        return read(*given)

    monkeypatch.setattr(IsolatedReader, "read_whole", noted)
    site.volumes.open(site.row(key), "")
    assert not begun or reads.wait(60)
    site.volumes.close()
    assert site.left in (set(), {f"{key}.npy", f"{key}.json"})
    assert site.opening(key).state in ("failed", "ready")
