"""The files of a report: which there are, in which order they come, and that they go together."""

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.atomic_files import write_atomically
from edge.report.evidence import (
    OBJECTS,
    OUTLINES,
    SOURCE,
    beside,
    evidence_files,
    of_version,
    outlines_file,
    read_outlines,
)
from edge.report.pictures import (
    PICTURED,
    PICTURED_POSSIBLE,
    clear_pictures,
    draw_pictures,
    first_note,
    picture_name,
)
from edge.report.write import version_in, write_report, write_version
from imaging.preprocess import Preprocessed, preprocess
from imaging.read import read_study
from imaging.render import Mark, finding_picture, overview_picture
from imaging.volume import Geometry, UInt8Array
from tests.edge.dicom_out.studies import finding, write_reported, write_study
from tests.edge.report.reports import CHANGE, FINDING, POSSIBLE, REPORT, box, write


def test_report_json_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its objects are made from is there before; each file is written once, and durable."""
    steps, fsync, replaced = list[str](), os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        steps.append(target.name)
        return replaced(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    pictures = draw_pictures(REPORT.findings, (), box(), tmp_path)
    write_report(REPORT, pictures, tmp_path, {SOURCE: b"headers", OUTLINES: b"one"})
    names = [step for step in steps if "." in step]
    assert sorted(names[:2]) == ["finding_01.jpg", "overview.jpg"]
    assert names[2:] == [SOURCE, OUTLINES, "report.html", "report.json"]
    assert steps.count("file") == len(names)
    assert steps[-4:] == ["folder", "file", "report.json", "folder"]
    assert steps.count("folder") == 4  # the one above twice, which costs nothing as it is


def test_one_patient_s_pictures_never_lie_beside_another_s_report(tmp_path: Path) -> None:
    """A report with fewer findings, and one of a refusal, leave no picture of the one before."""
    write(replace(REPORT, findings=(FINDING,) * 3), tmp_path)
    (tmp_path / "finding_notes.jpg").touch()
    paths = write(REPORT, tmp_path)
    others = ["finding_notes.jpg", "report.html", "report.json"]
    assert sorted(os.listdir(tmp_path)) == sorted(["overview.jpg", "finding_01.jpg", *others])
    assert all(path.is_file() for path in paths.pictures)
    write_report(REPORT, {}, tmp_path)
    assert sorted(os.listdir(tmp_path)) == others


def test_an_older_report_goes_before_the_pictures_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(REPORT, tmp_path)

    def dies(path: Path, _data: bytes) -> None:
        assert path.name == "overview.jpg"
        raise KeyboardInterrupt

    monkeypatch.setattr("edge.report.pictures.write_whole", dies)
    with pytest.raises(KeyboardInterrupt):
        write(REPORT, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_new_folder_outlasts_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its entry in the folder above is on the disk before a report lies in it."""
    synced: list[tuple[Path, bool]] = []
    json_file = tmp_path / "new" / "report.json"
    monkeypatch.setattr(
        "edge.report.pictures.sync_folder",
        lambda folder: synced.append((folder, json_file.exists())),
    )
    write_report(REPORT, {}, json_file.parent)
    assert (tmp_path, False) in synced


def test_a_disk_that_fills_up_leaves_no_half_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a part of the new files nor one of the old ones beside them."""
    write(REPORT, tmp_path)

    def full(path: Path, data: bytes) -> None:
        if path.name == "report.json":
            monkeypatch.setattr(os, "fsync", _no_space)
        write_atomically(path, data)

    monkeypatch.setattr("edge.report.write.write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        write_report(replace(REPORT, version=2), {}, tmp_path)
    assert os.listdir(tmp_path) == ["report.html"]


def _no_space(_descriptor: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("findings", "possible", "drawn"),
    [
        (PICTURED + 2, 0, PICTURED),
        (PICTURED - 1, 2, PICTURED),  # the limit is one for both lists
        (1, PICTURED_POSSIBLE + 1, 1 + PICTURED_POSSIBLE),  # a report must not wait for the others
    ],
)
def test_only_the_first_of_each_list_get_pictures_of_their_own(
    tmp_path: Path, findings: int, possible: int, drawn: int
) -> None:
    """The overview shows the others too."""
    lists = (FINDING,) * findings, (POSSIBLE,) * possible
    paths = write(replace(REPORT, findings=lists[0], possible=lists[1]), tmp_path)
    names = [picture_name(number) for number in range(1, drawn + 1)]
    assert [path.name for path in paths.pictures] == ["overview.jpg", *names]
    text = paths.html.read_text()
    assert f'id="finding-{drawn}"' in text
    assert f'id="finding-{drawn + 1}"' not in text
    note = first_note(findings, possible, draw_pictures(*lists, box(), tmp_path))
    assert note == f"Numbers above {drawn} are in the overview only."


def test_a_possible_finding_has_a_question_mark_in_the_overview_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own picture keeps the bare number, since a later version may call it a finding."""
    seen: list[list[str]] = []

    def overview(voxels: UInt8Array, marks: Sequence[Mark]) -> UInt8Array:
        seen.append([mark.label for mark in marks])
        return overview_picture(voxels, marks)

    def alone(voxels: UInt8Array, mark: Mark) -> UInt8Array:
        seen.append([mark.label])
        return finding_picture(voxels, mark)

    monkeypatch.setattr("edge.report.pictures.overview_picture", overview)
    monkeypatch.setattr("edge.report.pictures.finding_picture", alone)
    draw_pictures((FINDING,), (POSSIBLE, POSSIBLE), box(), tmp_path)
    assert sorted(seen) == [["1"], ["1", "2?", "3?"], ["2"], ["3"]]


def test_a_report_of_14_findings_takes_less_than_2_megabytes(tmp_path: Path) -> None:
    """Page and files together, in a chest with the noise of thin slices."""
    noise = np.random.default_rng(0).normal(-850, 40, (230, 225, 290))
    voxels = np.clip((noise + 1000) * 255 / 1400, 0, 255).astype(np.uint8)
    report = replace(REPORT, findings=(replace(FINDING, index_zyx=(115.0, 112.0, 145.0)),) * 14)
    write_report(
        report,
        draw_pictures(report.findings, report.possible, Preprocessed(voxels, Geometry()), tmp_path),
        tmp_path,
    )
    assert len(list(tmp_path.glob("*.jpg"))) == 15
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2_000_000


SECOND = replace(
    REPORT, version=2, findings=(FINDING, FINDING), finding_numbers=(4, 1), changes=(CHANGE,)
)


PICTURES = {"overview.jpg": b"RIFF o", "finding_01.jpg": b"RIFF 1", "finding_04.jpg": b"4"}


FILES = ["finding_04.jpg", "report.v1.html", "report.v1.json", "report.html", "report.json"]


def first(out: Path) -> dict[str, bytes]:
    """Version 1 in ``out``; returns its files."""
    write_report(REPORT, draw_pictures(REPORT.findings, (), box(), out), out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_the_new_version_takes_the_place_and_the_old_one_lies_beside_it(tmp_path: Path) -> None:
    """Page and data of version 1 are what they were, byte for byte."""
    before = first(tmp_path)
    paths = write_version(SECOND, PICTURES, tmp_path)
    for suffix in ("html", "json"):
        assert (tmp_path / f"report.v1.{suffix}").read_bytes() == before[f"report.{suffix}"]
    words = json.loads(paths.json.read_text())
    assert [finding["number"] for finding in words["findings"]] == [4, 1]
    assert words["changes"][0]["verdict"] == {"probability": 0.8, "model": "m 1"}
    assert [path.name for path in paths.pictures] == list(PICTURES)
    (tmp_path / "finding_notes.jpg").touch()
    write_version(replace(SECOND, version=3), {}, tmp_path)
    assert [path.name for path in tmp_path.glob("*.jpg")] == ["finding_notes.jpg"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("file", FILES)
def test_killed_at_any_file_the_old_version_is_complete_and_the_next_attempt_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, after: bool
) -> None:
    """``report.json`` is one version or the other, never none, and version 1 is never changed."""
    before = first(tmp_path)

    def dies(path: Path, data: bytes) -> None:
        if path.name != file or after:
            write_atomically(path, data)
        if path.name == file:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edge.report.write.write_atomically", dies)
        with pytest.raises(KeyboardInterrupt):
            write_version(SECOND, PICTURES, tmp_path)
    assert version_in(tmp_path, "k1") == (2 if after and file == "report.json" else 1)
    write_version(SECOND, PICTURES, tmp_path)
    assert version_in(tmp_path, "k1") == 2
    for suffix in ("html", "json"):
        assert (tmp_path / f"report.v1.{suffix}").read_bytes() == before[f"report.{suffix}"]
    assert sorted(os.listdir(tmp_path)) == sorted({*before, *FILES})


def test_a_new_study_s_report_leaves_no_version_of_an_older_one(tmp_path: Path) -> None:
    first(tmp_path)
    write_version(SECOND, PICTURES, tmp_path)
    before = first(tmp_path)
    assert not [name for name in before if name.startswith("report.v")]


def test_each_version_keeps_the_evidence_that_its_objects_are_made_from(tmp_path: Path) -> None:
    """What a version does not name stays as it was; what is empty goes."""
    write_report(REPORT, {}, tmp_path, {SOURCE: b"headers", OUTLINES: b"one"})
    write_version(SECOND, {}, tmp_path, {OUTLINES: b""})
    assert (tmp_path / SOURCE).read_bytes() == b"headers"
    assert not (tmp_path / OUTLINES).exists()
    assert (tmp_path / of_version(SOURCE, 1)).read_bytes() == b"headers"
    assert (tmp_path / of_version(OUTLINES, 1)).read_bytes() == b"one"
    write_report(REPORT, {}, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["report.html", "report.json"]


def test_outlines_keep_their_voxels_and_their_place(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, "oblique"))
    box = preprocess(study.volume)
    with_outline = finding(box, (0.4, 0.5, 0.2), 0.9, True)
    without = finding(box, (0.4, 0.5, 0.8), 0.8, False)
    outlines = read_outlines(outlines_file([(4, with_outline), (5, without)], box.geometry))
    assert [*outlines] == [4]
    assert with_outline.outline is not None
    assert outlines[4].mask.sum() == with_outline.outline.mask.sum()
    centre = outlines[4].geometry.to_world(np.argwhere(outlines[4].mask).mean(0))
    np.testing.assert_allclose(centre, with_outline.centre_mm, atol=1e-6)


def test_files_of_a_report_go_with_it_and_no_others(tmp_path: Path) -> None:
    """A folder of somebody's own images may be named alike."""
    out = tmp_path / "report"
    write_reported(write_study(tmp_path / "study"), out)
    made = out / OBJECTS / "v1"
    made.mkdir(parents=True)
    for name in ("sr.dcm", "capture-01.dcm", "skipped.json"):
        (made / name).touch()
    beside_it = out / OBJECTS / "v2"
    beside_it.mkdir()
    (beside_it / "sr.dcm").touch()
    foreign = [out / OBJECTS / "v1" / "00001.dcm", out / OBJECTS / "mine" / "sr.dcm"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert len(beside(out)) == 6
    clear_pictures(out)
    assert beside(out) == []
    assert not beside_it.exists()
    assert evidence_files(out) == {SOURCE: b"", OUTLINES: b""}
    assert all(path.exists() for path in foreign)
    assert not (out / SOURCE).exists()


@pytest.mark.parametrize("data", [b"PK", b"x" * 100])
def test_damaged_outlines_are_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=OUTLINES):
        read_outlines(data)
