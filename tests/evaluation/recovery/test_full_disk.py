import errno
import io
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.recovery.full_disk import LARGEST_BYTES, fill


class SmallDisk(io.RawIOBase):
    """Takes 2 MiB and 10 bytes, and a part of a block where no whole one fits."""

    def __init__(self, error: int = errno.ENOSPC) -> None:
        self.left, self.error = (2 << 20) + 10, error

    def write(self, block: object) -> int:
        assert isinstance(block, bytes)
        if not self.left:
            raise OSError(self.error, "no")
        taken = min(self.left, len(block))
        self.left -= taken
        return taken


def test_it_is_filled_to_the_last_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SmallDisk()
    monkeypatch.setattr(Path, "open", lambda *_, **__: disk)
    fill(tmp_path / "ballast")
    assert disk.left == 0
    monkeypatch.setattr(Path, "open", lambda *_, **__: SmallDisk(errno.EIO))
    with pytest.raises(OSError, match="no"):
        fill(tmp_path / "ballast")


def test_a_large_filesystem_is_never_filled(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).total <= LARGEST_BYTES:
        pytest.skip("the temporary folder lies on a small filesystem")
    ended = CliRunner().invoke(app, ["full-disk", "--at", str(tmp_path)])
    assert ended.exit_code == 2
    assert list(tmp_path.iterdir()) == []
