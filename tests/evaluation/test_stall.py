"""The time in the processor's queue, from files made by hand and from the kernel."""

from __future__ import annotations

import threading
from pathlib import Path

from evaluation.stall import queued_s, stalled


def test_the_second_number_counts(tmp_path: Path) -> None:
    """What this thread stood in the queue more at the end than at the beginning."""
    file = tmp_path / str(threading.get_native_id()) / "schedstat"
    file.parent.mkdir()
    file.write_text("900 1500000000 7\n")
    with stalled(tmp_path) as stall:
        file.write_text("999 1750000000 9\n")
    assert stall.took_s == 0.25


def test_where_nothing_counts_nothing_has_stalled(tmp_path: Path) -> None:
    """A system without such files gives no excuse."""
    with stalled(tmp_path) as stall:
        pass
    assert stall.took_s == 0.0


def test_the_kernel_s_own_count_never_falls() -> None:
    """It is of this thread, and grows."""
    first = queued_s()
    assert 0.0 <= first <= queued_s()
