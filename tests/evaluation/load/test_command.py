"""Cores of their own for a service and its callers."""

from __future__ import annotations

import os
import sys

import pytest

from evaluation.load.command import Cores, pinned, split_cores

linux = pytest.mark.skipif(sys.platform != "linux", reason="cores can be chosen on Linux")


def test_cores_in_common_are_not_disjoint() -> None:
    assert Cores(frozenset({0}), frozenset({1})).disjoint
    assert not Cores(frozenset({0, 1}), frozenset({1})).disjoint


@linux
def test_split_cores_are_all_of_this_process_s_cores() -> None:
    """Each core is one side's, and with shared, or on one core, both sides' alike."""
    mine = frozenset(os.sched_getaffinity(0))
    found = split_cores()
    assert found.service | found.generator == mine
    assert found.disjoint == (len(mine) > 1)
    assert split_cores(shared=True) == Cores(mine, mine)


@linux
def test_afterwards_all_is_as_before() -> None:
    """The choice holds within, and not after."""
    before = os.sched_getaffinity(0)
    one = {min(before)}
    with pinned(one):
        assert os.sched_getaffinity(0) == one
    assert os.sched_getaffinity(0) == before
