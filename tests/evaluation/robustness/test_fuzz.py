"""Hostile studies for the reader and for the agent: a small share of those of the command."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from evaluation.common.phantoms import Prepared
from evaluation.robustness import fuzz
from evaluation.robustness.fuzz import is_amiss
from evaluation.robustness.hostile import CANARY, KINDS, kind_of, make_study, materials
from evaluation.robustness.peak import peak_memory
from evaluation.robustness.reading import LARGE, is_beyond
from imaging.dicom.writer import write_series
from imaging.errors import StudyError
from imaging.read import read_study
from tests.cloud.running import until
from tests.evaluation.plain_chest import chest


def test_sound_material_of_every_transfer_syntax_and_format_is_read(tmp_path: Path) -> None:
    """A mutation of what cannot be read anyway would show nothing."""
    stuff = materials(tmp_path / "elsewhere")
    assert len(stuff.series) >= 7
    for syntax, files in stuff.series.items():
        for number, content in enumerate(files):
            (tmp_path / syntax).mkdir(exist_ok=True)
            (tmp_path / syntax / f"{number}.dcm").write_bytes(content)
        assert read_study(tmp_path / syntax).volume.shape == (12, 40, 40), syntax
    for name, parts in stuff.volumes.items():
        (tmp_path / name).mkdir()
        for part, content in parts.items():
            (tmp_path / name / part).write_bytes(content)
        assert read_study(tmp_path / name).volume.shape == (12, 40, 40), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_study_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    """Nothing else is raised, and of what lies outside nothing comes in."""
    stuff = materials(tmp_path / "elsewhere")
    numbers = [n for n in range(4000) if kind_of(n, 1) == kind][: 2 if kind == "bomb" else 12]
    for number in numbers:
        made, study = make_study(number, 1, tmp_path / str(number), stuff)
        assert made == kind
        with suppress(StudyError):
            assert CANARY not in read_study(study).header.patient_name


def test_the_agent_answers_every_hostile_study_and_the_sound_one_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(chest(), tmp_path / "sound")
    monkeypatch.setattr(fuzz, "prepare", lambda *_: [Prepared(tmp_path / "sound")])
    found = fuzz.fuzz(tmp_path / "site", tmp_path / "phantoms", 16, 8, seed=3)
    assert sum(sum(one.values()) for one in found["outcomes"].values()) == 17
    assert not is_amiss(found), found


def test_a_file_that_is_read_outside_is_noticed(tmp_path: Path) -> None:
    if not fuzz.notes_reads(tmp_path):
        pytest.skip("this filesystem does not note the time of a read")
    file = tmp_path / "canary"
    file.write_text("x")
    fuzz.forget_reads(file)
    assert file.stat().st_atime == fuzz.LONG_AGO_S
    file.read_text()
    assert file.stat().st_atime != fuzz.LONG_AGO_S


def test_what_is_amiss() -> None:
    sound = {
        **{name: [] for name in ("untyped", "unanswered", "leaks", "files_read_outside")},
        "sound_studies": 2,
        "sound_studies_read": 2,
    }
    assert not is_amiss(sound)
    for change in ({"untyped": [{}]}, {"unanswered": ["1"]}, {"leaks": ["log"]},
                   {"files_read_outside": ["a"]}, {"sound_studies_read": 1}):  # fmt: skip
        assert is_amiss({**sound, **change})


def test_peak_memory_counts_a_process_and_its_children() -> None:
    """Each of the two holds 100 MB until both were seen."""
    child = "x = bytearray(100 << 20); input()"
    line = "import subprocess, sys; x = bytearray(100 << 20)"
    line = f"{line}; subprocess.run([sys.executable, '-c', '{child}'])"
    with (
        subprocess.Popen([sys.executable, "-c", line], stdin=subprocess.PIPE) as process,
        peak_memory(process.pid, together=True) as peak,
    ):
        until(lambda: min(peak.own_mb, peak.child_mb, peak.together_mb / 2) > 100)
        process.communicate(b"\n")
    assert 100 < peak.own_mb < 150
    assert 100 < peak.child_mb < 150
    assert 200 < peak.together_mb < 260


def test_which_studies_pass_their_limits() -> None:
    row = {"program_peak_mb": 500, "child_peak_mb": 900, "together_peak_mb": 1100}
    row |= {"seconds": 20.0, "outcome": "read"}
    assert not is_beyond(LARGE, row)
    assert is_beyond(LARGE, {**row, "together_peak_mb": 1300})
    assert is_beyond(LARGE, {**row, "outcome": "TooLarge"})
    assert not is_beyond("bomb", {**row, "outcome": "TooLarge", "together_peak_mb": 3000})
    assert is_beyond("bomb", {**row, "child_peak_mb": 4200})
    assert is_beyond("bomb", {**row, "seconds": 61.0})
