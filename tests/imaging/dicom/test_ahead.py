"""What is read of a study while it arrives ends in the same volume, or in the same refusal."""

import os
import random
import re
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


def taken(folder: Path, most_bytes: int = ROOM) -> ReadAhead:
    ahead = ReadAhead(most_bytes)
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
        (new,) = ahead.new_in(folder)
        ahead.take_in(new)
    return ahead


def assert_same(folder: Path, ahead: ReadAhead) -> None:
    found, wanted = read_study(folder, ahead=ahead), read_study(folder)
    np.testing.assert_array_equal(found.volume.hu, wanted.volume.hu)
    for one, other in zip(found.volume.measures, wanted.volume.measures, strict=True):
        assert (one.low, one.high) == (other.low, other.high)
        np.testing.assert_array_equal(one.fine, other.fine)
        np.testing.assert_array_equal(one.coarse, other.coarse)
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


def changed_pixels(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-600] ^= 1
    file.write_bytes(content)


def replaced(file: Path) -> None:
    copy = file.with_suffix(".new")
    copy.write_bytes(file.read_bytes())
    status = file.stat()
    changed_pixels(copy)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.rename(file)


CHANGES: dict[str, Callable[[Path], object]] = {
    "other pixels": changed_pixels,
    "another file of this size and time": replaced,
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
    try:
        wanted = read_study(folder)
    except StudyError as error:
        with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
            read_study(folder, ahead=ahead)
    else:
        found = read_study(folder, ahead=ahead)
        np.testing.assert_array_equal(found.volume.hu, wanted.volume.hu)
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
    os.utime(old, (1e9, 1e9))
    assert ReadAhead(ROOM, settled_s=3.0).new_in(tmp_path) == [old]
    assert ReadAhead(ROOM).new_in(tmp_path) == [old, new]


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
