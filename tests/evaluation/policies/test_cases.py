"""Cases and their file."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.errors import MissingData
from evaluation.policies.cases import key_of, load, save
from tests.evaluation.made_cases import made_cases


def test_cases_come_back_as_they_were_saved(tmp_path: Path) -> None:
    """Every score, size and name; half a file never lies there."""
    path, cases = tmp_path / "new" / "cases.json", made_cases()
    save(cases, path)
    assert load(path) == cases
    assert [file.name for file in path.parent.iterdir()] == ["cases.json"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """The message says which, and what helps."""
    path = tmp_path / "cases.json"
    path.write_text('{"pieces": 3}')
    with pytest.raises(MissingData, match=r"cases\.json: .* delete it to read them again"):
        load(path)


def test_the_key_changes_with_what_is_described() -> None:
    """Another model is another key; the order of words is none."""
    assert key_of(a=1, b="x") == key_of(b="x", a=1)
    assert key_of(a=1, b="x") != key_of(a=2, b="x")


def test_pieces_are_told_apart() -> None:
    """By split, and whole scans from cubes."""
    pieces = made_cases(patients=3).of("test")
    assert {piece.split for piece in pieces} == {"test"}
    assert [piece.whole for piece in pieces] == [True] * 2 + [False] * 6
