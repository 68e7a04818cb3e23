"""What is read of a study while it arrives ends in the same volume, or in the same refusal."""

import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imaging import files
from imaging.dicom import ahead as ahead_module
from imaging.dicom import header, pixels
from imaging.dicom.ahead import ReadAhead
from imaging.errors import StudyError
from imaging.read import read_study
from tests.imaging.small_ct import SmallCt, encoded, set_frames

ROOM = 1 << 24


def settled() -> None:
    """Wait until what was written may be taken in."""
    time.sleep(1.2 * ahead_module.TICK_S)


def taken(folder: Path, most_bytes: int = ROOM, ahead: ReadAhead | None = None) -> ReadAhead:
    ahead = ahead or ReadAhead(most_bytes)
    settled()
    for file in ahead.new_in(folder):
        ahead.take_in(file)
    return ahead


def arrived(folder: Path, order: list[int], syntax: str = "") -> ReadAhead:
    """Take in the slices of a series as they arrive in this order."""
    images, ahead = SmallCt(len(order)).images(), ReadAhead(ROOM)
    folder.mkdir()
    for n in order:
        if syntax:
            set_frames(images[n], syntax, [encoded(images[n], syntax)])
        images[n].save_as(folder / f"{n:03}.dcm", enforce_file_format=True)
        ahead.take_in(folder / f"{n:03}.dcm")
    settled()
    return ahead


def assert_same(folder: Path, ahead: ReadAhead) -> None:
    found, wanted = read_study(folder, ahead=ahead), read_study(folder)
    np.testing.assert_array_equal(found.volume.hu, wanted.volume.hu)
    for measure, other in zip(found.volume.measures, wanted.volume.measures, strict=True):
        assert (measure.low, measure.high) == (other.low, other.high)
        np.testing.assert_array_equal(measure.fine, other.fine)
        np.testing.assert_array_equal(measure.coarse, other.coarse)
    assert (found.header, found.images) == (wanted.header, wanted.images)
    assert (found.limitations, found.other_series) == (wanted.limitations, wanted.other_series)


@pytest.mark.parametrize("syntax", ["", "4.80"], ids=["uncompressed", "JPEG-LS"])
@pytest.mark.parametrize("order", ["feet first", "head first", "any"])
def test_images_in_any_order_make_the_same_volume(order: str, syntax: str, tmp_path: Path) -> None:
    numbers = list(range(70))  # the array grows twice
    if order == "any":
        random.Random(1).shuffle(numbers)
    numbers = numbers[::-1] if order == "head first" else numbers
    ahead = arrived(tmp_path / "in", numbers, syntax)
    folder = (tmp_path / "in").rename(tmp_path / "work")
    assert_same(folder, ahead)
    hu = read_study(folder, ahead=ahead).volume.hu
    (planes,) = ahead._planes.values()
    # nothing is copied unless the order is another
    assert np.shares_memory(hu, planes.hu) == (order != "any")


def test_no_file_is_decoded_or_parsed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    ahead = arrived(folder, list(range(12)))
    opened = Counter[str]()

    def counted(path: Path) -> object:
        opened[path.name] += 1
        return files.open_plain(path)

    for module in (header, pixels):
        monkeypatch.setattr(module, "open_plain", counted)
    read_study(folder, ahead=ahead)
    assert not opened


def changed(file: Path) -> bytes:
    """Other pixels in a file of the same size."""
    content = bytearray(file.read_bytes())
    content[-600] ^= 1
    return bytes(content)


def keep_time(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Let a change leave the time that programs see, as ``cp -p`` and ``tar`` do."""

    def changing(file: Path) -> None:
        before = file.stat()
        change(file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    return changing


def renamed_over(file: Path) -> None:
    copy = file.with_suffix(".new")
    copy.write_bytes(changed(file))
    copy.rename(file)


def exchanged(file: Path) -> None:
    """Two files exchange their names."""
    other, aside = file.with_name("006.dcm"), file.with_name("aside")
    for source, target in ((file, aside), (other, file), (aside, other)):
        source.rename(target)


CHANGES: dict[str, Callable[[Path], object]] = {
    "other pixels": lambda file: file.write_bytes(changed(file)),
    "in place, old time": keep_time(lambda file: file.write_bytes(changed(file))),
    "renamed over, old time": keep_time(renamed_over),
    "names exchanged": exchanged,
    "linked elsewhere": lambda file: os.link(file, file.parent.parent / "a"),
    "replaced by a hard link": lambda file: (
        (file.parent.parent / "a").write_bytes(changed(file)),
        file.unlink(),
        os.link(file.parent.parent / "a", file),
    ),
    "cut off": lambda file: os.truncate(file, file.stat().st_size - 100),
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "twice": lambda file: file.with_name("x.dcm").write_bytes(file.read_bytes()),
    "a link": lambda file: (file.rename(file.parent.parent / "a"), file.symlink_to("../a")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_after_it_was_read_ahead_is_read_again(change: str, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    ahead = arrived(folder, list(range(12)))
    CHANGES[change](folder / "005.dcm")
    assert_as_read_at_once(folder, ahead)


@pytest.mark.parametrize("change", ["removed and written", "over each", "a folder of this number"])
def test_files_of_another_patient_in_the_same_places_are_the_other_patients(
    change: str, tmp_path: Path
) -> None:
    """All sizes and times are the same, and inodes may be."""
    folder = tmp_path / "study"

    def written(patient: str) -> None:
        for file in SmallCt(attributes={"PatientID": patient}).write(folder):
            os.utime(file, (1e9, 1e9))

    written("first")
    ahead = taken(folder)
    if change == "a folder of this number":
        shutil.rmtree(folder)
        folder.mkdir()
    elif change == "removed and written":
        for file in sorted(folder.iterdir()):
            file.unlink()
    written("other")
    assert_as_read_at_once(folder, ahead)
    assert read_study(folder, ahead=ahead).header.patient_id == "other"


def assert_as_read_at_once(folder: Path, ahead: ReadAhead) -> None:
    try:
        wanted = read_study(folder)
    except StudyError as error:
        with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
            read_study(folder, ahead=ahead)
    else:
        found = read_study(folder, ahead=ahead)
        np.testing.assert_array_equal(found.volume.hu, wanted.volume.hu)
        assert (found.header, found.images) == (wanted.header, wanted.images)
        assert found.other_series == wanted.other_series


def test_what_was_cut_off_when_it_was_seen_first_is_read_when_it_is_whole(tmp_path: Path) -> None:
    whole, folder = SmallCt().write(tmp_path / "whole"), tmp_path / "study"
    folder.mkdir()
    for file in whole:
        (folder / file.name).write_bytes(file.read_bytes()[:-900])
    ahead = taken(folder)
    assert not any(planes.count for planes in ahead._planes.values())
    for file in whole:
        (folder / file.name).write_bytes(file.read_bytes())
    assert_same(folder, ahead)


def test_what_is_no_usual_slice_of_ct_is_left_to_the_reading(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    SmallCt().write(folder)
    SmallCt(3, series="2", attributes={"Modality": "MR"}).write(folder / "mr")
    SmallCt(1, series="3", attributes={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}).write(
        folder / "scout"
    )
    (folder / "viewer.exe").write_bytes(b"MZ" + bytes(600))
    ahead = taken(folder)
    assert [(uid[-2:], one.count) for (uid, *_), one in ahead._planes.items()] == [(".1", 12)]
    assert_same(folder, ahead)


def test_no_more_is_kept_than_there_is_room_for(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    SmallCt().write(folder)
    ahead = taken(folder, most_bytes=5 * 32 * 32 * 2)
    (planes,) = ahead._planes.values()
    assert planes.count == 5
    assert_same(folder, ahead)


def test_a_file_in_the_middle_of_a_copy_is_not_taken_in(tmp_path: Path) -> None:
    old, new = SmallCt(2).write(tmp_path)
    settled()
    assert ReadAhead(ROOM).new_in(tmp_path) == [old, new]
    os.utime(new, (1e9, 1e9))  # a copy sets the time of its original
    assert ReadAhead(ROOM).new_in(tmp_path) == [old]
    assert ReadAhead(ROOM, settled_s=3.0).new_in(tmp_path) == []


def test_only_a_fault_of_the_machine_ends_reading_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = SmallCt(1).write(tmp_path)

    def failing(error: Exception) -> Callable[[Path], object]:
        def read(_file: Path) -> object:
            raise error

        return read

    monkeypatch.setattr(ahead_module, "read_instance", failing(RecursionError()))
    ReadAhead(ROOM).take_in(file)
    monkeypatch.setattr(ahead_module, "read_instance", failing(MemoryError()))
    with pytest.raises(MemoryError):
        ReadAhead(ROOM).take_in(file)
