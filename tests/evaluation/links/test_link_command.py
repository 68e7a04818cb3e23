"""Results that outlast the run that made them."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.errors import MissingData
from evaluation.links.link_command import open_journal


def test_a_second_run_goes_on_from_the_first(tmp_path: Path) -> None:
    """What was added is there, and a line that was cut is forgotten."""
    path = tmp_path / "sub" / "j.jsonl"
    with open_journal(path, {"seed": 1, "pair": (1, 2)}) as first:
        first.add({"number": 0})
        first.add({"number": 1})
    path.write_text(f'{path.read_text()}{{"numb')
    with open_journal(path, {"seed": 1, "pair": (1, 2)}) as second:
        assert second.entries == [{"number": 0}, {"number": 1}]
        second.add({"number": 2})
    with open_journal(path, {"seed": 1, "pair": (1, 2)}) as third:
        assert [one["number"] for one in third.entries] == [0, 1, 2]


def test_the_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    """The message names the file and both runs."""
    path = tmp_path / "j.jsonl"
    with open_journal(path, {"seed": 1}):
        pass
    with (
        pytest.raises(MissingData, match=r"j\.jsonl.*another run.*'seed': 1.*'seed': 2"),
        open_journal(path, {"seed": 2}),
    ):
        pass


@pytest.mark.parametrize(("text", "says"), [("", "empty"), ("{]\n", "no journal")])
def test_what_is_no_journal_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """It is neither overwritten nor added to."""
    path = tmp_path / "j.jsonl"
    path.write_text(text)
    with pytest.raises(MissingData, match=says), open_journal(path, {}):
        pass
    assert path.read_text() == text


def test_without_a_file_it_is_kept_in_memory() -> None:
    """For a run that is short."""
    with open_journal(None, {}) as kept:
        kept.add({"number": 0})
    assert kept.entries == [{"number": 0}]
