"""How the study of a demonstration arrives in the inbox."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from edge.ingest import Inbox
from evaluation import demo_study
from evaluation.demo_study import deliver_copy, deliver_phantom, demo_spec
from evaluation.errors import MissingData
from imaging.phantom.phantom import Phantom
from imaging.read import read_study
from imaging.volume import Geometry, Nodule, Volume


def _silent(_part: float) -> None:
    """Nobody watches."""


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """An empty inbox."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


def _complete(inbox: Path) -> list[str]:
    """What the agent would claim at its first look."""
    return [arrival.name for arrival in Inbox(inbox, 3600.0, lambda: 0.0).complete()]


def _volume() -> Volume:
    hu = np.arange(30 * 16 * 16, dtype=np.int16).reshape(30, 16, 16) - 1000
    return Volume(hu, Geometry((2.5, 0.75, 0.75), (-6.0, -6.0, -40.0)))


def test_phantom_arrives_as_a_series_with_its_marker(inbox: Path) -> None:
    """The agent sees it complete at once, and reads the voxels that were drawn."""
    volume = _volume()
    phantom = Phantom(volume, (Nodule((0.0, 0.0, 0.0), 6.0),), np.zeros((30, 16, 16), np.uint8))
    told: list[float] = []
    deliver_phantom(phantom, demo_spec(3), inbox, told.append)
    assert _complete(inbox) == ["phantom-3"]
    assert len(list((inbox / "phantom-3").glob("*.dcm"))) == 30
    study = read_study(inbox / "phantom-3")
    assert (study.volume.hu == volume.hu).all()
    assert study.header.patient_id == "PHANTOM-3"
    assert (told[0], told[-1]) == (1 / 30, 1.0)


def test_phantom_is_a_whole_chest_that_takes_little_time() -> None:
    """120 slices of 2.5 mm, nodules of a size that both readers are made for."""
    assert demo_spec(1).shape == (120, 480, 480)
    assert demo_spec(1).diameter_mm == (6.0, 25.0)


def test_own_folder_is_copied_whole_and_left_alone(tmp_path: Path, inbox: Path) -> None:
    """Sub-folders too, under a name that says nothing of the patient; the original stays."""
    own = tmp_path / "MUELLER^ANNA.tmp"
    (own / "series 1").mkdir(parents=True)
    (own / "series 1" / "IM0001").write_bytes(b"one")
    (own / "README").write_bytes(b"two")
    before = {path: path.stat() for path in own.rglob("*")}
    deliver_copy(own, inbox, _silent)
    assert _complete(inbox) == ["study"]
    assert (inbox / "study" / "series 1" / "IM0001").read_bytes() == b"one"
    assert (inbox / "study" / "README").read_bytes() == b"two"
    after = {path: path.stat() for path in own.rglob("*")}
    assert {p: s.st_mtime_ns for p, s in after.items()} == {
        p: s.st_mtime_ns for p, s in before.items()
    }


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_own_volume_file_is_readable_where_it_arrives(
    tmp_path: Path, inbox: Path, suffix: str
) -> None:
    """Every format, with the data file that a detached header names."""
    own = tmp_path / f"Chest scan{suffix}"
    image = SimpleITK.GetImageFromArray(_volume().hu)
    SimpleITK.WriteImage(image, str(own))
    before = {path.name: path.read_bytes() for path in tmp_path.glob("Chest*")}
    deliver_copy(own, inbox, _silent)
    assert _complete(inbox) == [f"study{suffix}"]
    read = read_study(inbox / f"study{suffix}").volume
    assert read.shape == (30, 16, 16)
    assert int(read.hu.max()) == int(_volume().hu.max())
    assert {path.name: path.read_bytes() for path in tmp_path.glob("Chest*")} == before


def test_header_does_not_lead_out_of_its_folder(tmp_path: Path, inbox: Path) -> None:
    """A data file named elsewhere is not fetched; the agent will say that it is missing."""
    (tmp_path / "secret.raw").write_bytes(b"0")
    own = tmp_path / "own"
    own.mkdir()
    (own / "ct.mhd").write_text("NDims = 3\nElementDataFile = ../secret.raw\n")
    deliver_copy(own / "ct.mhd", inbox, _silent)
    assert sorted(path.name for path in inbox.iterdir()) == ["study.mhd", "study.mhd.done"]


def test_one_slice_is_not_a_study(tmp_path: Path, inbox: Path) -> None:
    """A file of no volume format is refused before anything is copied; the advice is the folder."""
    (tmp_path / "IM0001.dcm").write_bytes(b"0")
    with pytest.raises(MissingData, match="of a DICOM series give the folder"):
        deliver_copy(tmp_path / "IM0001.dcm", inbox, _silent)
    assert list(inbox.iterdir()) == []


def test_a_whole_disk_is_not_copied(
    tmp_path: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with more files than any study has is refused before the first is copied."""
    monkeypatch.setattr(demo_study, "MAX_FILES", 2)
    own = tmp_path / "home"
    own.mkdir()
    for name in "abc":
        (own / name).write_bytes(b"0")
    with pytest.raises(MissingData, match="more than 2 files"):
        deliver_copy(own, inbox, _silent)
    assert list(inbox.iterdir()) == []


def test_an_empty_folder_is_the_agent_s_to_refuse(tmp_path: Path, inbox: Path) -> None:
    """It arrives, so that the person sees the agent's own typed reason."""
    own = tmp_path / "nothing"
    own.mkdir()
    deliver_copy(own, inbox, _silent)
    assert (inbox / "study" / ".done").is_file()
