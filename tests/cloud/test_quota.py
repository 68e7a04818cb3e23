from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from cloud.quota import StreamQuota
from protos.errors import Overloaded
from tests.cloud.scheduling.builders import ROUTINE, STAT

Open = Callable[..., None]


@pytest.fixture
def hold() -> Iterator[Open]:
    """Opens routine streams of a site, none of which may be rejected, and holds them."""
    with ExitStack() as stack:

        def open_(quota: StreamQuota, site: str, count: int = 1) -> None:
            for _ in range(count):
                stack.enter_context(quota.open_stream(site))
                quota.check_priority(site, ROUTINE)

        yield open_


def test_a_site_has_no_more_than_its_share(hold: Open) -> None:
    """Stat may exceed the quota by the streams that are reserved for it."""
    quota = StreamQuota(20, 0.3)
    hold(quota, "north", 6)
    with pytest.raises(Overloaded, match=r"north has 7 open streams; its quota is 6"):
        hold(quota, "north")
    hold(quota, "south", 6)
    with quota.open_stream("south"):
        quota.check_priority("south", STAT)
        with pytest.raises(Overloaded, match="south has 7 open streams"):
            quota.check_priority("south", ROUTINE)


def test_no_site_can_take_all_streams(hold: Open) -> None:
    """Also while it is alone: the first study of another site must find a place."""
    quota = StreamQuota(20, 0.5)
    with ExitStack() as streams:
        for _ in range(12):
            streams.enter_context(quota.open_stream("north"))
        with pytest.raises(Overloaded, match="its quota is 10"):
            streams.enter_context(quota.open_stream("north"))
        hold(quota, "south")


def test_the_last_tenth_is_for_stat(hold: Open) -> None:
    """Of twenty streams the last two are closed to routine, whatever the site."""
    quota = StreamQuota(20, 1.0)
    hold(quota, "north", 18)
    with quota.open_stream("south"):
        quota.check_priority("south", STAT)
        with pytest.raises(Overloaded, match="18 streams are open, the last 2 are"):
            quota.check_priority("north", ROUTINE)


def test_closed_streams_are_free_again() -> None:
    quota = StreamQuota(2, 1.0)
    with (
        quota.open_stream("north"),
        quota.open_stream("north"),
        pytest.raises(Overloaded, match="2 streams are open, the limit is 2"),
        quota.open_stream("south"),
    ):
        pass
    with quota.open_stream("south"), quota.open_stream("south"):
        pass


def test_a_few_streams_are_for_all(hold: Open) -> None:
    """A service with one stream accepts a routine study."""
    hold(StreamQuota(1, 0.5), "north")
