"""One door for every kind of study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imaging.errors import UnreadableFile
from imaging.read import read_study


def test_progress_runs_from_0_to_1(tmp_path: Path, small_ct: Callable[..., Any]) -> None:
    """The progress never goes back and ends at 1."""
    small_ct().write(tmp_path)
    told: list[float] = []
    read_study(tmp_path, progress=told.append)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)
    assert len(told) > 20


def test_sub_folders(tmp_path: Path, small_ct: Callable[..., Any]) -> None:
    """Slices spread over sub-folders, as on a patient's disc, are one series."""
    for index, file in enumerate(small_ct().write(tmp_path)):
        place = tmp_path / f"DIR{index % 3}" / "IMAGES"
        place.mkdir(parents=True, exist_ok=True)
        file.rename(place / f"IM{index:05}")
    study = read_study(tmp_path)
    assert study.volume.shape == (12, 32, 32)
    assert study.source == tmp_path


def test_error_carries_reason_and_file(tmp_path: Path) -> None:
    """A refusal can be filed: its kind, the file and the reason stand by themselves."""
    with pytest.raises(UnreadableFile) as caught:
        read_study(tmp_path / "gone")
    assert caught.value.file == tmp_path / "gone"
    assert caught.value.kind == "UnreadableFile"
    assert caught.value.reason.startswith("does not exist")
