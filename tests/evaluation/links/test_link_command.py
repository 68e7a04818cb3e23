"""Results that outlast the run that made them."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.errors import MissingData
from evaluation.links.link_command import Journal


def test_a_second_run_goes_on_from_the_first(tmp_path: Path) -> None:
    """What was added is there, and a line that was cut is forgotten."""
    path, run = tmp_path / "sub" / "j.jsonl", {"seed": 1, "pair": (1, 2)}
    first = Journal(path, run)
    first.add({"number": 0})
    first.add({"number": 1})
    path.write_text(f'{path.read_text()}{{"numb')
    second = Journal(path, run)
    assert second.entries == [{"number": 0}, {"number": 1}]
    second.add({"number": 2})
    assert [one["number"] for one in Journal(path, run).entries] == [0, 1, 2]


def test_the_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    """The message names the file and both runs."""
    path = tmp_path / "j.jsonl"
    Journal(path, {"seed": 1})
    with pytest.raises(MissingData, match=r"j\.jsonl.*another run.*'seed': 1.*'seed': 2"):
        Journal(path, {"seed": 2})


@pytest.mark.parametrize(("text", "says"), [("", "empty"), ("{]\n", "not a journal")])
def test_what_is_no_journal_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """It is neither overwritten nor added to."""
    path = tmp_path / "j.jsonl"
    path.write_text(text)
    with pytest.raises(MissingData, match=says):
        Journal(path, {})
    assert path.read_text() == text


def test_without_a_file_it_is_kept_in_memory() -> None:
    kept = Journal(None, {})
    kept.add({"number": 0})
    assert kept.entries == [{"number": 0}]
