"""Cores of their own for a service and its callers."""

from __future__ import annotations

import os
import sys

import pytest

from evaluation.load.command import Cores, halves, on_cores

linux = pytest.mark.skipif(sys.platform != "linux", reason="cores can be chosen on Linux")


def test_cores_in_common_are_not_apart() -> None:
    """Apart means that neither can take the other's time."""
    assert Cores(frozenset({0}), frozenset({1})).apart
    assert not Cores(frozenset({0, 1}), frozenset({1})).apart


@linux
def test_halves_are_all_of_this_process_s_cores() -> None:
    """Each core is one side's, and with shared, or on one core, both sides' alike."""
    mine = frozenset(os.sched_getaffinity(0))
    found = halves()
    assert found.service | found.callers == mine
    assert found.apart == (len(mine) > 1)
    assert halves(shared=True) == Cores(mine, mine)


@linux
def test_afterwards_all_is_as_before() -> None:
    """The choice holds within, and not after."""
    before = os.sched_getaffinity(0)
    one = {min(before)}
    with on_cores(one):
        assert os.sched_getaffinity(0) == one
    assert os.sched_getaffinity(0) == before
