"""Which of the series of a folder is read, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imaging.errors import NotCt
from imaging.read import read_study

Make = Callable[..., Any]


def test_thinnest_that_covers_the_lungs(tmp_path: Path, small_ct: Make) -> None:
    """Of thick, thin and thin but short, the thin whole chest is read and the rest is named."""
    small_ct(50, 5.0, series="5", description="thick").write(tmp_path / "a")
    small_ct(210, 1.0, series="6", description="thin").write(tmp_path / "b")
    small_ct(60, 0.5, series="7", description="slab").write(tmp_path / "c")
    study = read_study(tmp_path)
    assert study.volume.description == "thin"
    assert study.volume.shape == (210, 32, 32)
    assert study.other_series == (
        "'thick' (CT, 50 images): 5 mm slices over 250 mm, another series was preferred",
        "'slab' (CT, 60 images): 0.5 mm slices over 30 mm, another series was preferred",
    )


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer, not slices"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "mip, not slices"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "another series was preferred"),
        ({"Modality": "SR"}, "modality SR is not CT"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "no CT image"),
        ({"BodyPartExamined": "HEAD"}, "another series was preferred"),
        ({"StudyDate": "19990101"}, "another series was preferred"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
    ],
)
def test_passed_over(
    attributes: dict[str, object], reason: str, tmp_path: Path, small_ct: Make
) -> None:
    """Thinner series that are no slices, or not of this chest, give way with their reason."""
    dated = {"StudyDate": "20240101"}
    small_ct(series="2", attributes=dated).write(tmp_path / "good")
    thin = small_ct(30, 1.0, series="3", description="thin", attributes=dated | attributes)
    thin.write(tmp_path / "thin")
    study = read_study(tmp_path)
    assert study.volume.description == "chest"
    assert len(study.other_series) == 1
    assert reason in study.other_series[0]


def test_incomplete_series_gives_way_to_a_whole_one(tmp_path: Path, small_ct: Make) -> None:
    """A thin series with a hole is passed over aloud when a thicker one is whole."""
    small_ct(series="2").write(tmp_path / "thick")
    thin = small_ct(30, 1.0, series="3", description="thin")
    thin.write(tmp_path / "thin")[9].unlink()
    study = read_study(tmp_path)
    assert study.volume.geometry.spacing_mm[0] == 2.5
    assert "slices: 1 missing between 008.dcm" in study.other_series[0]


def test_file_names_its_series(tmp_path: Path, small_ct: Make) -> None:
    """Given one file, its series is read though another would be preferred."""
    files = small_ct(series="2").write(tmp_path / "a")
    for file in small_ct(30, 1.0, series="3").write(tmp_path / "b"):
        file.rename(tmp_path / "a" / f"thin{file.name}")
    study = read_study(files[3])
    assert study.volume.shape[0] == 12
    assert study.other_series == ("'chest' (CT, 30 images): not asked for",)


def test_no_ct_names_what_was_found(tmp_path: Path, small_ct: Make) -> None:
    """A folder with other modalities only is refused with a list of them."""
    small_ct(series="2", description="T1", attributes={"Modality": "MR"}).write(tmp_path / "a")
    small_ct(1, series="3", description="dose", attributes={"Modality": "SR"}).write(tmp_path / "b")
    with pytest.raises(NotCt, match=r"'T1' \(MR, 12 images\).*'dose' \(SR, 1 image\)"):
        read_study(tmp_path)
