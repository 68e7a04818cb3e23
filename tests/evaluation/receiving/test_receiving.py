"""Series by C-STORE and as files, to the installed agent with the real network: a few of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from evaluation.phantoms import prepare
from evaluation.receiving import receiving as module
from evaluation.receiving.archive import Archive
from evaluation.receiving.receiving import (
    DICOM,
    FOLDER,
    compare,
    endure,
    growth_of,
    receiving,
    without_uids,
)
from evaluation.receiving.sender import send
from imaging.dicom.arrival import files_of
from imaging.phantom.phantom import PhantomSpec

# pynetdicom drops the socket of a connection that failed without closing it
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

SPEC = PhantomSpec(seed=2, spacing_mm=(5.0, 2.5, 2.5), size_mm=(210.0, 340.0, 340.0),
                   nodule_count=1, diameter_mm=(15.0, 20.0))  # fmt: skip


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (prepared,) = prepare([SPEC], tmp_path_factory.mktemp("phantom"))
    return prepared.folder


@pytest.mark.long
def test_both_ways_end_in_the_same_report(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING", 3)
    times = compare(files_of(phantom), 1, tmp_path)
    assert times["same_report"]
    assert times["slices"] == 42
    assert [one["way"] for one in times["ways"]] == [FOLDER, DICOM]
    for way in times["ways"]:
        parts = way["arrival_median_s"] + way["answer_median_s"]
        assert 0 < way["candidates_median_s"] < way["answer_median_s"]
        assert way["all_median_s"] == pytest.approx(parts)
    json.dumps(times)
    *_, same = receiving.bars(times)
    assert same.met
    *_, same = receiving.bars(times | {"same_report": False})
    assert not same.met


def test_names_of_images_do_not_make_reports_differ() -> None:
    report = {"location": {"sop_instance_uid": "1.2", "slice": 3}, "all": [{"series_uid": "1"}]}
    assert without_uids(report) == {"location": {"slice": 3}, "all": [{}]}


@pytest.fixture(scope="module")
def endured(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    steps = list[tuple[int, int]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WARM_UP", 1)
        patch.setattr(module, "AT_ONCE", 2)
        patch.setattr(module, "SAMPLE_S", 0.05)
        work = tmp_path_factory.mktemp("endurance")
        yield endure(files_of(phantom), 4, work, lambda *step: steps.append(step))
    assert steps


@pytest.mark.long
def test_all_studies_are_answered_once(endured: dict[str, Any]) -> None:
    assert (endured["studies"], endured["answered"], endured["doubled"]) == (4, 4, 0)
    assert endured["answer_p50_s"] > 0
    assert endured["transfer_p95_s"] >= endured["transfer_p50_s"] > 0
    assert endured["ready_per_s"] == 2 * endured["sustainable_per_s"]
    assert endured["late_most"] >= 1
    json.dumps(endured)


@pytest.mark.long
def test_memory_of_agent_and_reader_is_sampled(endured: dict[str, Any]) -> None:
    assert set(endured["memory"]) == {"agent", "reader"}
    assert endured["memory"]["agent"]["most_mb"] > 50
    assert [bar.met for bar in receiving.bars(endured)][:2] == [True, True]


def test_growth_is_from_the_second_quarter_to_the_last() -> None:
    values = [*[500.0] * 4, *[100.0] * 4, *[300.0] * 4, *[120.0] * 4]
    assert growth_of(values)["growth"] == pytest.approx(0.2)
    assert growth_of([0.0, 0.0])["growth"] is None


def test_memory_that_was_not_seen_misses_its_bar() -> None:
    result = {"studies": 4, "answered": 4, "doubled": 0, "growth_bar": 0.1}
    result |= {"memory": {"agent": {"growth": 0.0}, "reader": {"growth": None}}}
    assert [bar.met for bar in receiving.bars(result)] == [True, True, True, False]


@pytest.mark.long
def test_an_archive_keeps_each_object_every_time(phantom: Path) -> None:
    files = files_of(phantom)[:2]
    archive, seen = Archive(), list[bool]()
    archive.on_object = seen.append
    with archive.by_dicom():
        endpoint = ("127.0.0.1", archive.port)
        for _ in range(2):
            assert send(endpoint, files, called="ARCHIVE").acknowledged == tuple(files)
    assert not send(endpoint, files, called="ARCHIVE").associated
    uids = {str(dcmread(file).SOPInstanceUID) for file in files}
    assert set(archive.kept) == uids
    assert all(len(digests) == 2 and len(set(digests)) == 1 for digests in archive.kept.values())
    assert seen == [False, True] * 4
