"""A cloud that is killed and comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.errors import ServiceFailed
from evaluation.mortal_cloud import MortalCloud, mortal_cloud

IDLE = ("tests.evaluation.idle_cloud",)


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])


def is_up(cloud: MortalCloud) -> bool:
    """Whether it serves now; asked anew each time."""
    return cloud.serves


def test_it_comes_back_at_the_same_address(tmp_path: Path) -> None:
    """Killed, it serves no more; started again, it serves where it did."""
    with mortal_cloud(tmp_path, IDLE) as cloud:
        assert is_up(cloud)
        first = cloud.address
        assert not first.endswith(":0")
        cloud.kill()
        assert not is_up(cloud)
        cloud.start()
        cloud.wait()
        assert (cloud.address, cloud.deaths) == (first, 1)
    assert not is_up(cloud)


def test_one_that_ends_by_itself_is_an_error(tmp_path: Path) -> None:
    """Its own last words are told."""
    with (
        pytest.raises(ServiceFailed, match="ended with 3 before its time"),
        mortal_cloud(tmp_path, (*IDLE, "ends")),
    ):
        pass
    assert "no model to read with" in (tmp_path / "log").read_text()
