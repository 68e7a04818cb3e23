"""The edge's process, as the one who tells it what to read sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.edge_process import edge_process
from evaluation.errors import ServiceFailed

SCRIPTED = ("tests.evaluation.scripted_edge",)


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])


def test_it_is_asked_line_by_line_and_its_end_is_told(tmp_path: Path) -> None:
    """Started with its studies, it answers each command; one that ends says why."""
    log, cache = tmp_path / "log", tmp_path / "cache"
    with edge_process(4, 7, cache, log, SCRIPTED) as edge:
        assert edge.open(cloud="off") == f"4 7 {cache}"
        assert edge.read(2, from_files=True) == {"read": 2, "from_files": True}
        with pytest.raises(ServiceFailed, match=r"ended with 4\n.*thirteen is unlucky"):
            edge.read(13, from_files=False)
    assert cache.is_dir()
