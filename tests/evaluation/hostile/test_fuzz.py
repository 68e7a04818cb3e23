"""Hostile data for the reader and for the agent: a small share of that of the command."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.hostile.fuzz import LONG_AGO_S, forget_reads, fuzz, fuzz_files, notes_reads
from evaluation.hostile.studies import CANARY, KINDS, kind_of, make_study, materials
from evaluation.process_memory import children_of, peak_memory, resident_mb
from imaging.dicom.writer import write_series
from imaging.errors import StudyError
from imaging.read import read_study
from tests.cloud.running import until
from tests.evaluation.plain_chest import chest


@pytest.mark.long
def test_sound_material_of_every_transfer_syntax_and_format_is_read(tmp_path: Path) -> None:
    """A mutation of what cannot be read anyway would show nothing."""
    stuff = materials(tmp_path / "elsewhere")
    assert len(stuff.series) >= 7
    for syntax, contents in stuff.series.items():
        for number, content in enumerate(contents):
            (tmp_path / syntax).mkdir(exist_ok=True)
            (tmp_path / syntax / f"{number}.dcm").write_bytes(content)
        assert read_study(tmp_path / syntax).volume.shape == (12, 40, 40), syntax
    for name, parts in stuff.volumes.items():
        (tmp_path / name).mkdir()
        for part, content in parts.items():
            (tmp_path / name / part).write_bytes(content)
        assert read_study(tmp_path / name).volume.shape == (12, 40, 40), name


@pytest.mark.long
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


@pytest.mark.long
def test_the_agent_answers_every_hostile_study_and_the_sound_one_after_them(tmp_path: Path) -> None:
    write_series(chest(), tmp_path / "sound")
    found = fuzz_files(tmp_path / "site", tmp_path / "sound", 16, 8, seed=3)
    assert sum(sum(one.values()) for one in found["outcomes"].values()) == 17
    assert found["peak_mb"] > 50
    assert unmet({"files": found}) == [], found


def unmet(result: dict[str, Any]) -> list[str]:
    return [bar.what for bar in fuzz.bars(result) if not bar.met]


@pytest.mark.long
def test_sound_series_among_hostile_ones_are_acknowledged_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # phantoms are kept below the working directory
    given = ["--door", "network", "--senders", "25", "--seed", "7"]
    done = CliRunner().invoke(app, ["fuzz", *given, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["senders"]
    assert sum(found["hostile"].values()) == 25
    assert found["sound_series"] == found["acknowledged"] == found["reported"] == 2
    assert found["left_on_their_way"] == 0


def test_a_file_that_is_read_outside_is_noticed(tmp_path: Path) -> None:
    if not notes_reads(tmp_path):
        pytest.skip("this filesystem does not note the time of a read")
    file = tmp_path / "canary"
    file.write_text("x")
    forget_reads(file)
    assert file.stat().st_atime == LONG_AGO_S
    file.read_text()
    assert file.stat().st_atime != LONG_AGO_S


SOUND = {
    **{name: [] for name in ("untyped", "unanswered", "leaks", "files_read_outside")},
    "studies": 9, "sound_studies": 2, "sound_studies_read": 2, "longest_read_s": 3.0,
    "peak_mb": 900.0,
}  # fmt: skip


def test_what_misses_a_bar() -> None:
    assert unmet({"files": SOUND}) == []
    for change in ({"untyped": [{}]}, {"unanswered": ["1"]}, {"leaks": ["log"]},
                   {"files_read_outside": ["a"]}, {"files_read_outside": None},
                   {"sound_studies_read": 1}, {"longest_read_s": 61.0},
                   {"peak_mb": 4200.0}):  # fmt: skip
        assert len(unmet({"files": {**SOUND, **change}})) == 1, change


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child; each of the two holds 100 MB until it is told to end."""
    child = "x = bytearray(100 << 20); input()"
    line = "import subprocess, sys; x = bytearray(100 << 20)"
    line = f"{line}; subprocess.run([sys.executable, '-c', '{child}'])"
    with subprocess.Popen([sys.executable, "-c", line], stdin=subprocess.PIPE) as process:
        yield process
        process.communicate(b"\n")


def test_peak_memory_counts_a_process_and_its_children(parent: subprocess.Popen[bytes]) -> None:
    with peak_memory(parent.pid, together=True) as peak:
        until(lambda: min(peak.own_mb, peak.child_mb, peak.together_mb / 2) > 104)
    assert 104 < peak.own_mb < 160
    assert 104 < peak.child_mb < 160
    assert 208 < peak.together_mb < 280
    (child,) = children_of(parent.pid)
    assert resident_mb(child) > 104


def test_a_process_that_has_ended_has_no_memory() -> None:
    assert resident_mb(2**22 + 1) == 0.0
    assert children_of(2**22 + 1) == []
