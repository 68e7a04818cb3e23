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
from edge.status.volumes import KEPT, Volumes
from edge.store.steps import Step
from edge.store.studies import Record
from imaging.isolation.reader import IsolatedReader
from tests.edge.status.site import CT, Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def state(site: Site) -> SiteState:
    return SiteState(site_of(site.settings))


@pytest.fixture
def volumes(site: Site) -> Volumes:
    return Volumes(site_of(site.settings))


def row(state: SiteState, key: str) -> Record:
    found = state.study(key)
    assert found is not None
    return found


def opened(volumes: Volumes, study: Record, series: str = "") -> str:
    """Open a study and wait; how it ended."""
    volumes.open(study, series)
    volumes.wait()
    return volumes.opening(study).state


def test_the_voxels_are_a_private_file_that_numpy_maps(
    site: Site, state: SiteState, volumes: Volumes
) -> None:
    key = site.add("a")
    study = row(state, key)
    assert volumes.opening(study).state == "closed"
    assert opened(volumes, study) == "ready"
    file = site.folders.viewer / f"{key}.npy"
    np.testing.assert_array_equal(np.load(file), CT.hu())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    voxels = volumes.voxels(study)
    assert voxels is not None
    assert isinstance(voxels.hu, np.memmap)
    assert voxels.images == tuple(range(1, CT.count + 1))


def test_the_last_few_studies_are_kept(site: Site, state: SiteState, volumes: Volumes) -> None:
    """The one that nobody has looked at for the longest time goes first."""
    keys = [site.add(f"s{number}") for number in range(KEPT + 1)]
    for age, key in enumerate(keys[:KEPT]):
        assert opened(volumes, row(state, key)) == "ready"
        os.utime(site.folders.viewer / f"{key}.json", (1000.0 + age, 1000.0 + age))
    again = Volumes(site_of(site.settings))  # of the next start
    assert again.voxels(row(state, keys[0])) is not None  # somebody looks at the oldest
    assert opened(again, row(state, keys[KEPT])) == "ready"
    left = {path.stem for path in site.folders.viewer.glob("*.npy")}
    assert left == {keys[0], keys[2], keys[3]}


def test_a_study_that_was_read_again_is_opened_again(
    site: Site, state: SiteState, volumes: Volumes
) -> None:
    """More images may have joined it."""
    key = site.add("a")
    assert opened(volumes, row(state, key)) == "ready"
    with site.store() as store:
        store.settle(key, Step.DONE)
    assert volumes.opening(row(state, key)).state == "closed"
    assert opened(volumes, row(state, key)) == "ready"


def test_a_study_that_cannot_be_read_says_why_and_may_be_tried_again(
    site: Site, state: SiteState, volumes: Volumes
) -> None:
    key = site.add("a")
    image = site.folders.done / key / "a" / "005.dcm"
    hidden = image.rename(site.root / "005.dcm")
    assert opened(volumes, row(state, key)) == "failed"
    assert "missing" in volumes.opening(row(state, key)).reason
    assert list(site.folders.viewer.iterdir()) == []
    hidden.rename(image)
    assert opened(volumes, row(state, key)) == "ready"


def test_the_series_of_the_report_is_opened(site: Site, state: SiteState, volumes: Volumes) -> None:
    key = site.add("a")
    other = replace(CT, series="2", count=30)
    other.write(site.folders.done / key / "a" / "other")
    assert opened(volumes, row(state, key), "1.2.826.0.1.1") == "ready"
    voxels = volumes.voxels(row(state, key))
    assert voxels is not None
    assert voxels.hu.shape[0] == CT.count


def test_no_study_is_opened_into_the_room_that_the_agent_needs(
    site: Site, state: SiteState, volumes: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    key = site.add("a")
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Usage(opening.FREE_BYTES))
    assert opened(volumes, row(state, key)) == "failed"
    assert "too little room on the disk" in volumes.opening(row(state, key)).reason
    assert list(site.folders.viewer.iterdir()) == []


def test_voxels_of_studies_whose_files_are_gone_go_with_the_next_one(
    site: Site, state: SiteState, volumes: Volumes
) -> None:
    one, other = site.add("a"), site.add("b")
    assert opened(volumes, row(state, one)) == "ready"
    shutil.rmtree(site.folders.done / one)
    (site.folders.viewer / "left.npy").write_bytes(b"x")
    assert opened(volumes, row(state, other)) == "ready"
    assert {path.stem for path in site.folders.viewer.iterdir()} == {other}


def test_a_file_that_somebody_damaged_is_no_volume(
    site: Site, state: SiteState, volumes: Volumes
) -> None:
    key = site.add("a")
    assert opened(volumes, row(state, key)) == "ready"
    (site.folders.viewer / f"{key}.npy").write_bytes(b"x" * 300)
    assert Volumes(site_of(site.settings)).voxels(row(state, key)) is None


@pytest.mark.parametrize("begun", [False, True])
def test_a_stop_does_not_wait_for_a_study_that_is_being_opened(
    site: Site, state: SiteState, volumes: Volumes, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Whenever it comes: before the child has begun, or while it reads."""
    key, reads, read = site.add("a"), threading.Event(), IsolatedReader.read_whole

    def noted(*given: Any) -> Any:
        reads.set()
        return read(*given)

    monkeypatch.setattr(IsolatedReader, "read_whole", noted)
    volumes.open(row(state, key), "")
    assert not begun or reads.wait(60)
    volumes.close()
    left = {path.name for path in site.folders.viewer.glob("*")}
    assert left in (set(), {f"{key}.npy", f"{key}.json"})
    assert volumes.opening(row(state, key)).state in ("failed", "ready")
