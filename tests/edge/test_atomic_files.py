import errno
import os
import shutil
import sqlite3
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import pytest

from edge.atomic_files import copy_whole, is_transient, write_atomically
from tests.edge.builders import put


def test_a_folder_is_copied_as_a_rename_would_leave_it(tmp_path: Path) -> None:
    study = put(tmp_path, "a")
    (study / "series" / "empty").mkdir(parents=True)
    (study / "series" / "9.dcm").write_text("nine")
    os.utime(study / "series" / "9.dcm", ns=(7, 7))
    (study / "dangling.dcm").symlink_to("nowhere.dcm")
    (study / "folder").symlink_to("series")
    copied = tmp_path / ("K" * 255)  # as long as a name can be
    copy_whole(study, copied)
    found = {str(path.relative_to(copied)) for path in copied.rglob("*")}
    assert found == {str(path.relative_to(study)) for path in study.rglob("*")}
    assert (copied / "series" / "9.dcm").read_text() == "nine"
    assert (copied / "series" / "9.dcm").stat().st_mtime_ns == 7
    assert os.readlink(copied / "dangling.dcm") == "nowhere.dcm"
    assert os.readlink(copied / "folder") == "series"


def test_a_file_for_which_the_disk_has_no_room_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", Mock(side_effect=full))
    with pytest.raises(OSError, match=r"No space left .*report\.json"):
        write_atomically(tmp_path / "report.json", b"{}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_in_a_copy_is_known_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    study, error = put(tmp_path / "from", "a"), OSError(code, os.strerror(code))
    (tmp_path / "to").mkdir()
    with monkeypatch.context() as patch:
        # the second file
        patch.setattr(shutil, "copy2", Mock(wraps=shutil.copy2, side_effect=[DEFAULT, error]))
        with pytest.raises(OSError, match=os.strerror(code)) as raised:
            copy_whole(study, tmp_path / "to" / "a")
    assert is_transient(raised.value)
    assert list((tmp_path / "to").iterdir()) == []
    copy_whole(study, tmp_path / "to" / "a")
    assert len(list((tmp_path / "to" / "a").iterdir())) == len(list(study.iterdir()))


@pytest.mark.parametrize(
    ("code", "does"),
    [
        (sqlite3.SQLITE_FULL, True),
        (sqlite3.SQLITE_READONLY, True),
        (sqlite3.SQLITE_IOERR_WRITE, True),
        (sqlite3.SQLITE_IOERR_READ, False),
        (sqlite3.SQLITE_BUSY, True),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, True),
        (sqlite3.SQLITE_LOCKED, True),
        (sqlite3.SQLITE_ERROR, False),
        (None, False),  # the module raises some without a code of sqlite's
    ],
)
def test_which_database_errors_are_transient(code: int | None, does: bool) -> None:
    """A full disk, and another who holds it; a used-up quota is a failed write to sqlite."""
    error = sqlite3.OperationalError("disk I/O error")
    if code is not None:
        error.sqlite_errorcode = code
    assert is_transient(error) is does
